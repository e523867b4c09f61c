"""Triton kernels of the loss on a GPU: cross entropy and correct frames in one pass over the logits, the derivative in
another."""

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
    right = (tl.argmax(values, 1) == label) & (row < rows)
    tl.store(partial + 2 * tl.program_id(0), tl.sum(tl.where(row < rows, loss, 0.0), 0))
    tl.store(partial + 2 * tl.program_id(0) + 1, tl.sum(right.to(tl.float32), 0))


@triton.jit
def loss_gradients(logits, labels, by_loss, output, rows, classes, smoothing, BLOCK_R: tl.constexpr,
                   BLOCK_C: tl.constexpr):
    """output = derivative by the logits, (rows, classes); by_loss: the derivative by the sum of losses, one number."""
    row, number, at, seen, values, total, label = _row_of(logits, labels, rows, classes, BLOCK_R, BLOCK_C)
    wanted = tl.where(number[None, :] == label[:, None], 1.0 - smoothing, 0.0) + smoothing / classes
    gradient = (tl.exp(values - total[:, None]) - wanted) * tl.load(by_loss).to(tl.float32)
    tl.store(output + at, gradient.to(output.dtype.element_ty), mask=seen)
