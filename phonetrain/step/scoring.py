"""One pass over a labelled partition without learning: the scores that decide which weights are best."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from ..device import DeviceSpec
from ..distributed import current
from ..model.classifier import windows_for
from .loss import frame_loss
from .metrics import FrameMetrics


class Batches(Protocol):
    """What scoring needs of a phonedata loader."""

    def epoch(self, epoch: int, start_batch: int = 0): ...


@torch.no_grad()
def score(
    model: nn.Module, loader: Batches, device_spec: DeviceSpec, num_classes: int, *, confusion: bool = False
) -> FrameMetrics:
    """Sums over every frame of `loader` once; cross entropy is plain (no label smoothing), dropout off.

    The model's training flag is put back afterwards.
    """
    metrics = FrameMetrics(num_classes, device_spec.device, confusion)
    was_training = model.training
    model.eval()
    try:
        for batch in loader.epoch(0):
            with device_spec.autocast():
                logits = model(windows_for(model, batch.windows, device_spec.window_dtype))
            part = frame_loss(logits, batch.labels)
            metrics.add(part.loss, part.counts, part.frames)
            if confusion:
                metrics.add_confusion(part.logits, batch.labels)
    finally:
        model.train(was_training)
    current().sum_(*metrics.state_dict().values())
    return metrics
