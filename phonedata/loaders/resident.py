"""ResidentLoader: all rows on the device; order, lookup and gather are done there, so a CUDA graph can hold them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ..errors import SpecError
from .base import AnyOrder, BatchPlan, Loader
from .order import SequentialOrder, SlabOrder
from .permutation import device_frames
from .rows import JoinedRows
from .windows import WindowBatch

TABLE_FRAMES = 1 << 20
"""Frames whose order and rows are worked out at once: one row of some hundred small operations for many batches."""
CPU_TABLE_FRAMES = 1 << 18
PIECE_ROWS = 1 << 20
"""Rows read and sent at once when the corpus moves in."""


class ResidentLoader(Loader):
    """Windows gathered from rows that lie on the device as one array, whatever partitions they came from.

    Frame `f` of the selection's utterance `u` is row `f + context * (u + 1)` there, as in a packed partition.
    `epoch` and `batch` work on any device. `device_batch` is the same without the host, for a captured training step;
    the order comes out of a table that `fill_table` writes for `table_batches` batches at once.
    """

    kind = "resident"
    gathers_on_device = True

    @classmethod
    def scoring_batch(cls, device: torch.device) -> int:
        """On a GPU as many as keep it busy while the host launches the next."""
        return 32768 if device.type == "cuda" else super().scoring_batch(device)

    def __init__(self, plan: BatchPlan, device: str | torch.device = "cpu", reason: str = "") -> None:
        super().__init__(plan, device, reason)
        joined = JoinedRows(plan.selection)
        self._context = joined.context
        self._store = RowStore(joined, joined.num_rows, plan, self.device)
        upload(joined, self._store)
        joined.close()
        self._ends = torch.tensor(plan.selection.utterance_end, device=self.device)
        start, stop = plan.bounds(0)
        self._full = stop - start  # this rank's frames of a full batch
        frames = CPU_TABLE_FRAMES if self.device.type == "cpu" else TABLE_FRAMES
        self.table_batches = min(max(1, frames // plan.largest_batch), self.batches_per_epoch)

    def new_table(self) -> torch.Tensor:
        """Room for `fill_table`, (2 or, with labels, 3; table_batches; largest batch) int64 on the device."""
        lists, size = 2 if self._store.labels is None else 3, self.plan.largest_batch
        return torch.zeros((lists, self.table_batches, size), dtype=torch.int64, device=self.device)

    def fill_table(self, table: torch.Tensor, epoch: int, first: int) -> None:
        """Write the frames, the windows' first rows and the labels of batch `first` of `epoch` and of those after it.

        As many as fit or as the epoch has. The host waits for nothing.
        """
        self._check_open()
        self.plan.check_batch(first, self.batches_per_epoch - 1)
        base = self.plan.bounds(first)[0]
        stop = self.plan.bounds(min(first + self.table_batches, self.batches_per_epoch) - 1)[1]
        table.view(len(table), -1)[:, : stop - base] = self._places(self.plan.epoch_order(epoch), base, stop)

    def device_batch(self, table: torch.Tensor, place: torch.Tensor) -> WindowBatch:
        """The full batch at `place` in a table, with nothing read or decided by the host: two launches.

        `place` () or (1,) int64 on the device: 0 is the batch that the table was filled from. A graph's owner writes
        table and place between replays. A short last batch is not one of these.
        """
        if table.shape[1:] != (self.table_batches, self.plan.largest_batch):
            raise SpecError(f"table of shape {tuple(table.shape)}; wanted what new_table() returns")
        return self._gather(table.index_select(1, place.view(1))[:, 0, : self._full], None)

    def _batches(self, order: AnyOrder, start_batch: int) -> Iterator[WindowBatch]:
        buffers: list[torch.Tensor | None] = [None, None]
        if self.device.type == "cpu":
            # malloc returns blocks of this size to the system every time, and page faults cost more than the copy.
            buffers = [self._store.new_buffer(self.plan.slots) for _ in range(2)]
        for first in range(start_batch, self.batches_per_epoch, self.table_batches):
            indices = range(first, min(first + self.table_batches, self.batches_per_epoch))
            base = self.plan.bounds(first)[0]
            places = self._places(order, base, self.plan.bounds(indices[-1])[1])
            for index in indices:
                start, stop = self.plan.bounds(index)
                yield self._gather(places[:, start - base : stop - base], buffers[index % 2])

    def _one_batch(self, order: AnyOrder, index: int) -> WindowBatch:
        return self._gather(self._places(order, *self.plan.bounds(index)), None)

    def _places(self, order: AnyOrder, start: int, stop: int) -> torch.Tensor:
        """The frames at positions `start..stop-1`, the first rows of their windows and, where there are labels, those:
        (2 or 3, stop - start) int64."""
        frames = self._frames(order, start, stop)
        rows = frames + self._context * (torch.searchsorted(self._ends, frames, right=True) + 1)
        labels = self._store.labels_at(rows)
        return torch.stack([frames, rows - self.window.left, *([] if labels is None else [labels])])

    def _frames(self, order: AnyOrder, start: int, stop: int) -> torch.Tensor:
        if self.device.type == "cpu":
            return torch.from_numpy(order.frames(start, stop))
        if isinstance(order, SlabOrder):
            # Page-locked, so that the copy need not wait for the steps before it.
            frames = torch.empty(stop - start, dtype=torch.int64, pin_memory=self.device.type == "cuda")
            order.into(start, frames.numpy())
            return frames.to(self.device, non_blocking=True)
        positions = torch.arange(start, stop, device=self.device)
        if isinstance(order, SequentialOrder):
            return positions
        return device_frames(positions, torch.from_numpy(order.keys.astype(np.int64)).to(self.device), order.cells)

    def _gather(self, places: torch.Tensor, buffer: torch.Tensor | None) -> WindowBatch:
        frames, first_rows, *labels = places
        return WindowBatch(self._store.windows(first_rows, buffer), labels[0] if labels else None, frames)


class RowStore:
    """Rows (R, D) and labels (R,) in one piece of device memory, and the gather of windows from them."""

    def __init__(self, joined: JoinedRows, num_rows: int, plan: BatchPlan, device: torch.device):
        self.rows = torch.empty((num_rows, joined.dim), dtype=getattr(torch, joined.dtype.name), device=device)
        self.labels: torch.Tensor | None = None
        if joined.label_dtype is not None:
            self.labels = torch.empty(num_rows, dtype=getattr(torch, joined.label_dtype.name), device=device)
        self._window, self._dtype = plan.window, getattr(torch, plan.dtype)
        self._view = overlapping(self.rows, plan.window.width)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The rows, and the labels where there are any."""
        return [self.rows] if self.labels is None else [self.rows, self.labels]

    def new_buffer(self, count: int) -> torch.Tensor:
        """Memory for the windows of up to `count` frames, to give to `gather`."""
        return self._view.new_empty((count, self._view.shape[1]))

    def windows(self, first_rows: torch.Tensor, buffer: torch.Tensor | None = None) -> torch.Tensor:
        """The windows (B, W, D) that begin at `first_rows` (B,), in new memory or in `buffer`."""
        out = None if buffer is None else buffer[: len(first_rows)]
        windows = torch.index_select(self._view, 0, first_rows, out=out).view(self.rows.dtype)
        return windows.view(len(first_rows), self._window.width, self.rows.shape[1]).to(self._dtype)

    def labels_at(self, rows: torch.Tensor) -> torch.Tensor | None:
        """The labels of `rows` (B,), (B,) int64, or None where there are none."""
        return None if self.labels is None else self.labels.index_select(0, rows).long()


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
    pieces = [] if on_host else [torch.empty(part[:count].shape, dtype=part.dtype) for part in store.tensors]
    for first in range(0, joined.num_rows, count):
        stop = min(first + count, joined.num_rows)
        targets = [part[first:stop] for part in store.tensors]
        sources = [piece[: stop - first] for piece in pieces] or targets
        joined.read(first, stop, *(part.numpy() for part in sources))
        for target, source in zip(targets, sources if pieces else ()):
            target.copy_(source)
