"""LossScale: fp16's gradient scale as device tensors, so that a step never waits for the host."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 2.0**-24  # from there on a gradient of 1 is rounded away in fp16


class LossScale:
    """Dynamic loss scaling (Micikevicius et al. 2018), the arithmetic of `torch.amp.GradScaler`.

    GradScaler owns the call to `optimizer.step`; here the same decision also depends on the non-finite flag of the
    step, and clipping needs the unscaled gradients, so the two torch primitives under GradScaler are used directly.

    Parameters
    ----------
    device: where the scale lives.
    initial: first scale, halved after an overflow, doubled after `interval` good updates in a row.
    """

    def __init__(self, device: torch.device | str, initial: float = 65536.0, interval: int = 2000) -> None:
        self.scale = torch.full((), initial, dtype=torch.float32, device=device)
        self.good_updates = torch.zeros((), dtype=torch.int32, device=device)
        # Of the whole run, so that a resumed one shows the same rate: a checkpoint holds them.
        self.overflows = torch.zeros((), dtype=torch.int64, device=device)
        self.overflows_in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self.initial, self.interval = initial, interval

    @torch.no_grad()
    def unscale_(self, gradients: list[Tensor]) -> Tensor:
        """Divide the gradients by the scale in place; returns () float32, 1 where any of them is not finite."""
        overflow = torch.zeros_like(self.scale)
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, overflow, self.scale.double().reciprocal().float())
        return overflow

    @torch.no_grad()
    def update_(self, overflow: Tensor, frozen: Tensor) -> None:
        """Shrink after an overflow, grow after `interval` updates without one; nothing at all where `frozen` is set.

        overflow, frozen: () float32, 0 or 1.
        """
        scale, good = self.scale.clone(), self.good_updates.clone()
        torch._amp_update_scale_(self.scale, self.good_updates, overflow, 2.0, 0.5, self.interval)
        self.scale.copy_(torch.where(frozen > 0, scale, self.scale.clamp(min=SMALLEST)))
        self.good_updates.copy_(torch.where(frozen > 0, good, self.good_updates))
        counted = (overflow * (1 - frozen)).long()
        self.overflows += counted
        self.overflows_in_a_row.copy_(
            torch.where(frozen > 0, self.overflows_in_a_row, (self.overflows_in_a_row + 1) * counted)
        )

    def begin_anew(self) -> None:
        """Back to the first scale: overflows at every scale have another cause, and at the lowest nothing is learnt."""
        self.scale.fill_(self.initial)
        self.good_updates.zero_()
        self.overflows_in_a_row.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """The scale, good updates since it last changed, overflows of the whole run and since the last good update."""
        return {
            "scale": self.scale,
            "good_updates": self.good_updates,
            "overflows": self.overflows,
            "overflows_in_a_row": self.overflows_in_a_row,
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy in place."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])
