"""WHICH frame comes when: orders of an epoch, pure functions of (seed, epoch, position) that need no memory.

`EpochOrder` shuffles all frames. It is a keyed bijection of 0..N-1: a modular Feistel network on a rectangle of
`rows x columns >= N` cells whose last row is cut short at N. Frame and position are cells (high, low) of it. One
half-round moves a cell inside its column by an amount that only its column decides, the next inside its row by an
amount that only its row decides; columns and rows that the cut shortens simply turn in a shorter circle. So every
half-round is a bijection of exactly N cells and there is no cycle walking, which means no loop of unknown length on a
CPU's vector units or in a CUDA graph.
Six half-rounds; two fail the statistics in tests/test_order.py.
(Feistel networks on a x b: Black & Rogaway 2002, "Ciphers with arbitrary finite domains".)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit, uint32, uint64

from phonedata.errors import SpecError

if TYPE_CHECKING:
    import torch

HALF_ROUNDS = 6
# Both below 2^31, so that a 32-bit word times one of them fits torch's int64 without overflow.
MULTIPLIER_1 = 0x7FEB352D
MULTIPLIER_2 = 0x45D9F3B5
MAX_FRAMES = 2**62
"""Cell coordinates stay below 2^31; any N up to here has an order."""


class Rectangle(NamedTuple):
    """The cells of N positions: cell (high, low) is position `high * columns + low`; the last row has `last` cells."""

    rows: int
    columns: int
    last: int


def rectangle(num_frames: int) -> Rectangle:
    """The nearly square rectangle of `num_frames` >= 1 cells."""
    columns = math.isqrt(num_frames - 1) + 1
    rows = -(-num_frames // columns)
    return Rectangle(rows, columns, num_frames - (rows - 1) * columns)


def epoch_keys(seed: int, epoch: int, purpose: int = 0) -> np.ndarray:
    """Round keys (2 * HALF_ROUNDS,) uint32 of one epoch; `purpose` separates several orders of the same epoch."""
    return np.random.SeedSequence([seed, epoch, purpose]).generate_state(2 * HALF_ROUNDS, np.uint32)


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


@njit("void(int64, int64[::1], uint32, uint32, uint32, uint32[::1])", nogil=True, cache=True, error_model="numpy")
def shuffle_range(start, out, rows, columns, last, keys):
    """`out[i]` = the frame at position `start + i`, one rectangle row at a time so that no cell needs a division."""
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
def unshuffle(frames, out, rows, columns, last, keys):
    """`out[i]` = the position of `frames[i]`: the half-rounds backwards."""
    for i in range(frames.shape[0]):
        high = uint32(frames[i] // columns)
        low = uint32(frames[i] % columns)
        for half in range(HALF_ROUNDS - 1, -1, -1):
            if half % 2:
                size = columns if high < uint32(rows - uint32(1)) else last
                turn = _turn(high, keys[2 * half], keys[2 * half + 1], size)
                low = uint32(low - turn) if low >= turn else uint32(low + uint32(size - turn))
            else:
                size = rows if low < last else uint32(rows - uint32(1))
                turn = _turn(low, keys[2 * half], keys[2 * half + 1], size)
                high = uint32(high - turn) if high >= turn else uint32(high + uint32(size - turn))
        out[i] = uint64(high) * uint64(columns) + uint64(low)


def device_frames(positions: torch.Tensor, keys: torch.Tensor, cells: Rectangle) -> torch.Tensor:
    """The frames (B,) int64 at `positions` (B,) int64, on their device; `keys` (2 * HALF_ROUNDS,) int64 there too.

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


class SequentialOrder:
    """Frames as they lie: position = frame. For scoring and predicting."""

    name = "sequential"

    def __init__(self, num_frames: int):
        self.num_frames = check_num_frames(num_frames)

    def into(self, start: int, out: np.ndarray) -> None:
        """Write the frames at positions `start`, `start + 1`, ... into `out` int64."""
        out[:] = np.arange(start, start + len(out))

    def frames(self, start: int, stop: int) -> np.ndarray:
        """The frames (stop - start,) int64 at positions `start..stop-1`."""
        return fill(self, start, stop)

    def positions(self, frames: np.ndarray) -> np.ndarray:
        """Where in the epoch each of `frames` comes: the inverse of `frames`."""
        return np.array(check_inside(frames, self.num_frames, "frame"))


class EpochOrder:
    """All `num_frames` frames in random order: `frames(0, N)` is a permutation of 0..N-1, decided by (seed, epoch)."""

    name = "global"

    def __init__(self, num_frames: int, seed: int, epoch: int):
        self.num_frames = check_num_frames(num_frames)
        self.keys = epoch_keys(seed, epoch)
        self.cells = rectangle(num_frames)

    def into(self, start: int, out: np.ndarray) -> None:
        """Write the frames at positions `start`, `start + 1`, ... into `out` int64; releases the GIL."""
        shuffle_range(start, out, *self.cells, self.keys)

    def frames(self, start: int, stop: int) -> np.ndarray:
        """The frames (stop - start,) int64 at positions `start..stop-1`."""
        return fill(self, start, stop)

    def positions(self, frames: np.ndarray) -> np.ndarray:
        """Where in the epoch each of `frames` comes: the inverse of `frames`."""
        frames = check_inside(frames, self.num_frames, "frame")
        out = np.empty(len(frames), np.int64)
        unshuffle(frames, out, *self.cells, self.keys)
        return out


def fill(order, start: int, stop: int) -> np.ndarray:
    """The frames (stop - start,) int64 at positions `start..stop-1` of any order."""
    if not 0 <= start <= stop <= order.num_frames:
        raise SpecError(f"positions {start}..{stop} asked for; wanted 0 <= start <= stop <= {order.num_frames} frames")
    out = np.empty(stop - start, np.int64)
    order.into(start, out)
    return out


def check_num_frames(num_frames: int) -> int:
    """`num_frames`, or SpecError: an order needs 1..MAX_FRAMES frames."""
    if not 1 <= num_frames <= MAX_FRAMES:
        raise SpecError(f"an order of {num_frames} frames; wanted 1..{MAX_FRAMES}; is the selection empty?")
    return int(num_frames)


def check_inside(numbers: np.ndarray, limit: int, what: str) -> np.ndarray:
    """`numbers` as int64 (n,), or SpecError that names the first one outside 0..limit-1."""
    numbers = np.ascontiguousarray(numbers, np.int64)
    outside = (numbers < 0) | (numbers >= limit)
    if outside.any():
        raise SpecError(f"{what} {numbers[outside][0]} asked for; wanted 0..{limit - 1}")
    return numbers
