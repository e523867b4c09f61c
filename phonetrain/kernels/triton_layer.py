"""Triton kernels of a hidden layer on a GPU: batch norm, activation and dropout in two passes over memory each way.

A program owns `BLOCK_C` columns and one of at most `MOST_CHUNKS` chunks of rows, and asks for the next rows before it
reckons with these. Sums over rows are left chunk by chunk and added, always in the same order, by whoever needs them:
no atomics, so the same numbers every time. Of a small batch a program owns all rows of a few columns (`whole_*`), and
one pass each way is enough. Masks are hashes of a value's place, made again in the backward pass rather than kept.
Everything is reckoned in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_math import activated, kept, slope

MOST_CHUNKS = 32
BLOCK_R, BLOCK_C, WARPS = 16, 32, 4
WHOLE_ROWS, WHOLE_C, WHOLE_WARPS = 1024, 16, 16  # up to so many rows in one program, so many columns of them
NO_NORM, BATCH, RUNNING = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _rows(values, row, stop, column, columns, inside):
    """values[row, column], (R, C) float32 of a matrix (., columns); 0 from row `stop` on."""
    seen = (row < stop)[:, None] & inside[None, :]
    return tl.load(values + row.to(tl.int64)[:, None] * columns + column[None, :], mask=seen, other=0.0).to(tl.float32)


@triton.jit
def _put(values, to, row, stop, column, columns, inside):
    seen = (row < stop)[:, None] & inside[None, :]
    at = to + row.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(at, values.to(to.dtype.element_ty), mask=seen)


@triton.jit
def _total(partial, columns, chunks, column, inside, CHUNKS: tl.constexpr):
    """The two sums (C,) of all chunks of `partial` (chunks, 2, columns)."""
    chunk = tl.arange(0, CHUNKS)
    seen = (chunk < chunks)[:, None] & inside[None, :]
    at = partial + chunk[:, None] * 2 * columns + column[None, :]
    first = tl.load(at, mask=seen, other=0.0)
    second = tl.load(at + columns, mask=seen, other=0.0)
    return tl.sum(first, 0), tl.sum(second, 0)


@triton.jit
def _record(
    mean, variance, inverse, running_mean, running_var, tracked, moments, momentum, unbiased, column, columns, inside
):
    """Leave the moments for the backward pass and move the running ones, as torch's batch norm does."""
    tl.store(moments + column, mean, mask=inside)
    tl.store(moments + columns + column, inverse, mask=inside)
    average = tl.load(running_mean + column, mask=inside, other=0.0)
    spread = tl.load(running_var + column, mask=inside, other=0.0)
    tl.store(running_mean + column, average + momentum * (mean - average), mask=inside)
    tl.store(running_var + column, spread + momentum * (variance * unbiased - spread), mask=inside)
    if tl.program_id(0) == 0:
        tl.store(tracked, tl.load(tracked) + 1)


@triton.jit
def _normed_by(moments, weight, bias, column, columns, inside):
    """What a column was normalised by, (C,) each: mean and 1 / deviation of its batch, scale and shift."""
    mean = tl.load(moments + column, mask=inside, other=0.0)
    inverse = tl.load(moments + columns + column, mask=inside, other=0.0)
    scale = tl.load(weight + column, mask=inside, other=0.0)
    shift = tl.load(bias + column, mask=inside, other=0.0)
    return mean, inverse, scale, shift


@triton.jit
def column_sums(
    hidden, partial, rows, columns, chunk_rows, ALIGNED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Sums of hidden (rows, columns) and of its squares over each chunk of rows, about its first row: squares about a
    row of their own lose few digits, however far the mean is from 0. partial: (chunks, 2, columns) float32."""
    columns = columns // ALIGNED * ALIGNED  # tells the compiler that rows begin on whole vectors
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = column < columns
    first = tl.program_id(1) * chunk_rows
    stop = tl.minimum(first + chunk_rows, rows)
    values = _rows(hidden, first + tl.arange(0, BLOCK_R), stop, column, columns, inside)
    centre = tl.load(hidden + column, mask=inside, other=0.0).to(tl.float32)
    sums = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for start in range(first, stop, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        following = _rows(hidden, row + BLOCK_R, stop, column, columns, inside)
        away = tl.where((row < stop)[:, None], values - centre[None, :], 0.0)
        sums += away
        squares += away * away
        values = following
    at = partial + tl.program_id(1) * 2 * columns + column
    tl.store(at, tl.sum(sums, 0), mask=inside)
    tl.store(at + columns, tl.sum(squares, 0), mask=inside)


@triton.jit
def columns_forward(
    hidden,
    output,
    partial,
    weight,
    bias,
    running_mean,
    running_var,
    tracked,
    moments,
    key,
    rows,
    columns,
    chunk_rows,
    chunks,
    epsilon,
    momentum,
    unbiased,
    leak,
    factor,
    least,
    NORM: tl.constexpr,
    WHICH: tl.constexpr,
    DROPS: tl.constexpr,
    CHUNKS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """output = dropout(activation(norm(hidden))), (rows, columns). In BATCH the moments of this batch, (2, columns)
    mean and 1 / deviation, are left for the backward pass, and the running ones move."""
    columns = columns // ALIGNED * ALIGNED
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = column < columns
    first = tl.program_id(1) * chunk_rows
    stop = tl.minimum(first + chunk_rows, rows)
    values = _rows(hidden, first + tl.arange(0, BLOCK_R), stop, column, columns, inside)
    if DROPS:
        word, before = tl.load(key), tl.load(key + 1)
    if NORM == BATCH:
        by_one, by_square = _total(partial, columns, chunks, column, inside, CHUNKS)
        away = by_one / rows
        mean = tl.load(hidden + column, mask=inside, other=0.0).to(tl.float32) + away
        variance = by_square / rows - away * away
        variance = tl.where(variance < 0.0, 0.0, variance)  # a maximum would hide NaN
        inverse = 1.0 / tl.sqrt(variance + epsilon)
        if tl.program_id(1) == 0:
            _record(
                mean,
                variance,
                inverse,
                running_mean,
                running_var,
                tracked,
                moments,
                momentum,
                unbiased,
                column,
                columns,
                inside,
            )
    elif NORM == RUNNING:
        mean = tl.load(running_mean + column, mask=inside, other=0.0)
        inverse = 1.0 / tl.sqrt(tl.load(running_var + column, mask=inside, other=1.0) + epsilon)
    if NORM != NO_NORM:
        scale = inverse * tl.load(weight + column, mask=inside, other=0.0)
        shift = tl.load(bias + column, mask=inside, other=0.0)
    for start in range(first, stop, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        following = _rows(hidden, row + BLOCK_R, stop, column, columns, inside)
        z = values
        if NORM != NO_NORM:
            z = (z - mean[None, :]) * scale[None, :] + shift[None, :]
        result = activated(z, leak, WHICH)
        if DROPS:
            result = tl.where(kept(row, before, column, columns, word, least), result * factor, 0.0)
        _put(result, output, row, stop, column, columns, inside)
        values = following


@triton.jit
def column_gradients(
    hidden,
    gradient,
    moments,
    weight,
    bias,
    partial,
    key,
    rows,
    columns,
    chunk_rows,
    leak,
    factor,
    least,
    WHICH: tl.constexpr,
    DROPS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums over each chunk of the derivative by the norm's output, and of that times the normalised value: what the
    bias and the weight of a batch norm get, and what a derivative by its input needs. partial: (chunks, 2, columns)."""
    columns = columns // ALIGNED * ALIGNED
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = column < columns
    first = tl.program_id(1) * chunk_rows
    stop = tl.minimum(first + chunk_rows, rows)
    values = _rows(hidden, first + tl.arange(0, BLOCK_R), stop, column, columns, inside)
    by_output = _rows(gradient, first + tl.arange(0, BLOCK_R), stop, column, columns, inside)
    if DROPS:
        word, before = tl.load(key), tl.load(key + 1)
    mean, inverse, scale, shift = _normed_by(moments, weight, bias, column, columns, inside)
    sums = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    products = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for start in range(first, stop, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        following = _rows(hidden, row + BLOCK_R, stop, column, columns, inside)
        following_by = _rows(gradient, row + BLOCK_R, stop, column, columns, inside)
        normal = (values - mean[None, :]) * inverse[None, :]
        by_z = by_output * slope(normal * scale[None, :] + shift[None, :], leak, WHICH)
        if DROPS:
            by_z = tl.where(kept(row, before, column, columns, word, least), by_z * factor, 0.0)
        sums += tl.where((row < stop)[:, None], by_z, 0.0)
        products += tl.where((row < stop)[:, None], by_z * normal, 0.0)
        values, by_output = following, following_by
    at = partial + tl.program_id(1) * 2 * columns + column
    tl.store(at, tl.sum(sums, 0), mask=inside)
    tl.store(at + columns, tl.sum(products, 0), mask=inside)


@triton.jit
def columns_backward(
    hidden,
    gradient,
    output,
    moments,
    weight,
    bias,
    partial,
    by_weight,
    by_bias,
    key,
    rows,
    columns,
    chunk_rows,
    chunks,
    leak,
    factor,
    least,
    NORM: tl.constexpr,
    WHICH: tl.constexpr,
    DROPS: tl.constexpr,
    CHUNKS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """output = derivative by hidden, (rows, columns), for NO_NORM and BATCH (Ioffe and Szegedy 2015, section 3); of
    BATCH also by_weight and by_bias (columns,)."""
    columns = columns // ALIGNED * ALIGNED
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = column < columns
    first = tl.program_id(1) * chunk_rows
    stop = tl.minimum(first + chunk_rows, rows)
    values = _rows(hidden, first + tl.arange(0, BLOCK_R), stop, column, columns, inside)
    by_output = _rows(gradient, first + tl.arange(0, BLOCK_R), stop, column, columns, inside)
    if DROPS:
        word, before = tl.load(key), tl.load(key + 1)
    if NORM == BATCH:
        plain, product = _total(partial, columns, chunks, column, inside, CHUNKS)
        if tl.program_id(1) == 0:
            tl.store(by_bias + column, plain, mask=inside)
            tl.store(by_weight + column, product, mask=inside)
        plain, product = plain / rows, product / rows
        mean, inverse, scale, shift = _normed_by(moments, weight, bias, column, columns, inside)
    for start in range(first, stop, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        following = _rows(hidden, row + BLOCK_R, stop, column, columns, inside)
        following_by = _rows(gradient, row + BLOCK_R, stop, column, columns, inside)
        z = values
        if NORM == BATCH:
            normal = (z - mean[None, :]) * inverse[None, :]
            z = normal * scale[None, :] + shift[None, :]
        by_z = by_output * slope(z, leak, WHICH)
        if DROPS:
            by_z = tl.where(kept(row, before, column, columns, word, least), by_z * factor, 0.0)
        if NORM == BATCH:
            by_z = (inverse * scale)[None, :] * (by_z - plain[None, :] - normal * product[None, :])
        _put(by_z, output, row, stop, column, columns, inside)
        values, by_output = following, following_by


@triton.jit
def whole_forward(
    hidden,
    output,
    weight,
    bias,
    running_mean,
    running_var,
    tracked,
    moments,
    key,
    rows,
    columns,
    epsilon,
    momentum,
    unbiased,
    leak,
    factor,
    least,
    WHICH: tl.constexpr,
    DROPS: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """`column_sums` and `columns_forward` in BATCH, for a batch of up to ROWS rows."""
    columns = columns // ALIGNED * ALIGNED
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside, row = column < columns, tl.arange(0, ROWS)
    values = _rows(hidden, row, rows, column, columns, inside)
    weights = tl.load(weight + column, mask=inside, other=0.0)
    shift = tl.load(bias + column, mask=inside, other=0.0)
    if DROPS:
        word, before = tl.load(key), tl.load(key + 1)
    centre = tl.load(hidden + column, mask=inside, other=0.0).to(tl.float32)
    values = tl.where((row < rows)[:, None], values - centre[None, :], 0.0)
    mean = tl.sum(values, 0) / rows
    away = tl.where((row < rows)[:, None], values - mean[None, :], 0.0)
    variance = tl.sum(away * away, 0) / rows
    inverse = 1.0 / tl.sqrt(variance + epsilon)
    _record(
        centre + mean,
        variance,
        inverse,
        running_mean,
        running_var,
        tracked,
        moments,
        momentum,
        unbiased,
        column,
        columns,
        inside,
    )
    result = activated(away * (inverse * weights)[None, :] + shift[None, :], leak, WHICH)
    if DROPS:
        result = tl.where(kept(row, before, column, columns, word, least), result * factor, 0.0)
    _put(result, output, row, rows, column, columns, inside)


@triton.jit
def whole_backward(
    hidden,
    gradient,
    output,
    moments,
    weight,
    bias,
    by_weight,
    by_bias,
    key,
    rows,
    columns,
    leak,
    factor,
    least,
    WHICH: tl.constexpr,
    DROPS: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """`column_gradients` and `columns_backward` in BATCH, for a batch of up to ROWS rows."""
    columns = columns // ALIGNED * ALIGNED
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside, row = column < columns, tl.arange(0, ROWS)
    values = _rows(hidden, row, rows, column, columns, inside)
    by_z = _rows(gradient, row, rows, column, columns, inside)
    mean, inverse, scale, shift = _normed_by(moments, weight, bias, column, columns, inside)
    if DROPS:
        word, before = tl.load(key), tl.load(key + 1)
    normal = tl.where((row < rows)[:, None], (values - mean[None, :]) * inverse[None, :], 0.0)
    by_z *= slope(normal * scale[None, :] + shift[None, :], leak, WHICH)
    if DROPS:
        by_z = tl.where(kept(row, before, column, columns, word, least), by_z * factor, 0.0)
    by_z = tl.where((row < rows)[:, None], by_z, 0.0)
    plain, product = tl.sum(by_z, 0), tl.sum(by_z * normal, 0)
    tl.store(by_bias + column, plain, mask=inside)
    tl.store(by_weight + column, product, mask=inside)
    plain, product = plain / rows, product / rows
    by_hidden = (inverse * scale)[None, :] * (by_z - plain[None, :] - normal * product[None, :])
    _put(by_hidden, output, row, rows, column, columns, inside)
