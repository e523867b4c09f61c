"""Per-step status on the device: non-finite flag, gradient norm, metric sums. Never synchronises."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..device import sum_dtype
from ..kernels import cuda_layer
from .metrics import FrameMetrics


class StepStatus:
    """Whether a step was not finite, and which; the norm of the last gradient; the sums of the epoch.

    Attributes
    ----------
    nonfinite: () float32, 1 from the first bad step until the host has looked.
    nonfinite_at: () int64, the number of that step, or -1.
    gradient_norm: () float32. metrics: sums over frames that were learnt from.
    """

    def __init__(self, metrics: FrameMetrics, device: torch.device) -> None:
        self.metrics = metrics
        self.nonfinite = torch.zeros((), dtype=torch.float32, device=device)
        self.nonfinite_at = torch.full((), -1, dtype=torch.int64, device=device)
        self.gradient_norm = torch.zeros((), dtype=torch.float32, device=device)

    @torch.no_grad()
    def update(
        self,
        loss: Tensor,
        counts: Mapping[str, Tensor],
        frames: int | Tensor,
        norm: Tensor,
        number: Tensor,
        *,
        watch_norm: bool,
    ) -> None:
        """Halt if the loss, or the norm where that is watched, is not finite; else add the batch to the sums.

        loss, counts: () sums over the batch's `frames`. norm: () of its gradient. number: () int64 of the step.
        """
        if isinstance(frames, int) and cuda_layer.runs_here(norm.view(1, 1)):
            self.update_by_kernel(loss, counts, frames, norm, number, watch_norm)
            return
        watched = loss.to(sum_dtype(loss.device)) + norm if watch_norm else loss
        bad = watched - watched != 0  # of infinity and NaN
        torch.where(bad & (self.nonfinite_at < 0), number, self.nonfinite_at, out=self.nonfinite_at)
        torch.maximum(self.nonfinite, bad.float(), out=self.nonfinite)
        self.gradient_norm.copy_(norm)
        self.metrics.add(loss, counts, frames, self.nonfinite == 0)

    def update_by_kernel(
        self,
        loss: Tensor,
        counts: Mapping[str, Tensor],
        frames: int,
        norm: Tensor,
        number: Tensor,
        watch_norm: bool,
    ) -> None:
        """The same as one launch in place of twenty, each of which takes as long as this one."""
        from ..kernels import triton_step as kernels

        sums = self.metrics.by_name
        with torch.cuda.device_of(loss):
            kernels.update[1,](
                loss,
                counts["accuracy"],
                norm,
                number,
                self.nonfinite,
                self.nonfinite_at,
                self.gradient_norm,
                sums["loss"],
                sums["accuracy"],
                sums["frames"],
                frames,
                WATCH_NORM=watch_norm,
                num_warps=1,
            )
        for name in counts.keys() - {"accuracy"}:
            sums[name] += counts[name].long() * (self.nonfinite == 0)

    def clear(self) -> None:
        """Clear the flag: the host has looked and decided."""
        self.nonfinite.zero_()
        self.nonfinite_at.fill_(-1)
