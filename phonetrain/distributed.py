"""Training in several processes: which one this is, and everything that they exchange. One process exchanges nothing.

`torchrun --nproc-per-node N -m phonetrain fit ...` starts N processes. Each takes its slice of every global batch;
gradients of the sum of losses are added over all ranks in one flat reduction and belong to the mean over all frames, so
N ranks train as one would. All ranks hold the same weights, the same metrics and the same position; rank 0 writes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from .errors import ConfigError
from .kernels.known import running_buffers
from .text import counted

# Why a rank wants to pause; the last one wins.
REASONS = (None, "checkpoint", "pruned", "deadline", "SIGHUP", "SIGTERM", "SIGINT")
PATIENCE = timedelta(minutes=30)  # for a rank that packs, compiles or reads a cold corpus


@dataclass
class ProcessGroup:
    """This process among those that train together. `sums` is off while one rank works on its own."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    restarts: int = 0
    sums: bool = True

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def together(self) -> bool:
        """Whether values are exchanged with other processes."""
        return self.world_size > 1 and self.sums

    def sum_(self, *tensors: Tensor) -> None:
        """Add each tensor over all ranks, in place; all of one device, floats at least float32.

        One reduction for the floats, in the widest of their dtypes, and one for whole numbers, which stay exact.
        """
        if not self.together:
            return
        for is_float in (True, False):
            group = [tensor for tensor in tensors if tensor.is_floating_point() == is_float]
            if not group:
                continue
            dtype = max((tensor.dtype for tensor in group), key=lambda dtype: dtype.itemsize)
            flat = torch.cat([tensor.detach().reshape(-1).to(dtype) for tensor in group])
            dist.all_reduce(flat)
            for tensor, values in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
                tensor.detach().copy_(values.view(tensor.shape))

    def total(self, count: int) -> int:
        """The sum of a host number over all ranks; the device is not waited for."""
        if not self.together:
            return count
        number = torch.tensor(count)
        dist.all_reduce(number, group=_host_group())
        return int(number)

    def agree(self, reason: str | None) -> str | None:
        """The weightiest reason to pause that any rank has, on every rank; None if no rank has one."""
        if not self.together:
            return reason
        number = torch.tensor(REASONS.index(reason))
        dist.all_reduce(number, op=dist.ReduceOp.MAX, group=_host_group())
        return REASONS[int(number)]

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in rank order, on every rank."""
        if not self.together:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=_host_group())
        return values

    def share(self, value: Any) -> Any:
        """The value of rank 0, on every rank."""
        if not self.together:
            return value
        values = [value]
        dist.broadcast_object_list(values, group=_host_group())
        return values[0]

    def barrier(self) -> None:
        """Waits until all ranks have come to this call."""
        if self.together:
            dist.barrier(group=_host_group())

    def device(self, wanted: str) -> str:
        """The device setting of this rank: of several on one machine each takes its own GPU."""
        if self.world_size > 1 and wanted in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{self.local_rank}"
        return wanted

    @contextlib.contextmanager
    def local_only(self) -> Iterator[None]:
        """Within the block this rank exchanges nothing, so it may do what the others do not."""
        before, self.sums = self.sums, False
        try:
            yield
        finally:
            self.sums = before


_current = ProcessGroup()
_hosts: list[Any] = []


def current() -> ProcessGroup:
    """This process among those that `init` brought together; alone outside of it."""
    return _current


def _host_group() -> Any:
    """Numbers of the host go over gloo, so that no device has to be waited for."""
    return _hosts[0]


@contextlib.contextmanager
def init(device: str = "auto") -> Iterator[ProcessGroup]:
    """Join the other processes that torchrun started, for the length of the block; does nothing without torchrun.

    device: the run's setting, which decides between NCCL and gloo.
    """
    global _current
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or _current.world_size > 1 or "RANK" not in os.environ:
        yield _current
        return
    on_cuda = device != "cpu" and torch.cuda.is_available()
    # Functions of this module keep the group of the moment of its import as a default argument, and torch's optimizers
    # import it: after our group is made, the group's threads would outlive it and now and then abort the exit.
    from torch.distributed.nn import functional  # noqa: F401

    local = int(os.environ.get("LOCAL_RANK", "0"))
    if on_cuda:
        if local >= (count := torch.cuda.device_count()):
            raise ConfigError(
                f"torchrun started process number {local + 1} on a machine with {counted(count, 'GPU')}; "
                f"use --nproc-per-node {count}, or device=cpu"
            )
        torch.cuda.set_device(local)
    rank, restarts = int(os.environ["RANK"]), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    # torchrun's store outlives processes: without a prefix of its own, an attempt finds addresses of dead ones.
    store = dist.PrefixStore(f"phonetrain attempt {restarts}", next(dist.rendezvous("env://", timeout=PATIENCE))[0])
    dist.init_process_group("nccl" if on_cuda else "gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    _hosts[:] = [dist.new_group(backend="gloo", timeout=PATIENCE) if on_cuda else dist.group.WORLD]
    _current = ProcessGroup(rank, size, local, restarts)
    try:
        yield _current
    finally:
        _current = ProcessGroup()
        _hosts.clear()
        dist.destroy_process_group()


def reduce_norms(model: nn.Module) -> nn.Module:
    """Let the batch norms of `model` sum over all ranks, in place; names, parameters and buffers stay what they are.

    Raises ConfigError for a norm with running statistics that cannot: every rank would keep statistics of its own.
    """
    if current().world_size == 1:
        return model
    for name, module in model.named_modules():
        if not isinstance(module, _NormBase) or isinstance(module, nn.SyncBatchNorm):
            continue
        summed = type(module) is nn.BatchNorm1d and module.affine and module.momentum is not None
        if summed and module.track_running_stats:
            module.__class__ = ReducedBatchNorm1d
        elif isinstance(module, _BatchNorm) or module.track_running_stats:
            raise ConfigError(
                f"model: {name} is {module}, which cannot be summed over {current().world_size} processes; wanted "
                "nn.BatchNorm1d(affine=True, track_running_stats=True, momentum=a number), LayerNorm or GroupNorm: "
                "use one of them in model.factory, or train in one process"
            )
    return model


class ReducedBatchNorm1d(nn.BatchNorm1d):
    """nn.BatchNorm1d over the global batch: one small reduction each way, which gloo can do too.

    (B, H) -> (B, H), or (B, H, L) -> (B, H, L) with statistics over B and L. SyncBatchNorm refuses CPUs.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        if not (self.training and current().together):
            return super().forward(hidden)
        self._check_input_dim(hidden)
        rows = hidden if hidden.ndim == 2 else hidden.transpose(1, 2).flatten(0, 1)
        output, mean, variance, count = NormOverRanks.apply(rows, self.weight, self.bias, self.running_mean, self.eps)
        with torch.no_grad():
            running_mean, running_var, batches = running_buffers(self)
            momentum = cast("float", self.momentum)
            batches.add_(1)
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * (count / (count - 1)), momentum)
        return output if hidden.ndim == 2 else output.unflatten(0, (len(hidden), -1)).transpose(1, 2)


class NormOverRanks(torch.autograd.Function):
    """Batch norm with sums over all ranks (Ioffe and Szegedy 2015, Algorithm 1), and its derivative."""

    @staticmethod
    def forward(
        context: Any, hidden: Tensor, weight: Tensor, bias: Tensor, centre: Tensor, epsilon: float
    ) -> tuple[Tensor, ...]:
        # Squares are summed about the running mean, the same everywhere and near the true one: nothing cancels.
        values = hidden.float() - centre
        count = torch.full((1,), float(len(hidden)), dtype=torch.float64, device=hidden.device)
        sums, squares = values.sum(0).double(), values.square().sum(0).double()
        current().sum_(sums, squares, count)
        away = sums / count
        variance = (squares / count - away * away).clamp_min(0)
        inverse = (variance + epsilon).rsqrt().float()
        normal = (values - away.float()) * inverse
        context.save_for_backward(normal, inverse, weight, count)
        context.dtype = hidden.dtype
        mean, variance, count = (centre + away).float(), variance.float(), count.float()
        context.mark_non_differentiable(mean, variance, count)
        return (normal * weight + bias).to(hidden.dtype), mean, variance, count

    @staticmethod
    def backward(context: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        normal, inverse, weight, count = context.saved_tensors
        gradient = gradient.float()
        by_bias, by_weight = gradient.sum(0), (gradient * normal).sum(0)
        # The parameters' own derivatives stay local: they are added over the ranks with all the others.
        plain, product = by_bias.double(), by_weight.double()
        current().sum_(plain, product)
        mean, slope = (plain / count).float(), (product / count).float()
        by_hidden = weight * inverse * (gradient - mean - normal * slope)
        return by_hidden.to(context.dtype), by_weight, by_bias, None, None
