"""Frames as phones: runs of equal labels, the edit distance of two sequences, and how well their boundaries agree.

R-value: Rasanen, Laine and Altosaar, "An improved speech segmentation quality measure" (2009).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

Ints = npt.NDArray[np.int64]
TOLERANCE_MS = 20.0


def boundaries(labels: Ints) -> Ints:
    """(K,) frames at which another phone begins; the first frame is none. labels: (N,)."""
    return np.flatnonzero(labels[1:] != labels[:-1]) + 1


def phones(labels: Ints) -> tuple[Ints, Ints]:
    """(labels, first frames) of the K runs of equal labels. labels: (N,)."""
    first = np.concatenate((np.zeros(min(1, len(labels)), np.int64), boundaries(labels)))
    return labels[first], first


def distance_to_boundary(labels: Ints) -> Ints:
    """(N,) frames between each frame and the nearest boundary: 0 beside one; N where there is none."""
    edges = boundaries(labels)
    frames = np.arange(len(labels))
    if not len(edges):
        return np.full(len(labels), len(labels))
    after = np.searchsorted(edges, frames, side="right")
    since = np.where(after > 0, frames - edges[np.maximum(after - 1, 0)], len(labels))
    until = np.where(after < len(edges), edges[np.minimum(after, len(edges) - 1)] - 1 - frames, len(labels))
    return np.minimum(since, until)


@njit(cache=True, nogil=True)
def edit_distance(wanted: Ints, found: Ints) -> int:
    """Fewest substitutions, deletions and insertions that turn `found` (M,) into `wanted` (K,)."""
    costs = np.arange(len(found) + 1)
    for row in range(len(wanted)):
        diagonal, costs[0] = costs[0], row + 1
        for column in range(len(found)):
            above = costs[column + 1]
            cost = diagonal + (wanted[row] != found[column])
            costs[column + 1] = min(cost, above + 1, costs[column] + 1)
            diagonal = above
    return int(costs[-1])


@njit(cache=True, nogil=True)
def matched_boundaries(wanted: Ints, found: Ints, tolerance: int) -> Ints:
    """(tolerance + 1,) how many boundaries were found 0, 1, ... frames off, each used at most once, in time order."""
    counts = np.zeros(tolerance + 1, np.int64)
    place = 0
    for edge in wanted:
        while place < len(found) and found[place] < edge - tolerance:
            place += 1
        if place == len(found) or found[place] > edge + tolerance:
            continue
        # A later one may lie nearer, and an earlier boundary of ours has no use for it any more.
        while place + 1 < len(found) and abs(found[place + 1] - edge) < abs(found[place] - edge):
            place += 1
        counts[abs(found[place] - edge)] += 1
        place += 1
    return counts


def tolerance_frames(frame_shift_ms: float) -> int:
    """TOLERANCE_MS in whole frames."""
    return math.floor(TOLERANCE_MS / frame_shift_ms + 1e-9)


class BoundaryScore(NamedTuple):
    """How well boundaries agree; shares of 0 to 1; `off_by_ms`: median distance of the matched. None: no pairs."""

    precision: float | None
    recall: float | None
    f1: float | None
    r_value: float | None
    off_by_ms: float | None


def boundary_score(matched: Ints, wanted: int, found: int, frame_shift_ms: float) -> BoundaryScore:
    """The score of counts. matched: sums of `matched_boundaries`. wanted, found: numbers of boundaries."""
    hits = int(matched.sum())
    if not wanted or not found or not hits:
        return BoundaryScore(0.0 if found else None, 0.0 if wanted else None, None, None, None)
    precision, recall = hits / found, hits / wanted
    over = found / wanted - 1.0
    to_ideal = math.hypot(1.0 - recall, over)
    to_line = (recall - 1.0 - over) / math.sqrt(2.0)
    median = int(np.searchsorted(np.cumsum(matched), hits / 2))
    return BoundaryScore(
        precision,
        recall,
        2.0 * precision * recall / (precision + recall),
        1.0 - (to_ideal + abs(to_line)) / 2.0,
        median * frame_shift_ms,
    )
