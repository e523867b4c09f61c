"""The loss of a batch and what is counted of its frames: by torch, or on a GPU by kernels of our own."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import cuda_layer
from ..kernels.known import refuse_second_derivative
from .metrics import COUNTS

MOST_CLASSES = 1024  # that one program's registers hold


class ForwardResult(NamedTuple):
    """The outcome of one forward pass: loss () summed over its frames, counts by the names of metrics.COUNTS, () each,
    and the logits (B, C) of the middle frames, in float32 or, on a GPU, as the network gave them."""

    loss: Tensor
    counts: dict[str, Tensor]
    frames: int
    logits: Tensor


def frame_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> ForwardResult:
    """Cross entropy, as in `torch.nn.functional.cross_entropy(reduction="sum")`, float32.

    logits: (B, C) of any dtype; reckoned in float32. labels: (B,) int64, every one a class: another is an error or, on
    a GPU, a loss of NaN. smoothing: of labels. Where windows predict several frames, logits (B, P, C) and labels
    (B, P), the loss of a window is the mean of theirs, and counts are of the middle one.
    """
    if labels.ndim == 2:
        number, middle = labels.shape[1], labels.shape[1] // 2
        loss = frame_loss(logits.flatten(0, 1), labels.flatten(), smoothing).loss / number
        logits, labels = logits[:, middle], labels[:, middle]
        with torch.no_grad():
            counts = {name: count(logits, labels) for name, count in COUNTS.items()}
        return ForwardResult(loss, counts, labels.shape[0], logits)
    if cuda_layer.runs_here(logits) and logits.shape[1] <= MOST_CLASSES:
        loss, correct = FrameLoss.apply(logits.contiguous(), labels, smoothing)
        counts = {"accuracy": correct}
    else:
        logits = logits.float()
        loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
        counts = {}
    with torch.no_grad():
        counts |= {name: count(logits, labels) for name, count in COUNTS.items() if name not in counts}
    return ForwardResult(loss, counts, labels.shape[0], logits)


class FrameLoss(torch.autograd.Function):
    """(loss, correct), both () float32, of logits (B, C) and labels (B,)."""

    @staticmethod
    def forward(context: Any, logits: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        from ..kernels import triton_step as kernels

        (rows, classes), labels = logits.shape, labels.contiguous()
        grid = (-(-rows // kernels.BLOCK_R),)
        context.block = {"BLOCK_R": kernels.BLOCK_R, "BLOCK_C": max(16, 1 << (classes - 1).bit_length())}
        partial = torch.empty((*grid, 2), dtype=torch.float32, device=logits.device)
        with torch.cuda.device_of(logits):
            kernels.frame_losses[grid](logits, labels, partial, rows, classes, smoothing, **context.block)
        context.save_for_backward(logits, labels)
        context.grid, context.smoothing = grid, smoothing
        loss, correct = partial.sum(0).unbind()
        context.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(context: Any, by_loss: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        from ..kernels import triton_step as kernels

        refuse_second_derivative()
        logits, labels = context.saved_tensors
        output = torch.empty_like(logits)
        with torch.cuda.device_of(logits):
            kernels.loss_gradients[context.grid](
                logits, labels, by_loss.contiguous(), output, *logits.shape, context.smoothing, **context.block
            )
        return output, None, None
