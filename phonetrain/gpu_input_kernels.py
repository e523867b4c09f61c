"""Triton kernels of windows on a GPU: masks, and padding with conversion, in one pass each."""

from __future__ import annotations

import triton
import triton.language as tl

COPIED = 1024  # values of a row that a program copies
# SplitMix64's numbers, as in augment.py: signed, since products wrap either way; and what is added for each draw.
GOLDEN, MIX_1, MIX_2 = (tl.constexpr(number - 2**64) for number in (
    0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
APPLY, TIME_WIDTH, TIME_START, FREQ_WIDTH, FREQ_START = (
    tl.constexpr(((which + 1) * 0x9E3779B97F4A7C15 + 2**63) % 2**64 - 2**63) for which in range(5))


@triton.jit
def padded_copy(values, output, columns, pitch, width, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """output (rows, width) = values (rows, columns) in output's dtype, and zeros behind; rows of values lie `pitch`
    values apart."""
    width = width // ALIGNED * ALIGNED
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    some = tl.load(values + row * pitch + column, mask=column < columns, other=0.0)
    tl.store(output + row * width + column, some.to(output.dtype.element_ty), mask=column < width)


@triton.jit
def _mix(bits):
    """`augment.mix`."""
    bits = (bits ^ ((bits >> 30) & 0x3FFFFFFFF)) * MIX_1
    bits = (bits ^ ((bits >> 27) & 0x1FFFFFFFFF)) * MIX_2
    return bits ^ ((bits >> 31) & 0x1FFFFFFFF)


@triton.jit
def _below(draw, bound):
    """`augment.below`."""
    return (((draw >> 33) & 0x7FFFFFFF) * bound) >> 31


@triton.jit
def masked_copy(windows, frames, key, output, pitch, time_mask, freq_mask, applied, PER_FRAME: tl.constexpr,
                WIDTH: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """output (B, WIDTH * DIM) = windows, whose rows lie `pitch` values apart, with the masks of `Augment.masked`.

    PER_FRAME: `key` is the epoch's and meets each frame; else it is the batch's own hash. applied: of 2^53 draws, how
    many are masked.
    """
    row = tl.program_id(0).to(tl.int64)
    hashed = tl.load(key)
    if PER_FRAME:
        hashed = _mix(tl.load(frames + row) * GOLDEN + hashed)
    masks = ((_mix(hashed + APPLY) >> 11) & 0x1FFFFFFFFFFFFF) < applied
    time_width = _below(_mix(hashed + TIME_WIDTH), time_mask + 1)
    time_start = _below(_mix(hashed + TIME_START), WIDTH - time_width + 1)
    freq_width = _below(_mix(hashed + FREQ_WIDTH), freq_mask + 1)
    freq_start = _below(_mix(hashed + FREQ_START), DIM - freq_width + 1)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    time, freq = place // DIM, place % DIM
    hidden = ((time >= time_start) & (time < time_start + time_width)) | (
        (freq >= freq_start) & (freq < freq_start + freq_width))
    inside = place < WIDTH * DIM
    values = tl.load(windows + row * pitch + place, mask=inside, other=0.0)
    tl.store(output + row * WIDTH * DIM + place, tl.where(hidden & masks, 0.0, values), mask=inside)
