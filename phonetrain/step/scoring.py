"""One pass over a labelled partition without learning: the scores that decide which weights are best."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from ..device import DeviceSpec
from ..distributed import current
from ..model.classifier import windows_for
from .loss import frame_loss
from .metrics import FrameMetrics
from .neighbours import Neighbours


class Batches(Protocol):
    """What scoring needs of a phonedata loader."""

    def epoch(self, epoch: int, start_batch: int = 0): ...


@torch.no_grad()
def score(
    model: nn.Module,
    loader: Batches,
    device_spec: DeviceSpec,
    num_classes: int,
    *,
    neighbours: Neighbours | None = None,
    confusion: bool = False,
) -> FrameMetrics:
    """Sums over every frame of `loader` once; cross entropy is plain (no label smoothing), dropout off.

    neighbours: of a net that predicts them, whose loader must give all frames in order; a frame's scores are then as
    `Neighbours` says, and every process scores all of them: shares would end in the middle of utterances.
    The model's training flag is put back afterwards.
    """
    metrics = FrameMetrics(num_classes, device_spec.device, confusion)
    was_training = model.training
    model.eval()
    try:
        for logits, labels in scored(model, loader, device_spec, neighbours):
            part = frame_loss(logits, labels)
            metrics.add(part.loss, part.counts, part.frames)
            if confusion:
                metrics.add_confusion(part.logits, labels)
    finally:
        model.train(was_training)
    if neighbours is None:
        current().sum_(*metrics.state_dict().values())
    return metrics


def scored(
    model: nn.Module, loader: Batches, device_spec: DeviceSpec, neighbours: Neighbours | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits (B, C), labels (B,)) of all frames, some of them each time."""

    def computed(windows: Tensor) -> Tensor:
        with device_spec.autocast():
            logits: Tensor = model(windows_for(model, windows, device_spec.window_dtype))
        return logits

    if neighbours is None:
        for batch in loader.epoch(0):
            yield computed(batch.windows), batch.labels
        return
    start = 0
    assert neighbours.table is not None, "who scores has labels"
    for rows in neighbours.scores(computed(batch.windows) for batch in loader.epoch(0)):
        yield rows, neighbours.table[start : start + len(rows)].long()
        start += len(rows)
