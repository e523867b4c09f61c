"""HostLoader: the corpus in host memory; threads gather whole batches into a ring of slots, pinned and sent on CUDA.

A slot is one block of memory: B windows at a pitch of whole 64 bytes, then B frames, then B labels. It crosses to a
device in one transfer and is viewed there.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from ..errors import SpecError
from ..system import available_cores
from .base import AnyOrder, BatchPlan, Loader, whole_number
from .mapped_files import MappedFiles
from .prefetch import Prefetcher
from .window_kernel import LINE, FrameTable
from .windows import WindowBatch

MEMORIES = ("map", "ram")
MOST_THREADS = 1024
"""More than any machine has cores: each holds a batch."""


class HostLoader(Loader):
    """Windows from memory maps (or from copies in RAM), gathered on the CPU, on any device.

    `threads` threads make whole batches (None: one a core, at most 4). The caller's is one of them: where it
    would wait for a batch it makes one, and with one thread it makes all. `memory` "map" reads the corpus where it
    lies, "ram" copies its partitions first, for drives that are slow at random. While a CUDA graph is captured next to
    a running epoch, capture with `capture_error_mode="thread_local"`: the producers use CUDA too.
    """

    kind = "host"
    options = ("threads", "memory")

    def __init__(
        self,
        plan: BatchPlan,
        device: str | torch.device = "cpu",
        reason: str = "",
        *,
        threads: int | None = None,
        memory: str = "map",
    ) -> None:
        super().__init__(plan, device, reason)
        if threads is not None and not 1 <= whole_number("threads", threads) <= MOST_THREADS:
            raise SpecError(f"threads {threads}; wanted 1..{MOST_THREADS}, or None to choose from the cores")
        if memory not in MEMORIES:
            raise SpecError(f"loader memory {memory!r}; wanted one of {', '.join(MEMORIES)}")
        self.threads = threads or min(available_cores(), 4)
        self.memory = memory
        self._files, self._mapped = MappedFiles.of(self.selection), memory == "map"
        arrays = self._files.maps if self._mapped else [self._copy(file) for file in range(len(self._files.maps))]
        count = len(self.selection.partitions)
        self._table = FrameTable(self.selection, arrays[:count], arrays[count:] or None)

    def _copy(self, file: int) -> np.ndarray:
        """A copy in RAM of one of the files."""
        mapped = self._files.maps[file]
        copy = np.empty(mapped.shape, mapped.dtype)
        self._files.read(file, 0, copy)
        return copy

    def _batches(self, order: AnyOrder, start_batch: int) -> Iterator[WindowBatch]:
        if start_batch >= self.batches_per_epoch:
            return
        if self._mapped:
            self._files.check()
            self._files.populate()
        # One that the caller reads and one for each thread that makes the next; on CUDA one more is on its way.
        slots = self.threads + (2 if self.device.type == "cuda" else 1)
        ring = Ring(self.plan, self.device, slots)
        make, stop = partial(self._produce, order, ring), self.batches_per_epoch
        prefetcher = Prefetcher(make, start_batch, stop, slots, self.threads - 1, helps=True)
        self._prefetchers.add(prefetcher)
        try:
            for index in range(start_batch, stop):
                yield ring.batch(index % slots, prefetcher.take())
                ring.transfer.release(index % slots)
                prefetcher.release()
        finally:
            prefetcher.close()
            ring.transfer.close()

    def _one_batch(self, order: AnyOrder, index: int) -> WindowBatch:
        ring = Ring(self.plan, self.device, 1)
        batch = ring.batch(0, self._produce(order, ring, index, 0))
        ring.transfer.close()
        return batch

    def _produce(self, order: AnyOrder, ring: Ring, index: int, slot: int) -> int:
        if self._mapped:
            self._files.check()
        start, stop = self.plan.bounds(index)
        count = stop - start
        frames, labels = ring.begin(slot)
        order.into(start, frames[:count])
        self._table.gather(
            frames[:count], labels[:count], self.window, ring.address(slot), ring.pitch, ring.numpy_dtype
        )
        ring.send(slot)
        return count

    def close(self) -> None:
        super().close()
        self._files.close()


class Ring:
    """`slots` batches of memory, page-locked and mirrored on the device where that is CUDA."""

    def __init__(self, plan: BatchPlan, device: torch.device, slots: int):
        self._device, self._plan = device, plan
        self._dtype = getattr(torch, plan.dtype)
        self.numpy_dtype = np.dtype(plan.dtype)
        self._dim = plan.selection.corpus.feature_dim
        capacity = plan.slots
        self.pitch = _lines(plan.window.width * self._dim * self.numpy_dtype.itemsize)
        self._frames_at = capacity * self.pitch
        self._labels_at = self._frames_at + _lines(8 * capacity)
        size = self._labels_at + _lines(8 * capacity)
        cuda = device.type == "cuda"
        memory = torch.empty(slots * size, dtype=torch.uint8, pin_memory=True) if cuda else _plain(slots * size)
        # A page-locked or mapped block begins on a page.
        self._host = memory[: slots * size].view(slots, size)
        self.transfer = Transfer(device, slots)
        self._device_side = torch.empty((slots, size), dtype=torch.uint8, device=device) if cuda else self._host
        self._numpy = [
            (part[self._frames_at :].view(np.int64)[:capacity], part[self._labels_at :].view(np.int64)[:capacity])
            for part in self._host.numpy()
        ]
        self._full = [self._view(block, capacity) for block in self._device_side]

    def address(self, slot: int) -> int:
        """Where the slot's first window lies in host memory."""
        return self._host.data_ptr() + slot * self._host.stride(0)

    def begin(self, slot: int) -> tuple[np.ndarray, np.ndarray]:
        """The slot's frames (B,) and labels (B,) to be written, once its last transfer is over."""
        self.transfer.wait(slot)
        return self._numpy[slot]

    def send(self, slot: int) -> None:
        """The slot is written: start its transfer."""
        both = [] if self._device_side is self._host else [(self._device_side[slot], self._host[slot])]
        self.transfer.send(slot, both)

    def batch(self, slot: int, count: int) -> WindowBatch:
        """The first `count` windows of the slot, on the device."""
        self.transfer.receive(slot)
        batch = self._full[slot]
        if count < self._plan.slots:
            batch = batch.apply(lambda part: part[:count])
        if self._device.type not in ("cpu", "cuda"):
            batch = batch.apply(lambda part: part.to(self._device))
        return batch

    def _view(self, block: torch.Tensor, count: int) -> WindowBatch:
        width, dim, pitch = self._plan.window.width, self._dim, self.pitch // self.numpy_dtype.itemsize
        windows = block[: self._frames_at].view(self._dtype).as_strided((count, width, dim), (pitch, dim, 1))
        frames = block[self._frames_at : self._frames_at + 8 * count].view(torch.int64)
        labels = block[self._labels_at : self._labels_at + 8 * count].view(torch.int64)
        return WindowBatch(windows, labels if self._plan.selection.labelled else None, frames)


class Transfer:
    """Copies of slots to a device: to CUDA on a stream of their own, elsewhere while `send` runs.

    Two events guard a slot. `sent`: the host side is refilled only when its copy is over. `read`: the device side is
    overwritten only when the work that the consumer had enqueued on it is over.
    """

    def __init__(self, device: torch.device, slots: int):
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self._stream is None:
            return
        # The allocator may hand out memory that the current stream still reads.
        self._stream.wait_stream(torch.cuda.current_stream(device))
        # Who waits for `sent` sleeps: by default an event is waited for by spinning, a core for each thread.
        self._sent = [torch.cuda.Event(blocking=True) for _ in range(slots)]
        self._read = [torch.cuda.Event() for _ in range(slots)]

    def wait(self, slot: int) -> None:
        """Block until the slot's last copy is over (at once where there was none)."""
        if self._stream is not None:
            self._sent[slot].synchronize()

    def send(self, slot: int, copies: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Copy each (device side, host side, on CUDA pinned) of the slot, after the consumer's last use of it."""
        if self._stream is None:
            for target, source in copies:
                target.copy_(source)
            return
        # A thread starts on device 0; leaving a stream from there would open a context on that device, for every rank.
        with torch.cuda.device(self._stream.device), torch.cuda.stream(self._stream):
            self._stream.wait_event(self._read[slot])
            for target, source in copies:
                target.copy_(source, non_blocking=True)
            self._sent[slot].record(self._stream)

    def receive(self, slot: int) -> None:
        """Let the current stream wait for the copy; the host does not."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_event(self._sent[slot])

    def release(self, slot: int) -> None:
        """What the current stream has enqueued so far is the slot's last use."""
        if self._stream is not None:
            self._read[slot].record(torch.cuda.current_stream(self._device))

    def close(self) -> None:
        """Wait for the copies under way, so that the memory can go."""
        if self._stream is not None:
            self._stream.synchronize()


def _plain(size: int) -> torch.Tensor:
    """Memory of large pages, where the system has them: a ring is touched in 2 MB steps, not in 4 kB ones."""
    # Without flags it would be shared with forked children, and of small pages.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, size, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # A kernel without them refuses; its small pages do.
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _lines(size: int) -> int:
    return -(-size // LINE) * LINE
