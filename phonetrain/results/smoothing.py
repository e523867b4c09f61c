"""Labels that last as long as phones do: the best path through posteriors, or a running median as the simple rival.

The path maximises sum_t scale * log p(class_t | window_t) + sum_t log P(class_t | class_{t-1}) - penalty * changes,
with the transitions counted in the training alignment. Posteriors are taken as they are, not divided by priors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from phonedata import Partition

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
MEDIAN_FRAMES = 5
_ROWS = 1 << 22


@dataclass(frozen=True)
class Transitions:
    """Which phone follows which from one frame to the next, itself included.

    Attributes:
        log_initial: (C,) float32 log probability of an utterance's first frame.
        log_next: (C, C) float32 log probability of the next frame's class (column) after a class (row).
    """

    log_initial: Floats
    log_next: Floats

    @classmethod
    def of(cls, counts: npt.NDArray[np.int64], first: npt.NDArray[np.int64]) -> Transitions:
        """From counts of pairs (C, C) and of first frames (C,), each half a count more: nothing is impossible."""
        following, initial = counts + 0.5, first + 0.5
        log_next = np.log(following / following.sum(1, keepdims=True))
        return cls(np.log(initial / initial.sum()).astype(np.float32), log_next.astype(np.float32))


@dataclass(frozen=True)
class LabelCounts:
    """Counts of the training labels, from which priors and transitions are made.

    Attributes:
        frames: (C,) int64 frames of each class.
        first: (C,) int64 utterances that begin with it.
        pairs: (C, C) int64 neighbouring frames of an utterance: class of the earlier (row), of the later (column).
    """

    frames: Ints
    first: Ints
    pairs: Ints

    @property
    def transitions(self) -> Transitions:
        return Transitions.of(self.pairs, self.first)

    @property
    def log_priors(self) -> Floats:
        """(C,) log of each class's share of the frames; half a frame more each, so that none is -inf."""
        counts = self.frames + 0.5
        return np.asarray(np.log(counts / counts.sum()), np.float32)


def count_labels(partitions: Sequence[Partition]) -> LabelCounts:
    """Count the labels of labelled `partitions`, a few million rows at a time."""
    classes = len(partitions[0].corpus.phonemes)
    pairs, first, frames = (np.zeros(shape, np.int64) for shape in ((classes, classes), classes, classes))
    for source in partitions:
        assert source.labels is not None and source.label_histogram is not None
        frames += source.label_histogram
        starts = source.utterance_start_row
        first += np.bincount(source.labels[starts], minlength=classes)
        for begin in range(0, source.num_rows, _ROWS):
            rows = np.asarray(source.labels[begin : begin + _ROWS + 1], np.int64)
            before, after = rows[:-1], rows[1:]
            kept = (before < classes) & (after < classes)  # the others are padding
            inside = starts[(starts > begin) & (starts < begin + len(rows))]
            kept[inside - begin - 1] = False  # without padding between them two utterances touch
            found = np.bincount(before[kept] * classes + after[kept], minlength=classes**2)
            pairs += found.reshape(classes, classes)
    return LabelCounts(frames, first, pairs)


def viterbi(
    log_posteriors: Floats, transitions: Transitions, scale: float = 1.0, penalty: float = 0.0
) -> npt.NDArray[np.int64]:
    """(N,) the best path. log_posteriors: (N, C) float32. penalty: nats for each change of class."""
    log_next = transitions.log_next - np.float32(penalty) * (1 - np.eye(len(transitions.log_next), dtype=np.float32))
    path: npt.NDArray[np.int64] = _best_path(
        np.ascontiguousarray(log_posteriors), np.ascontiguousarray(log_next), transitions.log_initial, np.float32(scale)
    )
    return path


@njit(cache=True, nogil=True)
def _best_path(scores: Floats, log_next: Floats, log_initial: Floats, scale: Any) -> npt.NDArray[np.int64]:
    frames, classes = scores.shape
    back = np.empty((frames, classes), np.uint16)
    before, best, source = np.empty(classes, np.float32), np.empty(classes, np.float32), np.empty(classes, np.int32)
    for j in range(classes):
        before[j] = log_initial[j] + scale * scores[0, j]
    for t in range(1, frames):
        best[:] = -np.inf
        source[:] = 0
        for i in range(classes):
            start = before[i]
            for j in range(classes):  # over the targets, so that the compiler makes vectors of it
                value = start + log_next[i, j]
                better = value > best[j]
                best[j] = value if better else best[j]
                source[j] = i if better else source[j]
        highest = best.max()  # taken off, so that float32 keeps its digits in a long utterance
        for j in range(classes):
            back[t, j] = source[j]
            before[j] = best[j] - highest + scale * scores[t, j]
    path = np.empty(frames, np.int64)
    path[-1] = before.argmax()
    for t in range(frames - 1, 0, -1):
        path[t - 1] = back[t, path[t]]
    return path


def median_labels(log_posteriors: Floats, width: int = MEDIAN_FRAMES) -> npt.NDArray[np.int64]:
    """(N,) the class whose running median of log posteriors over `width` frames (odd) is highest."""
    side = width // 2
    padded = np.pad(log_posteriors, ((side, side), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis=0)
    labels: npt.NDArray[np.int64] = np.median(windows, axis=-1).argmax(1)
    return labels
