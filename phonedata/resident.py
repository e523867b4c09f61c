"""ResidentLoader: all rows on the device; order, lookup and gather are done there, so a CUDA graph can hold them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from phonedata.batches import BatchPlan, Loader
from phonedata.errors import SpecError
from phonedata.feistel import KEYS, device_frames, epoch_keys, rectangle
from phonedata.order import EpochOrder
from phonedata.pages import MappedFiles
from phonedata.selection import Selection
from phonedata.windows import WindowBatch

BLOCK_FRAMES = 1 << 18
"""Frames whose order is worked out at once in an epoch: one row of small kernels for many batches."""


class ResidentLoader(Loader):
    """Windows gathered from rows that lie on the device as one array, whatever partitions they came from.

    Frame `f` of the selection's utterance `u` is row `f + context * (u + 1)` there, as in a packed partition.
    `epoch` and `batch` work on any device. `device_batch` is the same without the host: for a captured training step.
    """

    kind = "resident"

    def __init__(self, plan: BatchPlan, device="cpu", *, reason: str = ""):
        super().__init__(plan, device, reason)
        selection = plan.selection
        self._context = selection.corpus.context
        self._rows, self._labels = upload(selection, self.device)
        self._ends = torch.from_numpy(selection.utterance_end).to(self.device)
        self._cells = rectangle(self.num_frames)
        start, stop = plan.bounds(0)
        self._offsets = torch.arange(stop - start, device=self.device)
        self._dtype = getattr(torch, plan.dtype)
        self._view = overlapping(self._rows, self.window.width)

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
            buffers = [self._view.new_empty((self.plan.slots, self._view.shape[1])) for _ in range(2)]
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
        rows = frames + self._context * (utterances + 1)
        out = None if buffer is None else buffer[: len(frames)]
        windows = torch.index_select(self._view, 0, rows - self.window.left, out=out).view(self._rows.dtype)
        windows = windows.view(len(frames), self.window.width, self._rows.shape[1]).to(self._dtype)
        labels = None if self._labels is None else self._labels.index_select(0, rows).long()
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


def runs(selection: Selection) -> list[tuple[int, int, int, int]]:
    """Stretches of utterances that are neighbours in one source: (first, stop, source, row of the first frame).

    Utterances first..stop-1 of the selection, with the padding between them, are consecutive rows of the source.
    """
    source, row = selection.utterance_source, selection.utterance_start_row
    lengths = np.diff(selection.utterance_end, prepend=0)
    joined = (source[1:] == source[:-1]) & (row[1:] == row[:-1] + lengths[:-1] + selection.corpus.context)
    firsts = np.concatenate(([0], np.flatnonzero(~joined) + 1))
    stops = np.append(firsts[1:], len(row))
    return [(a, b, int(source[a]), int(row[a])) for a, b in zip(firsts.tolist(), stops.tolist())]


def upload(selection: Selection, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The selection's rows (R, D) and labels (R,) on the device, as if it had been packed as one partition."""
    partitions, context, ends = selection.partitions, selection.corpus.context, selection.utterance_end
    files = MappedFiles([p.features for p in partitions] + [p.labels for p in partitions if p.labelled])
    files.populate()
    num_rows = selection.num_frames + context * (selection.num_utterances + 1)
    dtype = getattr(torch, selection.corpus.dtype.name)
    rows = torch.zeros((num_rows, selection.corpus.feature_dim), dtype=dtype, device=device)
    labels = None
    if selection.labelled:
        # torch gathers no uint16; int32 holds it.
        small = selection.corpus.phonemes.label_dtype == np.uint8
        labels = torch.zeros(num_rows, dtype=torch.uint8 if small else torch.int32, device=device)
    piece = 1 << 20
    for first, stop, source, row in runs(selection):
        begin = int(ends[first - 1]) if first else 0
        target, length = begin + context * (first + 1), int(ends[stop - 1]) - begin + context * (stop - first - 1)
        for at in range(0, length, piece):
            files.check()
            count = min(piece, length - at)
            part = slice(row + at, row + at + count)
            rows[target + at : target + at + count].copy_(torch.from_numpy(np.array(partitions[source].features[part])))
            if labels is not None:
                host = np.array(partitions[source].labels[part]).astype(np.uint8 if small else np.int32)
                labels[target + at : target + at + count].copy_(torch.from_numpy(host))
    files.close()
    return rows, labels
