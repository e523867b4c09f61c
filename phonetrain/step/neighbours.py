"""Neighbours: the frames around a window's middle one, which nets with `model.neighbours` predict as well."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Self

import numpy as np
import torch
from torch import Tensor

from phonedata import Selection


class Neighbours:
    """What a net with `model.neighbours` = n learns from, and how its predictions become the score of a frame.

    The net gives logits of 2n + 1 frames for every window: of the middle one and of n on each side. In training each
    has its label; beyond an utterance's ends its first and last label are repeated. A frame's score is the mean of the
    log posteriors of all windows of its utterance that predict it, normalised again (multi-frame prediction: Jaitly,
    Vanhoucke, Hinton, "Autoregressive product of multi-frame predictions can improve the accuracy of hybrid models",
    Interspeech 2014).

    Tables lie on the device, so that labels cost a captured step no word from the host: FRAME_BYTES a frame.

    Parameters
    ----------
    utterance_end: (U,) int64 cumulative frame counts. reach: n, 1 or more.
    labels: (N,) whole numbers of 0 to 32,767, or None where nobody asks for them.
    """

    FRAME_BYTES = 4

    def __init__(
        self,
        utterance_end: np.ndarray,
        reach: int,
        device: torch.device | str = "cpu",
        labels: np.ndarray | None = None,
    ) -> None:
        lengths = np.diff(utterance_end, prepend=0)
        self.reach, self.num_frames = reach, int(utterance_end[-1])
        before, after = (np.full(self.num_frames, reach, np.uint8) for _ in range(2))
        for distance in range(reach):  # from an end; in place, for whole numbers of 8 bytes a frame would be gigabytes
            longer = lengths > distance
            ends = utterance_end[longer]
            before[ends - lengths[longer] + distance] = distance
            after[ends - 1 - distance] = distance
        self.before, self.after = torch.from_numpy(before).to(device), torch.from_numpy(after).to(device)
        self.table = None if labels is None else torch.from_numpy(labels.astype(np.int16)).to(device)
        self.offsets = torch.arange(-reach, reach + 1, device=device)

    @classmethod
    def of(cls, selection: Selection, reach: int, device: torch.device | str = "cpu") -> Self:
        """Those of a selection's frames, with its labels where it has some."""
        labels = None
        if selection.labelled:
            lengths = np.diff(selection.utterance_end, prepend=0)
            parts = zip(selection.utterance_source, selection.utterance_start_row, lengths, strict=True)
            every = [np.asarray(part.labels) for part in selection.partitions]
            labels = np.concatenate([every[source][row : row + length] for source, row, length in parts])
        return cls(selection.utterance_end, reach, device, labels)

    def labels(self, frames: Tensor) -> Tensor:
        """(B, 2n + 1) int64 labels of what the windows of `frames`, (B,) int64, predict, the middle frame's among them.

        Nothing here asks the device for a number.
        """
        assert self.table is not None, "a selection with labels"
        least, most = -self.before[frames].long(), self.after[frames].long()
        offsets = torch.minimum(torch.maximum(self.offsets, least[:, None]), most[:, None])
        return self.table[frames[:, None] + offsets].long()

    def scores(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Log posteriors (B', C) float32 of all frames, in order, some of them each time.

        batches: logits (B, 2n + 1, C) of the windows of all frames, in order. A frame has to wait for the n windows
        after its own, so as many predictions are kept; memory does not grow with the frames.
        """
        waiting: Tensor | None = None
        first = done = seen = 0  # the frames of the first window that is kept, of the next score, of the next window
        for logits in batches:
            rows = logits.float().log_softmax(2)
            waiting, seen = rows if waiting is None else torch.cat([waiting, rows]), seen + len(rows)
            stop = seen if seen == self.num_frames else seen - self.reach
            if stop > done:
                yield self.mean(waiting, first, done, stop)
                keep = max(stop - self.reach, first)
                waiting, first, done = waiting[keep - first :], keep, stop

    def mean(self, rows: Tensor, first: int, start: int, stop: int) -> Tensor:
        """Scores (stop - start, C) of frames start..stop-1. rows: (R, 2n + 1, C) of the windows of frame `first` on."""
        frames = torch.arange(start, stop, device=rows.device)
        before, after = self.before[start:stop].long(), self.after[start:stop].long()
        total = torch.zeros((stop - start, rows.shape[2]), device=rows.device)
        for place, offset in enumerate(range(-self.reach, self.reach + 1)):
            # The window that predicts frame t at this place is that of frame t - offset, if there is one.
            there = before >= offset if offset > 0 else after >= -offset
            window = (frames - offset - first).clamp(0, len(rows) - 1)
            total += torch.where(there[:, None], rows[window, place], 0.0)
        return (total / (before + after + 1)[:, None]).log_softmax(1)
