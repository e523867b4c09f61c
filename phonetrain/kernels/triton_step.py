"""Triton kernels of a training step: cross entropy with correct frames, its derivative, the step's status, and masks
and padding of windows."""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK_R = 16


@triton.jit
def _row_of(logits, labels, rows, classes, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """This program's rows: their numbers, their logits (R, C), the logs of sums of exponentials and the labels (R,)."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    number = tl.arange(0, BLOCK_C)
    at = row.to(tl.int64)[:, None] * classes + number[None, :]
    seen = (row < rows)[:, None] & (number < classes)[None, :]
    values = tl.load(logits + at, mask=seen, other=float("-inf")).to(tl.float32)
    # Rows behind the last one have no logits; zeros there keep NaN out of what is masked anyway.
    values = tl.where((row < rows)[:, None] | (number >= classes)[None, :], values, 0.0)
    highest = tl.max(values, 1)
    total = tl.log(tl.sum(tl.exp(values - highest[:, None]), 1)) + highest
    label = tl.load(labels + row, mask=row < rows, other=0)
    return row, number, at, seen, values, total, label


@triton.jit
def frame_losses(logits, labels, partial, rows, classes, smoothing, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """partial[program] = sum of its rows' losses, and how many of them have the highest logit at their label;
    (programs, 2) float32. Label smoothing as torch's: a share of the mean loss over all classes."""
    row, number, at, seen, values, total, label = _row_of(logits, labels, rows, classes, BLOCK_R, BLOCK_C)
    mine = tl.sum(tl.where(number[None, :] == label[:, None], values, 0.0), 1)
    mean = tl.sum(tl.where((number < classes)[None, :], values, 0.0), 1) / classes
    loss = (1.0 - smoothing) * (total - mine)
    if smoothing > 0:
        loss += smoothing * (total - mean)
    loss = tl.where((label >= 0) & (label < classes), loss, float("nan"))
    right = (tl.argmax(values, 1) == label) & (row < rows)
    tl.store(partial + 2 * tl.program_id(0), tl.sum(tl.where(row < rows, loss, 0.0), 0))
    tl.store(partial + 2 * tl.program_id(0) + 1, tl.sum(right.to(tl.float32), 0))


@triton.jit
def loss_gradients(
    logits, labels, by_loss, output, rows, classes, smoothing, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """output = derivative by the logits, (rows, classes); by_loss: the derivative by the sum of losses, one number."""
    row, number, at, seen, values, total, label = _row_of(logits, labels, rows, classes, BLOCK_R, BLOCK_C)
    wanted = tl.where(number[None, :] == label[:, None], 1.0 - smoothing, 0.0) + smoothing / classes
    gradient = (tl.exp(values - total[:, None]) - wanted) * tl.load(by_loss).to(tl.float32)
    tl.store(output + at, gradient.to(output.dtype.element_ty), mask=seen)


@triton.jit(do_not_specialize=["frames"])
def update(
    loss,
    correct,
    norm,
    number,
    nonfinite,
    nonfinite_at,
    gradient_norm,
    loss_sum,
    correct_sum,
    frames_sum,
    frames,
    WATCH_NORM: tl.constexpr,
):
    """`StepStatus.update` for one batch; all but `frames` lie on the device."""
    lost, size = tl.load(loss).to(tl.float64), tl.load(norm)
    watched = lost + size.to(tl.float64) if WATCH_NORM else lost
    bad = (watched - watched) != 0.0
    before = tl.load(nonfinite_at)
    tl.store(nonfinite_at, tl.where(bad & (before < 0), tl.load(number), before))
    stopped = (tl.load(nonfinite) > 0.0) | bad
    tl.store(nonfinite, stopped.to(tl.float32))
    tl.store(gradient_norm, size)
    tl.store(loss_sum, tl.load(loss_sum) + tl.where(stopped, 0.0, lost))
    tl.store(correct_sum, tl.load(correct_sum) + tl.where(stopped, 0, tl.load(correct).to(tl.int64)))
    tl.store(frames_sum, tl.load(frames_sum) + tl.where(stopped, 0, frames))


@triton.jit
def average_step(num_updates, skip, rest, step):
    """`AveragedWeights`: how far the averages go towards the weights now, 0 where `skip` is 1; counts the update.

    rest: 1 - decay. 9 / (10 + k) is 1 - (1 + k) / (10 + k).
    """
    taken = 1.0 - tl.load(skip)
    updates = tl.load(num_updates)
    tl.store(step, tl.maximum(9.0 / (10.0 + updates.to(tl.float32)), rest) * taken)
    tl.store(num_updates, updates + taken.to(tl.int64))


COPIED = 1024  # values of a row that a program copies


# SplitMix64's numbers, as in step/augment.py: signed, since products wrap either way; and what is added for each draw.
GOLDEN, MIX_1, MIX_2 = (
    tl.constexpr(number - 2**64) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


APPLY, TIME_WIDTH, TIME_START, FREQ_WIDTH, FREQ_START = (
    tl.constexpr(((which + 1) * 0x9E3779B97F4A7C15 + 2**63) % 2**64 - 2**63) for which in range(5)
)


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
def masked_copy(
    windows,
    frames,
    key,
    output,
    pitch,
    time_mask,
    freq_mask,
    applied,
    PER_FRAME: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
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
        (freq >= freq_start) & (freq < freq_start + freq_width)
    )
    inside = place < WIDTH * DIM
    values = tl.load(windows + row * pitch + place, mask=inside, other=0.0)
    tl.store(output + row * WIDTH * DIM + place, tl.where(hidden & masks, 0.0, values), mask=inside)
