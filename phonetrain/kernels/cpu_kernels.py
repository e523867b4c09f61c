"""Norm, activation and dropout on a CPU in at most two passes over memory each way, on torch's own threads.

A kernel is a native function of one argument, the address of a block of int64: what to do and where. Its rows are cut
into tasks of a fixed size; whichever threads there are take the tasks one by one, and sums over rows are kept a task
and added in task order, so results do not depend on the number of threads. Kernels are compiled for the dtype,
activation and dropout in use, once, and kept on disk by numba, which compiles them again when this file changes: after
a change of cpu_math.py alone, change something here too, or kernels on disk stay as they were.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable

import numpy as np
import torch
from numba import cfunc, njit, types

from .cpu_math import EXACT, FLOAT, ONE, ZERO, F, activation, load, next_task, random_bits, store

TASK_VALUES = 1 << 15
"""Values in a task: few enough for a core's own cache, enough tasks for all threads to find one."""
SUMMED_ROWS = 64
"""Rows whose sum is a float32 sum; what comes after is float64."""

(
    NEXT,
    TASKS,
    TASK_ROWS,
    ROWS,
    COLUMNS,
    PITCH,
    INPUT,
    OUTPUT,
    SLOPES,
    GRADIENT,
    SCALE,
    SHIFT,
    CENTRE,
    FIRST,
    SECOND,
    SUMS,
    MOMENTS,
    SETTINGS,
    FIRST_ROW,
    KEY,
    SECOND_KEY,
    LEAST,
) = range(22)
"""Places in the block. INPUT, OUTPUT, SLOPES, GRADIENT: (ROWS, COLUMNS) values of one dtype; in a conversion OUTPUT
has another, and rows of INPUT begin PITCH values apart. SCALE, SHIFT, CENTRE, FIRST, SECOND: (COLUMNS,) float32.
SUMS: (TASKS, 2, COLUMNS) float32. MOMENTS: (ROWS, 2) float32. SETTINGS: (3,) float32: slope below zero (leak), factor
of what dropout keeps, epsilon. Of dropout's hash FIRST_ROW: rows of the batch before these; KEY, SECOND_KEY; LEAST:
smallest hash that is kept. NEXT: address of the number of the next task.

SLOPES is what forward leaves for backward: the activation's derivative, 0 where dropout drops. One value more in memory
for every exponential, division and hash less. Dropout's factor is left out of it, because bfloat16 would round the
same number the same way at every place (leaky ReLU's slope is: 0.01 becomes 0.01001); G below is GRADIENT * SLOPES,
and factors come in with float32."""
BLOCK_SIZE = LEAST + 1
SIGNATURE = types.void(types.CPointer(types.int64))
SUMMING = {**EXACT, "fastmath": {"contract", "reassoc"}}  # a sum along a row may be taken in lanes


@njit(**EXACT)
def rows_of_next_task(block):
    """Number of the next task, and its rows [first, last); none are left where the two are equal."""
    task = next_task(block[NEXT])
    first = min(task * block[TASK_ROWS], block[ROWS])
    return task, first, min(first + block[TASK_ROWS], block[ROWS])


@njit(**EXACT)
def kept(first, j, key, second_key, least):
    """Whether dropout keeps the value number `first + j`."""
    return random_bits(first, j, key, second_key) >= least


@functools.cache
def conversion(kind: int, wanted: int):
    """OUTPUT, of dtype `wanted`, = INPUT, of dtype `kind`, whose rows begin PITCH values apart."""

    @cfunc(SIGNATURE, cache=True, **EXACT)
    def kernel(block):
        columns, source, target, pitch = block[COLUMNS], block[INPUT], block[OUTPUT], block[PITCH]
        while True:
            task, first, last = rows_of_next_task(block)
            if first == last:
                return
            for row in range(first, last):
                for j in range(columns):
                    store(wanted, target, row * columns + j, load(kind, source, row * pitch + j))

    return kernel


@njit(**EXACT)
def clear(sums, count):
    for j in range(count):
        store(FLOAT, sums, j, ZERO)


@functools.cache
def column_sums(kind: int, derivative: bool):
    """SUMS of a and a * (x - CENTRE) over a task's rows, a column each: a is x - CENTRE, or G for a derivative."""

    @cfunc(SIGNATURE, cache=True, **EXACT)
    def kernel(block):
        columns, source, centre = block[COLUMNS], block[INPUT], block[CENTRE]
        slopes, gradients = block[SLOPES], block[GRADIENT]
        while True:
            task, first, last = rows_of_next_task(block)
            if first == last:
                return
            sums = block[SUMS] + task * columns * 8
            products = sums + columns * 4
            clear(sums, 2 * columns)
            for row in range(first, last):
                start = row * columns
                for j in range(columns):
                    away = load(kind, source, start + j) - load(FLOAT, centre, j)
                    value = load(kind, gradients, start + j) * load(kind, slopes, start + j) if derivative else away
                    store(FLOAT, sums, j, load(FLOAT, sums, j) + value)
                    store(FLOAT, products, j, load(FLOAT, products, j) + value * away)

    return kernel


@functools.cache
def columns_backward(kind: int, normed: bool):
    """OUTPUT = SCALE * G, normed: SCALE * (G - FIRST - (x - CENTRE) * SECOND): the derivative by x."""

    @cfunc(SIGNATURE, cache=True, **EXACT)
    def kernel(block):
        columns, source, target, scale = block[COLUMNS], block[INPUT], block[OUTPUT], block[SCALE]
        slopes, gradients = block[SLOPES], block[GRADIENT]
        centre, first_term, second_term = block[CENTRE], block[FIRST], block[SECOND]
        while True:
            task, first, last = rows_of_next_task(block)
            if first == last:
                return
            for row in range(first, last):
                start = row * columns
                for j in range(columns):
                    gradient = load(kind, gradients, start + j) * load(kind, slopes, start + j)
                    if normed:
                        away = load(kind, source, start + j) - load(FLOAT, centre, j)
                        gradient -= load(FLOAT, first_term, j) + away * load(FLOAT, second_term, j)
                    store(kind, target, start + j, load(FLOAT, scale, j) * gradient)

    return kernel


@njit(**SUMMING)
def row_sum(kind, source, start, columns):
    total = ZERO
    for j in range(columns):
        total += load(kind, source, start + j)
    return total


@njit(**SUMMING)
def row_squares(kind, source, start, columns, mean):
    total = ZERO
    for j in range(columns):
        away = load(kind, source, start + j) - mean
        total += away * away
    return total


@functools.cache
def forward(kind: int, which: int, dropout: bool, learns: bool, by_row: bool, centred: bool):
    """OUTPUT = dropout(activation(h * SCALE + SHIFT)); SLOPES, if somebody learns from them. h is x, or by row
    (x - mean) / deviation of its row; MOMENTS = that mean and 1 / deviation. Not centred: the mean counts as 0, as in
    RMSNorm."""

    @cfunc(SIGNATURE, cache=True, **EXACT)
    def kernel(block):
        columns, source, target, scale, shift = block[COLUMNS], block[INPUT], block[OUTPUT], block[SCALE], block[SHIFT]
        slopes, settings, moments = block[SLOPES], block[SETTINGS], block[MOMENTS]
        leak, factor, epsilon = load(FLOAT, settings, 0), load(FLOAT, settings, 1), load(FLOAT, settings, 2)
        before = block[FIRST_ROW] * columns
        key, second, least = np.uint32(block[KEY]), np.uint32(block[SECOND_KEY]), np.uint32(block[LEAST])
        while True:
            task, first, last = rows_of_next_task(block)
            if first == last:
                return
            for row in range(first, last):
                start = row * columns
                if by_row:
                    mean = row_sum(kind, source, start, columns) / F(columns) if centred else ZERO
                    inverse = ONE / np.sqrt(row_squares(kind, source, start, columns, mean) / F(columns) + epsilon)
                    store(FLOAT, moments, 2 * row, mean)
                    store(FLOAT, moments, 2 * row + 1, inverse)
                for j in range(columns):
                    h = load(kind, source, start + j)
                    if by_row:
                        h = (h - mean) * inverse
                    value, slope = activation(which, h * load(FLOAT, scale, j) + load(FLOAT, shift, j), leak)
                    if dropout:
                        keep = kept(before + start, j, key, second, least)
                        value, slope = value * factor if keep else ZERO, slope if keep else ZERO
                    store(kind, target, start + j, value)
                    if learns:
                        store(kind, slopes, start + j, slope)

    return kernel


@njit(**SUMMING)
def row_products(kind, source, slopes, gradients, start, columns, mean, inverse, scale):
    """Sums over a row of G * SCALE and G * SCALE * h."""
    plain, product = ZERO, ZERO
    for j in range(columns):
        gradient = load(kind, gradients, start + j) * load(kind, slopes, start + j) * load(FLOAT, scale, j)
        plain += gradient
        product += gradient * ((load(kind, source, start + j) - mean) * inverse)
    return plain, product


@functools.cache
def rows_backward(kind: int, centred: bool):
    """OUTPUT = derivative by x; SUMS of G and G * h, a column each, dropout's factor in neither G nor SUMS."""

    @cfunc(SIGNATURE, cache=True, **EXACT)
    def kernel(block):
        columns, source, target, scale, moments = (
            block[COLUMNS],
            block[INPUT],
            block[OUTPUT],
            block[SCALE],
            block[MOMENTS],
        )
        slopes, gradients, factor = block[SLOPES], block[GRADIENT], load(FLOAT, block[SETTINGS], 1)
        while True:
            task, first, last = rows_of_next_task(block)
            if first == last:
                return
            sums = block[SUMS] + task * columns * 8
            products = sums + columns * 4
            clear(sums, 2 * columns)
            for row in range(first, last):
                start = row * columns
                mean, inverse = load(FLOAT, moments, 2 * row), load(FLOAT, moments, 2 * row + 1)
                plain, product = row_products(kind, source, slopes, gradients, start, columns, mean, inverse, scale)
                plain = plain / F(columns) if centred else ZERO
                product = product / F(columns)
                for j in range(columns):
                    gradient = load(kind, gradients, start + j) * load(kind, slopes, start + j)
                    h = (load(kind, source, start + j) - mean) * inverse
                    store(FLOAT, sums, j, load(FLOAT, sums, j) + gradient)
                    store(FLOAT, products, j, load(FLOAT, products, j) + gradient * h)
                    gradient = gradient * load(FLOAT, scale, j) - plain - h * product
                    store(kind, target, start + j, factor * inverse * gradient)

    return kernel


@njit(cache=True, error_model="numpy")
def total(sums):
    """(T, 2, H) float32 -> (2, H) float64, added in task order."""
    totals = np.zeros(sums.shape[1:])
    for task in range(sums.shape[0]):
        totals += sums[task]
    return totals


@njit(cache=True, error_model="numpy")
def batch_moments(sums, mean, deviation, rows, epsilon):
    """From SUMS (T, 2, H) about `mean` (H,): the true mean in its place, sqrt(variance + epsilon) in `deviation`.

    Returns the biased variance, (H,) float64.
    """
    totals = total(sums)
    variance = np.empty(mean.shape[0])
    for j in range(mean.shape[0]):
        away = totals[0, j] / rows
        spread = totals[1, j] / rows - away * away
        variance[j] = 0.0 if spread < 0 else spread
        mean[j] += away
        deviation[j] = np.sqrt(variance[j] + epsilon)
    return variance


def run(kernel, block: np.ndarray, threads: int) -> None:
    """Call a kernel on a (BLOCK_SIZE,) int64 block, on up to `threads` of torch's threads; releases the GIL."""
    counter = np.zeros(1, np.int64)
    block[NEXT] = counter.ctypes.data
    threads = min(threads, int(block[TASKS]))
    parallel = openmp_parallel() if threads > 1 else None
    if parallel is None:
        kernel.ctypes(ctypes.cast(block.ctypes.data, ctypes.POINTER(ctypes.c_int64)))
    else:
        parallel(kernel.address, block.ctypes.data, threads, 0)


def torchs_library(loaded: set[str], package: str) -> str | None:
    """Which of the `loaded` libraries is torch's: the one in torch's `package` folder, or in `torch.libs` beside it,
    where wheels bring one; else the only one there is. None where that leaves several."""
    package = os.path.realpath(package)
    own = (f"{package}{os.sep}", f"{package}.libs{os.sep}")
    brought = [path for path in loaded if os.path.realpath(path).startswith(own)]
    found = brought or list(loaded)
    return found[0] if len(found) == 1 else None


@functools.cache
def openmp_parallel() -> Callable | None:
    """GNU OpenMP's `GOMP_parallel(function, data, threads, flags)` of the very library that torch computes with.

    A second pool of threads would wait for cores on which torch's threads spin. None where torch has another library:
    kernels then run on the calling thread.
    """
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            loaded = {line.split(maxsplit=5)[-1].strip() for line in maps if "libgomp" in line}
    except OSError:
        return None
    library = torchs_library(loaded, os.path.dirname(torch.__file__))
    if library is None:
        return None
    parallel = ctypes.CDLL(library).GOMP_parallel
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel
