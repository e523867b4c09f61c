"""ResidentLoader: all rows on the device; order, lookup and gather are done there, so a CUDA graph can hold them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from phonedata.batches import BatchPlan, Loader
from phonedata.errors import SpecError
from phonedata.feistel import KEYS, device_frames, epoch_keys, rectangle
from phonedata.joined import JoinedRows
from phonedata.order import EpochOrder
from phonedata.windows import WindowBatch

BLOCK_FRAMES = 1 << 18
"""Frames whose order is worked out at once in an epoch: one row of small kernels for many batches."""
PIECE_ROWS = 1 << 20
"""Rows read and sent at once when the corpus moves in."""


class ResidentLoader(Loader):
    """Windows gathered from rows that lie on the device as one array, whatever partitions they came from.

    Frame `f` of the selection's utterance `u` is row `f + context * (u + 1)` there, as in a packed partition.
    `epoch` and `batch` work on any device. `device_batch` is the same without the host: for a captured training step.
    """

    kind = "resident"

    def __init__(self, plan: BatchPlan, device="cpu", *, reason: str = ""):
        super().__init__(plan, device, reason)
        joined = JoinedRows(plan.selection)
        self._context = joined.context
        self._store = RowStore(joined, joined.num_rows, plan, self.device)
        upload(joined, self._store)
        joined.close()
        self._ends = torch.tensor(plan.selection.utterance_end, device=self.device)
        self._cells = rectangle(self.num_frames)
        start, stop = plan.bounds(0)
        self._offsets = torch.arange(stop - start, device=self.device)

    def epoch_keys(self, epoch: int) -> torch.Tensor:
        """What `device_batch` needs to know of an epoch: (KEYS,) int64 on the device."""
        return torch.from_numpy(epoch_keys(self.plan.seed, epoch).astype(np.int64)).to(self.device)

    def device_batch(self, keys: torch.Tensor, start: torch.Tensor) -> WindowBatch:
        """The full batch whose first position on this rank is `start`, with nothing read or decided by the host.

        `keys` (KEYS,) int64 from `epoch_keys` and `start` () or (1,) int64 lie on the device; a graph's
        owner writes new values into them between replays: `start = plan.bounds(index)[0]`. Orders "global" and
        "sequential"; a short last batch is not one of these.
        """
        if keys.shape != (KEYS,):
            raise SpecError(f"keys of shape {tuple(keys.shape)}; wanted what epoch_keys(epoch) returns")
        if self.plan.order == "slab":
            raise SpecError("device_batch gives order global or sequential, not slab; iterate over epoch() instead")
        positions = start + self._offsets
        frames = positions if self.plan.order == "sequential" else device_frames(positions, keys, self._cells)
        return self._gather(frames, None)

    def _batches(self, order, start_batch: int) -> Iterator[WindowBatch]:
        buffers = [None, None]
        if self.device.type == "cpu":
            # malloc returns blocks of this size to the system every time, and page faults cost more than the copy.
            buffers = [self._store.new_buffer(self.plan.slots) for _ in range(2)]
        block = max(1, BLOCK_FRAMES // self.batch_size)
        for first in range(start_batch, self.batches_per_epoch, block):
            indices = range(first, min(first + block, self.batches_per_epoch))
            base = self.plan.bounds(first)[0]
            frames = self._frames(order, base, self.plan.bounds(indices[-1])[1])
            for index in indices:
                start, stop = self.plan.bounds(index)
                yield self._gather(frames[start - base : stop - base], buffers[index % 2])

    def _one_batch(self, order, index: int) -> WindowBatch:
        return self._gather(self._frames(order, *self.plan.bounds(index)), None)

    def _frames(self, order, start: int, stop: int) -> torch.Tensor:
        if self.device.type != "cpu" and isinstance(order, EpochOrder):
            positions = torch.arange(start, stop, device=self.device)
            keys = torch.from_numpy(order.keys.astype(np.int64)).to(self.device)
            return device_frames(positions, keys, order.cells)
        return torch.from_numpy(order.frames(start, stop)).to(self.device)

    def _gather(self, frames: torch.Tensor, buffer: torch.Tensor | None) -> WindowBatch:
        utterances = torch.searchsorted(self._ends, frames, right=True)
        return self._store.gather(frames, frames + self._context * (utterances + 1), buffer)


class RowStore:
    """Rows (R, D) and labels (R,) in one piece of device memory, and the gather of windows from them."""

    def __init__(self, joined: JoinedRows, num_rows: int, plan: BatchPlan, device: torch.device):
        self.rows = torch.empty((num_rows, joined.dim), dtype=getattr(torch, joined.dtype.name), device=device)
        self.labels = None
        if joined.label_dtype is not None:
            self.labels = torch.empty(num_rows, dtype=getattr(torch, joined.label_dtype.name), device=device)
        self._window, self._dtype = plan.window, getattr(torch, plan.dtype)
        self._view = overlapping(self.rows, plan.window.width)

    def new_buffer(self, count: int) -> torch.Tensor:
        """Memory for the windows of up to `count` frames, to give to `gather`."""
        return self._view.new_empty((count, self._view.shape[1]))

    def gather(self, frames: torch.Tensor, rows: torch.Tensor, buffer: torch.Tensor | None = None) -> WindowBatch:
        """The batch of `frames` (B,), which lie at `rows` (B,): B windows in new memory or in `buffer`."""
        out = None if buffer is None else buffer[: len(frames)]
        windows = torch.index_select(self._view, 0, rows - self._window.left, out=out).view(self.rows.dtype)
        windows = windows.view(len(frames), self._window.width, self.rows.shape[1]).to(self._dtype)
        labels = None if self.labels is None else self.labels.index_select(0, rows).long()
        return WindowBatch(windows, labels, frames)


def overlapping(rows: torch.Tensor, width: int) -> torch.Tensor:
    """All windows of `rows` (R, D) as a view (R - W + 1, K) of the widest integers that fill a row: fewer moves.

    Row `k` of it holds the bytes of `rows[k : k + width]`.
    """
    row_bytes = rows.shape[1] * rows.element_size()
    lane = next(kind for kind in (torch.int64, torch.int32, torch.int16) if row_bytes % kind.itemsize == 0)
    lanes = row_bytes // lane.itemsize
    flat = rows.reshape(-1).view(lane)
    return flat.as_strided((rows.shape[0] - width + 1, width * lanes), (lanes, 1))


def upload(joined: JoinedRows, store: RowStore) -> None:
    """Read all rows into the store, in order, a piece at a time."""
    on_host = store.rows.device.type == "cpu"
    count = min(PIECE_ROWS, joined.num_rows)
    piece = None if on_host else torch.empty((count, joined.dim), dtype=store.rows.dtype)
    label_piece = None if on_host or store.labels is None else torch.empty(count, dtype=store.labels.dtype)
    for first in range(0, joined.num_rows, count):
        part = slice(first, min(first + count, joined.num_rows))
        length = part.stop - first
        rows = store.rows[part] if on_host else piece[:length]
        labels = None if store.labels is None else store.labels[part] if on_host else label_piece[:length]
        joined.read(first, part.stop, rows.numpy(), None if labels is None else labels.numpy())
        if not on_host:
            store.rows[part].copy_(rows)
            if labels is not None:
                store.labels[part].copy_(labels)
