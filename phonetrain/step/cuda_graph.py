"""CapturedStep: the training step as one CUDA graph, together with the resident loader's gather."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .loss import ForwardResult
from .train_step import TrainStep

WARM_UP = 3  # eager steps before a capture: libraries choose their kernels and ask for their workspaces in the first


def record_graph(unit: Callable[[], None]) -> Callable[[], None]:
    """Capture the device work of `unit` as a CUDA graph; returns the function that replays it on the same memory."""
    graph = torch.cuda.CUDAGraph()
    # Producer threads of the host loader pin and copy meanwhile; only this thread's calls are captured.
    with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
        unit()
    return graph.replay


class CapturedStep:
    """A TrainStep on full batches, recorded once and replayed.

    Replays read what changes from the device: the rates of the epoch (a table), which frames the next some hundred
    batches are made of (another), the number of the batch and of the step (counted there), the key of the
    augmentation. The host only seeds torch's generator, which a graph reads anew at each replay, so dropout's masks are
    those of the eager step, and fills the table of frames where it has run out: order and lookup are a hundred
    operations, which would take longer inside the graph than all of the gather.

    Warm-up and capture run under the step's own halt flag, under which an update changes nothing: weights, moments,
    norm buffers, averages, loss scale and sums need not be put back. A graph is bound to memory, so `begin` records
    anew where a checkpoint was loaded into other tensors.

    Parameters
    ----------
    step: eager step on the same device.
    loader: gives the batches. Where it `gathers_on_device`, its `device_batch` becomes part of the graph; batches of
    others are copied into memory that the graph reads.
    whole: the update is part of the graph; else forward and backward are, and the host makes the update.
    record: how a sequence of device operations becomes a replay.
    """

    def __init__(
        self,
        step: TrainStep,
        loader: Any,
        *,
        whole: bool,
        record: Callable[[Callable[[], None]], Callable[[], None]] = record_graph,
    ) -> None:
        self.step, self.loader, self.whole, self.record = step, loader, whole, record
        device = step.device_spec.device
        self.index = torch.zeros((), dtype=torch.int64, device=device)
        self.rates_table = torch.zeros((loader.batches_per_epoch, len(step.optimizer.param_groups)), device=device)
        self.on_device = loader.gathers_on_device
        if self.on_device:
            self.frames_table, self.place = loader.new_table(), torch.zeros_like(self.index)
            self.left_in_table = 0  # batches that the table of frames still holds
        else:
            self.inputs = [tensor.clone() for tensor in loader.batch(0, 0)]
        self.replay: Callable[[], None] | None = None
        self.bound_to: list[int] = []
        self.results: list[ForwardResult] = []
        self.gradients: list[Tensor | None] = []

    def begin(self, epoch: int, index: int, number: int, rates: np.ndarray) -> None:
        """Stand before batch `index` of `epoch`, the run's step `number`; rates: (batches_per_epoch,) of the epoch.

        Raises RuntimeError where something in the step cannot be captured; the step is then as it was before.
        """
        self.step.begin(epoch, number)
        if self.on_device:
            self.fill_table(epoch, index)
        self.rates_table.copy_(torch.from_numpy(self.step.rates_of_groups(rates)))
        if self.replay is None or self.addresses() != self.bound_to:
            self.capture()
            if self.on_device:
                self.place.zero_()
        self.index.fill_(index)
        self.step.number.fill_(number)

    def fill_table(self, epoch: int, index: int) -> None:
        """Write to the device which frames batch `index` and those after it are made of."""
        self.loader.fill_table(self.frames_table, epoch, index)
        self.place.zero_()
        self.left_in_table = self.loader.table_batches

    def __call__(
        self, epoch: int, index: int, number: int, batch: Any = None, rate: float = 0.0, momentum: float | None = None
    ) -> None:
        """Make the update from batch `index` of `epoch`, which is the next. batch: where the loader's batches are not
        part of the graph. rate, momentum: read only where the update is not."""
        if not self.on_device:
            for memory, tensor in zip(self.inputs, batch, strict=True):
                memory.copy_(tensor, non_blocking=True)
        elif not self.left_in_table:
            self.fill_table(epoch, index)
        if self.on_device:
            self.left_in_table -= 1
        assert self.replay is not None, "begin comes first"
        self.step.begin(epoch, number)
        self.replay()
        if not self.whole:
            for parameter, gradient in zip(self.step.parameters, self.gradients, strict=True):
                parameter.grad = gradient
            self.step.set_rates(rate, momentum)
            self.step.apply_update(*self.step.reduce(self.results))  # which says at which step a number went bad
            self.step.number += 1

    def unit(self) -> None:
        """What a replay repeats: nothing in here may depend on a number that the host has."""
        step = self.step
        if self.on_device:
            windows, labels, frames = self.loader.device_batch(self.frames_table, self.place)
        else:
            windows, labels, frames = self.inputs
        results = step.forward_backward(windows, labels, frames)
        if self.whole:
            assert step.rates is not None, "fused optimizers have their rates on the device"
            torch.index_select(self.rates_table, 0, self.index.view(1), out=step.rates.view(1, -1))
            for group, rate in zip(step.optimizer.param_groups, step.rates.unbind(), strict=True):
                group["lr"] = rate
            step.apply_update(*step.reduce(results))
        else:
            self.results = results
            self.gradients = [parameter.grad for parameter in step.parameters]
            step.optimizer.zero_grad()
        counted = [self.index, *([self.place] if self.on_device else []), *([step.number] if self.whole else [])]
        torch._foreach_add_(counted, 1)

    def capture(self) -> None:
        """Record `unit`, which changes nothing but the counters meanwhile."""
        step = self.step
        self.replay = None
        step.status.nonfinite.fill_(1)
        buffers = [buffer.clone() for buffer in step.buffers]
        try:
            with nothing_collected(), side_stream(step.device_spec.device):
                for again in range(WARM_UP):
                    self.to_first()
                    # A model that waits for the device cannot be captured; here it says so while nothing is broken.
                    with waiting_refused(step.device_spec.device) if again else contextlib.nullcontext():
                        self.unit()
            self.to_first()
            with nothing_collected(), on(step.device_spec.device), capturable(step.optimizer):
                replay = self.record(self.unit)
        finally:
            # The update takes back what forward passes do to norms, but it may not have been reached.
            if buffers:
                torch._foreach_copy_(step.buffers, buffers)
            step.optimizer.zero_grad()
            step.status.clear()
        self.replay, self.bound_to = replay, self.addresses()

    def to_first(self) -> None:
        """To the first batch of the tables: an epoch may have one."""
        self.index.zero_()
        if self.on_device:
            self.place.zero_()

    def addresses(self) -> list[int]:
        """Addresses of all tensors that a replay reads or writes and that other code may replace."""
        step = self.step
        tensors = [*step.parameters, *step.buffers, *step.metrics.state_dict().values()]
        for part in (step.averaged, step.loss_scale):
            tensors += [] if part is None else part.state_dict().values()
        if step.augment is not None:
            tensors.append(step.augment.key)
        if self.whole:
            for state in step.optimizer.state.values():
                tensors += [value for value in state.values() if isinstance(value, Tensor)]
        return [tensor.data_ptr() for tensor in tensors]


@contextlib.contextmanager
def waiting_refused(device: torch.device) -> Iterator[None]:
    """Let operations on a CUDA device that make the host wait raise RuntimeError."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextlib.contextmanager
def nothing_collected() -> Iterator[None]:
    """Hold the garbage collector off: what it finds may be the epoch of a loader, which waits for its copies as it
    goes, or another graph, and neither is allowed while one is captured."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def on(device: torch.device) -> contextlib.AbstractContextManager:
    """Within the block new streams belong to this device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """A CUDA stream beside the current one, which waits for it before and after."""
    if device.type != "cuda":
        yield
        return
    stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


@contextlib.contextmanager
def capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Tell torch's Adams that their step is being captured: their fused kernels need to know no more, and would warn
    at every eager step that says so."""
    groups = [group for group in optimizer.param_groups if "capturable" in group]
    before = [group["capturable"] for group in groups]
    try:
        for group in groups:
            group["capturable"] = True
        yield
    finally:
        for group, value in zip(groups, before, strict=True):
            group["capturable"] = value
