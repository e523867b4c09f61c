"""SlabLoader: the corpus streams through a pool of slabs on the device, and windows are gathered there.

For corpora larger than the device, or on drives that are slow at random: each frame crosses once (and P slabs twice),
where windows would cross W times.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from .base import AnyOrder, BatchPlan, Loader
from .host import HostLoader, Transfer
from .order import SlabOrder, num_slabs, slab_bounds
from .prefetch import Prefetcher
from .resident import RowStore
from .rows import JoinedRows
from .window_kernel import buckets_of, pool_rows
from .windows import WindowBatch

NOTES = 8
"""Batches that the host may be ahead of the device."""
LEAD = 2
"""Slabs that are read ahead of the step that needs them."""


class SlabLoader(Loader):
    """Batches of order "slab" from a pool that is refilled behind the training; the order decides what it holds."""

    kind = "slab"
    orders = ("slab",)

    def __init__(self, plan: BatchPlan, device: str | torch.device = "cpu", reason: str = "") -> None:
        super().__init__(plan, device, reason)
        selection, context = plan.selection, plan.selection.corpus.context
        self._joined = JoinedRows(selection)
        self._direct: HostLoader | None = None
        self._ends = np.ascontiguousarray(selection.utterance_end[:, None])
        self._buckets, self._shift = buckets_of(selection.utterance_end)
        bounds = slab_bounds(self.num_frames, num_slabs(self.num_frames, plan.slab_frames))
        first, last = (np.searchsorted(selection.utterance_end, f, side="right") for f in (bounds[:-1], bounds[1:] - 1))
        self._first_row = bounds[:-1] + context * (first + 1) - self.window.left
        self._end_row = bounds[1:] + context * (last + 1) + self.window.right
        self._slab_rows = int((self._end_row - self._first_row).max())

    def _batches(self, order: AnyOrder, start_batch: int) -> Iterator[WindowBatch]:
        assert isinstance(order, SlabOrder)  # `orders` holds no other
        if start_batch >= self.batches_per_epoch:
            return
        end = self.plan.bounds(self.batches_per_epoch - 1)[1]
        shortest = int(np.diff(order.step_start).min())
        spanned = min(order.num_slabs, self.plan.slots // shortest + 2 if shortest else order.num_slabs)
        slots = order.num_cells + spanned + LEAD
        pool = Pool(self._joined, self._slab_rows, slots, self.plan, self.device)
        notes = Notes(self.plan.slots, self.device)
        released = taken = order.step_of(self.plan.bounds(start_batch)[0]) - order.num_cells + 1
        last_load = order.step_of(end - 1)
        prefetcher = Prefetcher(partial(self._load, order, pool), taken, last_load + 1, slots, 1)
        self._prefetchers.add(prefetcher)
        try:
            for index in range(start_batch, self.batches_per_epoch):
                start, stop = self.plan.bounds(index)
                if stop > start:
                    while released + order.num_cells <= order.step_of(start):
                        pool.transfer.release(released % slots)
                        prefetcher.release()
                        released += 1
                    while taken <= order.step_of(stop - 1):
                        pool.transfer.receive(prefetcher.take())
                        taken += 1
                yield self._gather(order, pool, notes, start, stop)
        finally:
            prefetcher.close()
            pool.transfer.close()

    def _gather(self, order: SlabOrder, pool: Pool, notes: Notes, start: int, stop: int) -> WindowBatch:
        both = notes.take(stop - start)
        frames, rows = both.numpy()
        loads = np.empty(stop - start, np.int64)
        order.into(start, frames, loads)
        pool_rows(
            frames,
            loads,
            rows,
            self._ends,
            self._buckets,
            self._shift,
            self._joined.context,
            order.sequence,
            self._first_row,
            self._slab_rows,
            pool.slots,
        )
        frames, rows = notes.send(both)
        return WindowBatch(pool.store.windows(rows - self.window.left), pool.store.labels_at(rows), frames)

    def _load(self, order: SlabOrder, pool: Pool, load: int, slot: int) -> int:
        slab = int(order.sequence[load % order.num_slabs])
        first, end = int(self._first_row[slab]), int(self._end_row[slab])
        pool.fill(slot, end - first, partial(self._joined.read, first, end))
        return slot

    def _one_batch(self, order: AnyOrder, index: int) -> WindowBatch:
        # One batch needs no pool.
        self._direct = self._direct or HostLoader(self.plan, self.device, threads=1)
        return self._direct._one_batch(order, index)

    def close(self) -> None:
        super().close()
        if self._direct is not None:
            self._direct.close()
        self._joined.close()


class Notes:
    """Host memory for the frames and rows of a batch, which the host writes and the device reads.

    Page-locked on CUDA, so that a copy need not wait for the steps before it. A few in turn: to a host that runs ahead
    of the device torch's allocator gives newly locked pages for each batch, and locking waits for the device.
    """

    def __init__(self, most: int, device: torch.device):
        self._device, self._turn = device, 0
        cuda = device.type == "cuda"
        self._memory = torch.empty((NOTES if cuda else 1, 2 * most), dtype=torch.int64, pin_memory=cuda)
        self._sent = [torch.cuda.Event(blocking=True) for _ in range(NOTES)] if cuda else None

    def take(self, count: int) -> torch.Tensor:
        """Memory (2, count) int64 to be written, once it is not read any more."""
        if self._device.type == "cpu":
            return torch.empty((2, count), dtype=torch.int64)
        self._turn = (self._turn + 1) % len(self._memory)
        if self._sent is not None:
            self._sent[self._turn].synchronize()
        return self._memory[self._turn, : 2 * count].view(2, count)

    def send(self, both: torch.Tensor) -> torch.Tensor:
        """What was taken and written, on the device or on its way there."""
        there = both.to(self._device, non_blocking=self._sent is not None)
        if self._sent is not None:
            self._sent[self._turn].record(torch.cuda.current_stream(self._device))
        return there


class Pool:
    """Room for `slots` slabs of rows and labels on the device; on CUDA they come through two pinned slabs in turn."""

    def __init__(self, joined: JoinedRows, slab_rows: int, slots: int, plan: BatchPlan, device: torch.device):
        self.slots, self._slab_rows = slots, slab_rows
        self.store = RowStore(joined, slots * slab_rows, plan, device)
        cuda = device.type == "cuda"
        self.transfer = Transfer(device, slots)
        # Each with the slot that it was last sent to. Slots are more than two, so that slot's event is of that sending.
        self._staging: deque[tuple[list[torch.Tensor], int | None]] = deque()
        if device.type != "cpu":
            self._staging.extend((self._host_slab(cuda), None) for _ in range(2 if cuda else 1))

    def _host_slab(self, pinned: bool) -> list[torch.Tensor]:
        parts = self._parts(0, self._slab_rows)
        return [torch.empty(part.shape, dtype=part.dtype, pin_memory=pinned) for part in parts]

    def _parts(self, slot: int, count: int) -> list[torch.Tensor]:
        part = slice(slot * self._slab_rows, slot * self._slab_rows + count)
        return [tensor[part] for tensor in self.store.tensors]

    def fill(self, slot: int, count: int, read: Callable[..., None]) -> None:
        """`read(rows, labels)` writes `count` rows on the host; they are in the slot, or on the way, at return."""
        targets = self._parts(slot, count)
        if not self._staging:
            read(*(part.numpy() for part in targets))
            return
        slab, sent_to = self._staging.popleft()
        if sent_to is not None:
            # The slab before last: its copy waits for the consumer, and meanwhile the last one was read.
            self.transfer.wait(sent_to)
        sources = [part[:count] for part in slab]
        read(*(part.numpy() for part in sources))
        self.transfer.send(slot, list(zip(targets, sources)))
        self._staging.append((slab, slot))
