"""TrainStep: one update, from a batch of windows to new weights, without waiting for the device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ..device import DeviceSpec, sum_dtype
from ..distributed import GradientSums, ProcessGroup
from ..kernels.known import KeyedDropout
from ..model.classifier import windows_for
from ..model.ema import AveragedWeights
from ..optim.loss_scale import LossScale
from .augment import Augment
from .loss import ForwardResult, frame_loss
from .metrics import FrameMetrics
from .neighbours import Neighbours
from .status import StepStatus

STEP = int.from_bytes(b"step")  # what the seed is spent on; the orders and the augmentation have other words
LONG_ROW = 64  # values; below it a norm of each row costs more than that of the whole


class TrainStep:
    """Augment, autocast forward, loss, backward, guard, update.

    A step is a pure function of (weights, optimizer state, batch, seed, step number): the generators that dropout
    draws from are seeded from (seed, step) before every step, so a step can be replayed, a run resumed and a batch
    left out without any random state to carry.

    A loss that is not finite sets `status.nonfinite` on the device. From then on a step changes nothing: weights,
    optimizer state, norm buffers, averaged weights, loss scale and metrics stay as they were before the bad batch,
    until the host looks at `status.nonfinite_at` and decides. A gradient that overflows in fp16 is the loss scale's
    ordinary business: that update is left out and counted there; in bf16 and fp32 it halts like a loss.

    Parameters
    ----------
    model: (B, W, D) windows -> (B, C) logits, or (B, 2n + 1, C) with `neighbours`.
    optimizer: its groups carry `lr_ratio`, their share of the scheduled rate.
    metrics: sums of the current epoch. device_spec: device and precision. seed: of the run.
    augment: (windows, frames, epoch) -> windows, or None. averaged: averaged weights, or None.
    clip_norm: largest global gradient norm, or None. accumulation: number of equal pieces a batch is computed in.
    neighbours: labels of the frames that each window predicts, or None where that is its middle one.
    label_smoothing: as in `torch.nn.functional.cross_entropy`. loss_scale: for fp16, else None.
    ranks: the processes that share a step; a batch is then this rank's slice, and losses, gradients and metrics are
    those of the global batch.
    first_row: place of this rank's first frame in the global batch, which dropout's masks go by.
    network: what is called in place of `model`, with the same parameters and buffers: a compiled form of it, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        metrics: FrameMetrics,
        device_spec: DeviceSpec,
        *,
        seed: int,
        augment: Augment | None = None,
        neighbours: Neighbours | None = None,
        averaged: AveragedWeights | None = None,
        clip_norm: float | None = None,
        accumulation: int = 1,
        label_smoothing: float = 0.0,
        loss_scale: LossScale | None = None,
        ranks: ProcessGroup | None = None,
        network: Callable[[Tensor], Tensor] | None = None,
        first_row: int = 0,
    ) -> None:
        self.model, self.optimizer, self.metrics, self.device_spec = model, optimizer, metrics, device_spec
        self.network = model if network is None else network
        self.seed, self.augment, self.neighbours, self.averaged = seed, augment, neighbours, averaged
        self.clip_norm, self.accumulation, self.label_smoothing = clip_norm, accumulation, label_smoothing
        self.loss_scale, self.ranks = loss_scale, ranks or ProcessGroup()
        device = device_spec.device
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.sums = GradientSums(self.parameters, self.ranks)
        self.dropouts = [module for module in model.modules() if isinstance(module, KeyedDropout)]
        self.first_row = first_row
        self.buffers = list(model.buffers())
        self.norm_buffers = NormBuffers(self.buffers)
        self.status = StepStatus(metrics, device)
        # Fused kernels read `found_inf` on the device and leave weights and state alone where it is 1. The others
        # have to be held back by the host, which costs a synchronisation a step on CUDA.
        self.skips_on_device = all(group.get("fused") for group in optimizer.param_groups)
        # What a step needs to know besides its batch lies on the device, where a captured graph can read and count it.
        self.epoch, self.number = 0, torch.zeros((), dtype=torch.int64, device=device)
        self.rates: Tensor | None = None
        if device.type != "cpu" and self.skips_on_device:
            self.put_rates_on_device()

    def __call__(
        self,
        windows: Tensor,
        labels: Tensor,
        frames: Tensor,
        *,
        epoch: int,
        step: int,
        rate: float,
        momentum: float | None = None,
    ) -> None:
        """Make one update.

        windows: (B, W, D) float. labels: (B,) int64. frames: (B,) int64, for the augmentation's randomness.
        epoch, step: counted from 0 over the whole run. rate: learning rate of this step; momentum: or None.
        """
        self.set_rates(rate, momentum)
        self.begin(epoch, step)
        self.number.fill_(step)
        self.apply_update(*self.reduce(self.forward_backward(windows, labels, frames)))

    def begin(self, epoch: int, step: int) -> None:
        """Set the number of the next step in the generators and the augmentation: a replayed graph needs no more."""
        self.epoch = epoch
        self.seed_generators(step)
        if self.augment is not None:
            self.augment.set_step(epoch, step, self.device_spec.device)

    def forward_backward(self, windows: Tensor, labels: Tensor, frames: Tensor) -> list[ForwardResult]:
        """Forward and backward of each piece of the batch; gradients accumulate in the parameters."""
        self.norm_buffers.keep()
        results = []
        frames_of_all = self.ranks.total(labels.shape[0])
        for rows in (pieces := pieces_of(labels.shape[0], self.accumulation)):
            if rows is pieces[-1]:
                self.sums.begin()
            for dropout in self.dropouts:
                dropout.key = dropout.drawn if rows.start else None
                dropout.rows_before = self.first_row + rows.start
            result = self.forward(windows[rows], labels[rows], frames[rows], self.epoch)
            share = torch.full_like(result.loss, 1 / frames_of_all)  # the mean is over the frames of the whole batch
            result.loss.backward(share if self.loss_scale is None else share * self.loss_scale.scale)
            results.append(result._replace(loss=result.loss.detach(), logits=result.logits.detach()))
        return results

    @torch.no_grad()
    def reduce(self, results: list[ForwardResult]) -> tuple[Tensor, dict[str, Tensor], int | Tensor]:
        """(loss, counts, frames) of the global batch from those of its pieces; sums gradients over all ranks.

        loss, counts: () sums over `frames`, which is a number on the device where there are several ranks.
        """
        loss, counts, frames = results[0][:3]
        for result in results[1:]:
            loss = loss.to(sum_dtype(loss.device)) + result.loss
            counts = {name: count + result.counts[name] for name, count in counts.items()}
            frames += result.frames
        if not self.ranks.together:
            return loss, counts, frames
        numbers = torch.stack([value.double() for value in (loss, torch.full_like(loss, frames), *counts.values())])
        self.ranks.sum_(numbers)
        self.sums.finish()
        return numbers[0], dict(zip(counts, numbers[2:])), numbers[1].long()

    def forward(self, windows: Tensor, labels: Tensor, frames: Tensor, epoch: int) -> ForwardResult:
        """Loss and counts of a piece of the batch."""
        windows = windows_for(self.model, windows, self.device_spec.window_dtype)
        if self.augment is not None:
            windows = self.augment(windows, frames, epoch)
        with self.device_spec.autocast():
            logits = self.network(windows)
        if self.neighbours is not None:
            labels = self.neighbours.labels(frames)
        return frame_loss(logits, labels, self.label_smoothing)

    @torch.no_grad()
    def apply_update(self, loss: Tensor, counts: dict[str, Tensor], frames: int | Tensor) -> None:
        """Change weights and sums by the gradients that are there, or nothing at all where a number is not finite.

        loss, counts, frames: as `reduce` returns them.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        overflow = None if self.loss_scale is None else self.loss_scale.unscale_(gradients)
        norm = total_norm(gradients)
        self.status.update(loss, counts, frames, norm, self.number, watch_norm=overflow is None)
        if self.clip_norm is not None:
            torch._foreach_mul_(gradients, torch.clamp(self.clip_norm / (norm + 1e-6), max=1.0))
        nonfinite = self.status.nonfinite
        skip = nonfinite if overflow is None else torch.maximum(nonfinite, overflow)
        self.step_optimizer(skip)
        self.norm_buffers.restore(nonfinite > 0)
        if self.averaged is not None:
            self.averaged.update(skip)
        if self.loss_scale is not None and overflow is not None:
            self.loss_scale.update_(overflow, frozen=nonfinite)
        self.optimizer.zero_grad()

    def step_optimizer(self, skip: Tensor) -> None:
        """Run the optimizer, or leave everything as it is where skip, () float32, is 1."""
        if self.skips_on_device:
            self.optimizer.found_inf = skip  # type: ignore[attr-defined]  # torch's fused kernels look for it
            self.optimizer.step()
        elif not skip.item():
            self.optimizer.step()

    def put_rates_on_device(self) -> None:
        """Let every group read its rate from a tensor of all rates, (groups,) float32."""
        groups = self.optimizer.param_groups
        self.rates = torch.tensor([float(group["lr"]) for group in groups], device=self.device_spec.device)
        for group, rate in zip(groups, self.rates.unbind(), strict=True):
            group["lr"] = rate

    def rates_of_groups(self, rates: np.ndarray) -> np.ndarray:
        """Scheduled rates (steps,) -> the rates of every group (steps, groups)."""
        return np.outer(rates, [group.get("lr_ratio", 1.0) for group in self.optimizer.param_groups])

    def set_rates(self, rate: float, momentum: float | None) -> None:
        """Write this step's learning rate, and momentum where the schedule cycles it, into the optimizer's groups."""
        for index, group in enumerate(self.optimizer.param_groups):
            group["lr"] = rate * group.get("lr_ratio", 1.0)
            if self.rates is not None:
                group["lr"] = self.rates[index].fill_(group["lr"])
            if momentum is None:
                continue
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            elif "momentum" in group:
                group["momentum"] = momentum

    def seed_generators(self, step: int) -> None:
        """Seed torch's generators for this step from (seed, step), never from their sum; on all ranks alike."""
        draws = np.random.SeedSequence(self.seed, spawn_key=(STEP, step, 0))
        torch.manual_seed(int(draws.generate_state(1, np.uint64)[0]))


def total_norm(gradients: list[Tensor]) -> Tensor:
    """2-norm of all gradients together, (), in their dtype.

    On a CPU matrices are taken row by row: torch sums one whole tensor in one thread, at a quarter of the speed.
    """
    if not gradients or gradients[0].device.type != "cpu":
        return nn.utils.get_total_norm(gradients)
    rows = [g.ndim > 1 and g.is_contiguous() and g.shape[-1] >= LONG_ROW for g in gradients]
    norms = [torch.linalg.vector_norm(g, dim=-1 if long else None) for g, long in zip(gradients, rows, strict=True)]
    return torch.linalg.vector_norm(torch.cat([norm.flatten() for norm in norms]))


def pieces_of(count: int, pieces: int) -> list[slice]:
    """`count` rows in `pieces` neighbouring slices, as equal as can be, the longer ones first."""
    size, longer = divmod(count, pieces)
    stops = [piece * size + min(piece, longer) for piece in range(1, pieces + 1)]
    return [slice(start, stop) for start, stop in zip([0, *stops], stops)]


class NormBuffers:
    """Copies of a model's buffers, and their way back; a handful of operations however many buffers there are.

    Copies of one dtype lie in one tensor: norms have three small buffers each, and a launch for each would be a third
    of a deep net's step on a fast GPU. A CPU looks whether there is anything to take back.

    Parameters
    ----------
    buffers: live tensors; `keep` and `restore` work on these very ones.
    """

    def __init__(self, buffers: list[Tensor]) -> None:
        alike: dict[tuple[torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
        for buffer in buffers:
            alike[buffer.dtype, buffer.device].append(buffer)
        self.groups = [(group, flat := flattened(group), as_views(flat, group)) for group in alike.values()]

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the buffers as they are."""
        for buffers, _, before in self.groups:
            torch._foreach_copy_(before, buffers)

    @torch.no_grad()
    def restore(self, undone: Tensor) -> None:
        """As remembered where `undone`, () bool on the device, is true; else as they are."""
        if undone.device.type != "cpu" or undone:
            self.restore_on_device(undone)

    def restore_on_device(self, undone: Tensor) -> None:
        for buffers, flat, _ in self.groups:
            torch._foreach_copy_(buffers, as_views(torch.where(undone, flat, flattened(buffers)), buffers))


def flattened(tensors: list[Tensor]) -> Tensor:
    """All values in one new tensor, (sum of sizes,)."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def as_views(flat: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """Views of `flat` in the shapes of `tensors`, one behind the other."""
    pieces = flat.split([tensor.numel() for tensor in tensors])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]
