"""The updates of an epoch, one after the other: eager steps on a loader's batches, or replays of a captured one."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch

from ..distributed import current
from ..errors import ConfigError
from ..text import opening_line
from .cuda_graph import CapturedStep
from .train_step import TrainStep


class Updates:
    """Makes the updates of an epoch and says after each how many frames it was made from.

    `how` says in one line what is captured and, where not everything is, why.

    Parameters
    ----------
    step, loader: what makes an update, and from what.
    capture: whether to capture where that is possible: on CUDA, one process, nothing that the host must decide.
    cycles_momentum: the schedule moves the momentum, which torch's fused kernels read from the host.
    """

    def __init__(self, step: TrainStep, loader: Any, *, capture: bool, cycles_momentum: bool = False) -> None:
        self.step, self.loader = step, loader
        self.captured: CapturedStep | None = None
        device = step.device_spec.device
        if device.type != "cuda":
            self.capture_mode = f"eager on {device.type}"
        elif not capture:
            self.capture_mode = "eager, as asked"
        elif step.ranks.together:
            self.capture_mode = "eager: several processes meet in every step"
        else:
            only = None
            if not step.skips_on_device:
                only = f"the host decides about every update of {type(step.optimizer).__name__}"
            elif cycles_momentum:
                only = "fused optimizers read the momentum, which the schedule moves, from the host"
            self.capture_mode = "captured whole" if only is None else f"forward and backward captured: {only}"
            self.captured = CapturedStep(step, loader, whole=only is None)

    def epoch(
        self,
        epoch: int,
        start_batch: int,
        number: int,
        rates: np.ndarray,
        momenta: np.ndarray | None = None,
        *,
        warn: Callable[[str], None] = warnings.warn,
    ) -> Generator[int, None, None]:
        """Make the updates of `epoch` from batch `start_batch` on, which is the run's step `number`.

        rates, momenta: (batches_per_epoch,) float64 of the epoch; momenta None where nothing moves it. warn: told in
        one sentence where the step turns out not to be capturable.
        """
        if self.captured is not None:
            try:
                self.captured.begin(epoch, start_batch, number, rates)
            except RuntimeError as error:
                first = opening_line(error)
                self.captured, self.capture_mode = None, f"eager: the step cannot be captured ({first})"
                warn(f"this step cannot be captured as a CUDA graph and runs eagerly, which is slower: {first}")
        if self.captured is not None and self.captured.on_device:
            start, stop = self.loader.plan.bounds(0)
            for index in range(start_batch, len(rates)):
                self.captured(epoch, index, number, rate=float(rates[index]), momentum=at(momenta, index))
                number += 1
                yield stop - start
            return
        stream = self.loader.epoch(epoch, start_batch=start_batch)
        try:
            for index, batch in enumerate(stream, start_batch):
                rate, momentum = float(rates[index]), at(momenta, index)
                if self.captured is None:
                    self.step(*batch, epoch=epoch, step=number, rate=rate, momentum=momentum)
                else:
                    self.captured(epoch, index, number, batch, rate, momentum)
                number += 1
                yield len(batch.labels)
        finally:
            stream.close()


def at(values: np.ndarray | None, index: int) -> float | None:
    return None if values is None else float(values[index])


def measure(stream: Generator[int, None, None], device: torch.device, seconds: float) -> float:
    """Frames a second of what `stream` does while it yields numbers of frames, of all ranks together; the first three,
    which compile kernels and read the corpus, are not counted. Raises ConfigError for fewer than four."""
    frames, began, index = 0, 0.0, 0
    with contextlib.closing(stream):
        for index, count in enumerate(stream):
            if index == 2:
                wait(device)
                began = time.perf_counter()
            elif index > 2:
                frames += count
                if index % 8 == 0 and current().share(time.perf_counter() - began > seconds):
                    break
    if not frames:
        raise ConfigError(f"an epoch has only {index + 1} batches: too few to measure; use a smaller batch_size")
    wait(device)
    return current().total(frames) / (time.perf_counter() - began)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
