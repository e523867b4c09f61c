"""A keyed bijection of 0..N-1, for any N and without a table: a modular Feistel network on a ragged rectangle.

The rectangle has `rows x columns >= N` cells and its last row is cut short at N. A number is a cell (high, low) of it.
One half-round rotates every column by an amount that depends on the column alone, the next one every row by an amount
that depends on the row alone; columns and rows that the cut shortens rotate over fewer cells. So every half-round is a
bijection of exactly N cells, and no number ever leaves 0..N-1 and has to be mapped again (no cycle walking). So there
is no loop of unknown length, which neither a CPU's vector units nor a CUDA graph could run.
Six half-rounds; two fail the statistics in tests/phonedata/loaders/test_order.py.
(Feistel networks on a x b: Black & Rogaway 2002, "Ciphers with arbitrary finite domains".)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit, uint32, uint64

if TYPE_CHECKING:
    import torch

HALF_ROUNDS = 6
KEYS = 2 * HALF_ROUNDS
# Both below 2^31, so that a 32-bit word times one of them fits torch's int64 without overflow.
MULTIPLIER_1 = 0x7FEB352D
MULTIPLIER_2 = 0x45D9F3B5
# What a seed is spent on: each use draws from words of its own (here the letters' bytes), so that equal numbers, an
# epoch here and a step there, never give two of them the same draws.
ORDER = int.from_bytes(b"ordr")
SLAB_ORDER = int.from_bytes(b"slab")
MAX_NUMBERS = 2**62
"""Cell coordinates stay below 2^31 up to here."""


class Rectangle(NamedTuple):
    """The cells of 0..N-1: cell (high, low) is number `high * columns + low`; the last row has `last` cells."""

    rows: int
    columns: int
    last: int


def rectangle(size: int) -> Rectangle:
    """The nearly square rectangle of `size` >= 1 cells."""
    columns = math.isqrt(size - 1) + 1
    rows = -(-size // columns)
    return Rectangle(rows, columns, size - (rows - 1) * columns)


def epoch_keys(seed: int, epoch: int) -> np.ndarray:
    """Round keys (KEYS,) uint32 of the global order of one epoch."""
    return np.random.SeedSequence(seed, spawn_key=(ORDER, epoch)).generate_state(KEYS, np.uint32)


@njit
def _turn(cell, key_1, key_2, size):
    """By how many of `size` cells to turn: a keyed hash of `cell`, scaled by multiply and shift (no division)."""
    word = uint32(uint32(cell ^ key_1) * uint32(MULTIPLIER_1))
    word = uint32(uint32(uint32(word ^ (word >> uint32(15))) + key_2) * uint32(MULTIPLIER_2))
    return uint32((uint64(word) * uint64(size)) >> uint64(32))


@njit
def _along_column(high, low, key_1, key_2, rows, last):
    size = rows if low < last else uint32(rows - uint32(1))
    high = uint32(high + _turn(low, key_1, key_2, size))
    return uint32(high - size) if high >= size else high


@njit
def _along_row(high, low, key_1, key_2, rows, columns, last):
    size = columns if high < uint32(rows - uint32(1)) else last
    low = uint32(low + _turn(high, key_1, key_2, size))
    return uint32(low - size) if low >= size else low


@njit
def _shuffle_cell(high, low, rows, columns, last, k0, k1, k2, k3, k4, k5, k6, k7, k8, k9, k10, k11):
    # Written out, with the keys in registers: this is what lets LLVM run 8 or 16 cells at once.
    high = _along_column(high, low, k0, k1, rows, last)
    low = _along_row(high, low, k2, k3, rows, columns, last)
    high = _along_column(high, low, k4, k5, rows, last)
    low = _along_row(high, low, k6, k7, rows, columns, last)
    high = _along_column(high, low, k8, k9, rows, last)
    low = _along_row(high, low, k10, k11, rows, columns, last)
    return uint64(high) * uint64(columns) + uint64(low)


@njit
def _shuffle_one(number, shape, k):
    high = number // shape[1]
    low = number - high * shape[1]
    return np.int64(
        _shuffle_cell(
            uint32(high), uint32(low), shape[0], shape[1], shape[2],
            k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7], k[8], k[9], k[10], k[11],
        )
    )  # fmt: skip


@njit
def _unshuffle_one(number, rows, columns, last, keys):
    high = uint32(number // columns)
    low = uint32(number % columns)
    for half in range(HALF_ROUNDS - 1, -1, -1):
        if half % 2:
            size = columns if high < uint32(rows - uint32(1)) else last
            turn = _turn(high, keys[2 * half], keys[2 * half + 1], size)
            low = uint32(low - turn) if low >= turn else uint32(low + uint32(size - turn))
        else:
            size = rows if low < last else uint32(rows - uint32(1))
            turn = _turn(low, keys[2 * half], keys[2 * half + 1], size)
            high = uint32(high - turn) if high >= turn else uint32(high + uint32(size - turn))
    return np.int64(uint64(high) * uint64(columns) + uint64(low))


@njit("void(int64, int64[::1], uint32, uint32, uint32, uint32[::1])", nogil=True, cache=True, error_model="numpy")
def shuffle_range(start, out, rows, columns, last, keys):
    """`out[i]` = the image of `start + i`, one rectangle row at a time so that no cell needs a division."""
    k0, k1, k2, k3, k4, k5 = keys[0], keys[1], keys[2], keys[3], keys[4], keys[5]
    k6, k7, k8, k9, k10, k11 = keys[6], keys[7], keys[8], keys[9], keys[10], keys[11]
    done = 0
    total = out.shape[0]
    while done < total:
        high = (start + done) // columns
        low = (start + done) - high * columns
        count = min(columns - low, total - done)
        part = out[done : done + count]
        for i in range(count):
            part[i] = _shuffle_cell(
                uint32(high), uint32(low + i), rows, columns, last, k0, k1, k2, k3, k4, k5, k6, k7, k8, k9, k10, k11
            )
        done += count


@njit("void(int64[::1], int64[::1], uint32, uint32, uint32, uint32[::1])", nogil=True, cache=True, error_model="numpy")
def unshuffle(numbers, out, rows, columns, last, keys):
    """`out[i]` = what `shuffle_range` takes to `numbers[i]`."""
    for i in range(numbers.shape[0]):
        out[i] = _unshuffle_one(numbers[i], rows, columns, last, keys)


@njit(
    "void(int64, int64[::1], int64[::1], int64[::1], int64[:, ::1], int64[:, ::1], int64[::1],"
    " uint32[:, ::1], uint32[:, ::1], uint32[:, ::1], uint32[:, ::1])",
    nogil=True,
    cache=True,
    error_model="numpy",
)
def shuffle_slabs(
    start, out, loads, step_start, step_cell, slab_cell, slab_start, step_shape, slab_shape, step_keys, slab_keys
):
    """The slab order of `phonedata.order`: frames at positions `start + i`, and the load that brings each.

    For n steps of P cells: `step_start` (n + 1,), `step_cell` (n, P + 1) where each cell starts in its step,
    `slab_cell` (n, P + 1) where it starts in its slab, `slab_start` (n,) the slab's first frame; `*_shape` (n, 3)
    rectangles and `*_keys` (n, KEYS) of the two shuffles.
    """
    num_slabs, num_cells = slab_cell.shape[0], slab_cell.shape[1] - 1
    step = np.searchsorted(step_start, start, side="right") - 1
    for i in range(out.shape[0]):
        while start + i >= step_start[step + 1]:
            step += 1
        place = _shuffle_one(start + i - step_start[step], step_shape[step], step_keys[step])
        cell = place * num_cells // (step_start[step + 1] - step_start[step])
        while place < step_cell[step, cell]:
            cell -= 1
        while place >= step_cell[step, cell + 1]:
            cell += 1
        slab = (step - cell) % num_slabs
        inside = slab_cell[slab, cell] + place - step_cell[step, cell]
        out[i] = slab_start[slab] + _shuffle_one(inside, slab_shape[slab], slab_keys[slab])
        loads[i] = step - cell


@njit(
    "void(int64[::1], int64[::1], int64[::1], int64[::1], int64[:, ::1], int64[:, ::1], int64[::1],"
    " uint32[:, ::1], uint32[:, ::1], uint32[:, ::1], uint32[:, ::1])",
    nogil=True,
    cache=True,
    error_model="numpy",
)
def unshuffle_slabs(
    frames, out, slabs, step_start, step_cell, slab_cell, slab_start, step_shape, slab_shape, step_keys, slab_keys
):
    """`out[i]` = the position of `frames[i]`, which lies in slab `slabs[i]`: `shuffle_slabs` backwards."""
    num_slabs, num_cells = slab_cell.shape[0], slab_cell.shape[1] - 1
    for i in range(frames.shape[0]):
        slab = slabs[i]
        shape = slab_shape[slab]
        inside = _unshuffle_one(frames[i] - slab_start[slab], shape[0], shape[1], shape[2], slab_keys[slab])
        cell = np.searchsorted(slab_cell[slab, : num_cells + 1], inside, side="right") - 1
        step = (slab + cell) % num_slabs
        place = step_cell[step, cell] + inside - slab_cell[slab, cell]
        shape = step_shape[step]
        out[i] = step_start[step] + _unshuffle_one(place, shape[0], shape[1], shape[2], step_keys[step])


def device_frames(positions: torch.Tensor, keys: torch.Tensor, cells: Rectangle) -> torch.Tensor:
    """The frames (B,) int64 at `positions` (B,) int64, on their device; `keys` (KEYS,) int64 there too.

    The same numbers as `EpochOrder.frames`. A fixed sequence of elementwise operations: no loop, no host, so a CUDA
    graph holds it and a compiler fuses it into one kernel.
    """
    import torch

    high = torch.div(positions, cells.columns, rounding_mode="floor")
    low = positions - high * cells.columns
    for half in range(HALF_ROUNDS):
        cell = high if half % 2 else low
        word = ((cell ^ keys[2 * half]) * MULTIPLIER_1) & 0xFFFFFFFF
        word = (((word ^ (word >> 15)) + keys[2 * half + 1] & 0xFFFFFFFF) * MULTIPLIER_2) & 0xFFFFFFFF
        if half % 2:
            size = cells.last + (cells.columns - cells.last) * (high < cells.rows - 1)
            low = (low + (word * size >> 32)) % size
        else:
            size = cells.rows - 1 + (low < cells.last).long()
            high = (high + (word * size >> 32)) % size
    return high * cells.columns + low
