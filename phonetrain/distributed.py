"""Training in several processes: which one this is, and everything that they exchange. One process exchanges nothing.

`devices=N`, torchrun or Slurm's srun starts N processes. Each takes its slice of every global batch; gradients of the
sum of losses are added over all ranks, during the backward pass, and belong to the mean of all frames, so N ranks train
as one would. All ranks hold the same weights, the same metrics and the same position; rank 0 writes.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
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
REASONS = (None, "checkpoint", "pruned", "deadline", "SIGHUP", "SIGUSR1", "SIGTERM", "SIGINT")
BUCKET_BYTES = 25 << 20  # of gradients that are sent together
LONG_WAIT_S = 20.0  # for the other processes of a launch, after which that is said
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
    """The ProcessGroup of the enclosing `init`; outside of one, a group of this process alone."""
    return _current


def _host_group() -> Any:
    """Numbers of the host go over gloo, so that no device has to be waited for."""
    return _hosts[0]


def launched_size() -> int:
    """How many processes were started together with this one, by torchrun, by Slurm's srun or by hand; else 1.

    Slurm's variables are written as torchrun's, where none of those are set. Raises ConfigError for a variable that is
    no number, is missing or contradicts another.
    """
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ and _number("SLURM_STEP_NUM_TASKS", 1) > 1:
        os.environ.update(from_slurm())
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        return 1
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise ConfigError(f"WORLD_SIZE = {size}: {name} is not set; set it too, or unset WORLD_SIZE to train alone")
    _number("MASTER_PORT", 0)
    if not 0 <= _number("RANK", 0) < size:
        raise ConfigError(f"RANK = {os.environ['RANK']}: wanted 0 to {size - 1}, as WORLD_SIZE = {size}")
    return size


def _number(name: str, otherwise: int) -> int:
    """A variable of the environment as a whole number."""
    text = os.environ.get(name, "").strip()
    if text and not text.isdecimal():
        raise ConfigError(f"{name} = {text}: wanted a whole number; torchrun and Slurm set it, unset it to train alone")
    return int(text or otherwise)


def from_slurm() -> dict[str, str]:
    """torchrun's environment variables, made from Slurm's, for a step that srun started with several tasks.

    The first host of the list (`node[03-05,9],login` -> node03) is the one that the first task is on; the port is a
    function of the job's number, so that every task finds the same.
    """
    hosts = os.environ.get("SLURM_STEP_NODELIST") or "127.0.0.1"
    first = re.sub(r"\[(\d+)[^\]]*\]", r"\1", re.match(r"(?:\[[^\]]*\]|[^,\[])*", hosts)[0])  # type: ignore[index]
    return {
        "RANK": os.environ.get("SLURM_PROCID", ""),
        "LOCAL_RANK": os.environ.get("SLURM_LOCALID", "0"),
        "WORLD_SIZE": os.environ["SLURM_STEP_NUM_TASKS"],
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", first),
        "MASTER_PORT": os.environ.get("MASTER_PORT", str(20000 + _number("SLURM_JOB_ID", 0) % 10000)),
    }


@contextlib.contextmanager
def init(device: str = "auto") -> Iterator[ProcessGroup]:
    """Join the other processes that were started with this one, for the length of the block; alone it joins nobody.

    They are those of RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, which torchrun sets, or of Slurm's step. device:
    the run's setting, which decides between NCCL and gloo. Raises ConfigError where a variable means nothing.
    """
    global _current
    restarts = _number("TORCHELASTIC_RESTART_COUNT", 0) + _number("SLURM_RESTART_COUNT", 0)
    size = launched_size()
    if size == 1 or _current.world_size > 1:
        before, _current = _current, _current if _current.world_size > 1 else ProcessGroup(restarts=restarts)
        try:
            yield _current
        finally:
            _current = before
        return
    on_cuda = device != "cpu" and torch.cuda.is_available()
    # Functions of this module keep the group of the moment of its import as a default argument, and torch's optimizers
    # import it: after our group is made, the group's threads would outlive it and now and then abort the exit.
    from torch.distributed.nn import functional  # noqa: F401

    rank, local = int(os.environ["RANK"]), _number("LOCAL_RANK", 0)
    if on_cuda:
        if local >= (count := torch.cuda.device_count()):
            raise ConfigError(
                f"process number {local + 1} was started on a machine with {counted(count, 'GPU')}; "
                f"start at most {count} (torchrun: --nproc-per-node {count}), or use device=cpu"
            )
        torch.cuda.set_device(local)
    # torchrun's store outlives processes: without a prefix of its own, an attempt finds addresses of dead ones.
    backend = "nccl" if on_cuda else "gloo"
    with told_if_waiting(rank, size):
        store = dist.PrefixStore(f"phonetrain attempt {restarts}", next(dist.rendezvous("env://", timeout=PATIENCE))[0])
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        _hosts[:] = [dist.new_group(backend="gloo", timeout=PATIENCE) if on_cuda else dist.group.WORLD]
    _current = ProcessGroup(rank, size, local, restarts)
    try:
        yield _current
    finally:
        _current = ProcessGroup()
        _hosts.clear()
        dist.destroy_process_group()


@contextlib.contextmanager
def told_if_waiting(rank: int, size: int) -> Iterator[None]:
    """Say once on stderr where others are waited for, if the block takes longer than they need to start."""
    others = "another process" if size == 2 else f"{size - 1} other processes"
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    said = (
        f"RANK {rank} of WORLD_SIZE {size}: waiting for {others} at {address}, up to {PATIENCE.seconds // 60} minutes"
    )
    timer = threading.Timer(LONG_WAIT_S, print, [said], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class GradientSums:
    """Sums gradients over all ranks while the backward pass still makes the earlier layers' ones.

    Parameters lie in buckets, those of the last layers first, since their gradients come first (Li et al. 2020,
    "PyTorch Distributed"). A full bucket is sent off at once, in the order of the buckets: all ranks have to send in
    the same.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], ranks: ProcessGroup) -> None:
        self.ranks = ranks
        self.buckets: list[list[nn.Parameter]] = []
        size = BUCKET_BYTES
        for parameter in reversed(parameters):
            if size >= BUCKET_BYTES or self.buckets[-1][0].dtype != parameter.dtype:
                self.buckets.append([])
                size = 0
            self.buckets[-1].append(parameter)
            size += parameter.numel() * parameter.element_size()
        self.bucket_of: dict[Tensor, int] = {each: n for n, bucket in enumerate(self.buckets) for each in bucket}
        self.missing: list[int] | None = None
        self.sent: list[tuple[list[Tensor], Tensor, Any]] = []
        for parameter in parameters if ranks.world_size > 1 else ():
            parameter.register_post_accumulate_grad_hook(self.arrived)

    def begin(self) -> None:
        """The next backward pass is the last of its batch."""
        self.missing = [len(bucket) for bucket in self.buckets] if self.ranks.together else None

    def arrived(self, parameter: Tensor) -> None:
        if self.missing is None:
            return
        self.missing[self.bucket_of[parameter]] -= 1
        while len(self.sent) < len(self.buckets) and self.missing[len(self.sent)] == 0:
            self.send()

    def send(self) -> None:
        gradients = [each.grad for each in self.buckets[len(self.sent)] if each.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients]) if gradients else torch.empty(0)
        self.sent.append((gradients, flat, dist.all_reduce(flat, async_op=True) if gradients else None))

    def finish(self) -> None:
        """Send the buckets that are still incomplete, wait, and copy the sums into the gradients."""
        if self.missing is None:
            return
        while len(self.sent) < len(self.buckets):
            self.send()
        for gradients, flat, work in self.sent:
            if work is not None:
                work.wait()
                for gradient, total in zip(gradients, flat.split([each.numel() for each in gradients]), strict=True):
                    gradient.copy_(total.view(gradient.shape))
        self.sent, self.missing = [], None


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
