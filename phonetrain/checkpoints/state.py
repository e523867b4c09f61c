"""TrainState: everything that changes while a run trains, which is what a checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..model.ema import AveragedWeights
from ..optim.loss_scale import LossScale
from ..optim.schedule import Schedule
from ..step.metrics import FrameMetrics


@dataclass
class Progress:
    """Where a run stands: the part of its state that is plain numbers.

    epoch, batch: the next batch to train on. step: updates made (position of the next one). segment: which process of
    the run. logged: the epoch's sums by name when the last line was logged. rate_scale: what
    rollbacks have multiplied the scheduled rates by. back_to: the step that was last gone back to.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    segment: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    logged: dict[str, float] = field(default_factory=dict)
    best_score: float | None = None
    best_epoch: int | None = None
    best_step: int | None = None
    epochs_since_best: int = 0
    rollbacks: int = 0
    rate_scale: float = 1.0
    back_to: int | None = None
    finished: bool = False


@dataclass
class TrainState:
    """Everything that moves during training, and exactly what a checkpoint holds.

    No random state: order, augmentation and dropout are functions of (seed, epoch, frame) and (seed, step).
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    metrics: FrameMetrics
    averaged: AveragedWeights | None
    loss_scale: LossScale | None
    progress: Progress

    def training_parts(self) -> dict[str, Any]:
        """The moving parts that are not weights, by name; absent parts are left out."""
        parts = {
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "metrics": self.metrics,
            "loss_scale": self.loss_scale,
        }
        return {name: part for name, part in parts.items() if part is not None}
