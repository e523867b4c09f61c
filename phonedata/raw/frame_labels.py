"""Labels that stand one a frame in files: how many classes, how many frames each, and those that are no class."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import RawDataError, SpecError
from .base import RawCorpus, RawPartition

_LISTED = 10
_LONGEST_LABEL = 8  # frames; 2 to 4 are usual, and more are hardly what is meant
_WIDE = 50  # numbers without a label between two that have some: fewer may be missing in little data


@dataclass(frozen=True)
class LabelOptions:
    """How labels of layouts that have one a frame are read.

    classes: they are the numbers 0..classes-1, whichever occur; None: what phonemes.txt, the layout or the data says.
    label_shift: milliseconds from one label to the next, a multiple of the frame shift; None: every frame has its own.
    """

    classes: int | None = None
    label_shift: float | None = None

    def __post_init__(self) -> None:
        if self.classes is not None and (type(self.classes) is not int or not 1 <= self.classes <= 65535):
            raise SpecError(f"classes {self.classes!r}, wanted how many there are, 1 to 65535")
        if self.label_shift is not None and not 0 < self.label_shift <= 10_000:
            raise SpecError(f"label shift {self.label_shift}, wanted milliseconds from one label to the next")

    def recorded(self, corpus: RawCorpus) -> RawCorpus:
        """`corpus`, opened with these options, with a note of what they did to its labels."""
        if self.label_shift is None:
            return corpus
        said = f"labels every {self.label_shift:g} ms, each for {self.frames_each(corpus.frame_shift_ms)} frames"
        return replace(corpus, derived={**corpus.derived, "label_shift": said}, notes=(*corpus.notes, said))

    def frames_each(self, frame_shift_ms: float) -> int:
        """How many frames a label lasts. Raises SpecError where that is no whole number."""
        count = round((self.label_shift or frame_shift_ms) / frame_shift_ms)
        if self.label_shift is not None and (count < 1 or abs(count * frame_shift_ms - self.label_shift) > 1e-6):
            raise SpecError(
                f"label shift {self.label_shift:g} ms is no multiple of the frame shift, {frame_shift_ms:g} ms; a "
                "frontend.toml with frame_shift_ms says another one"
            )
        return count


def fit_labels(labels: np.ndarray, num_frames: int, frames_each: int, labels_in: str, features_in: str) -> np.ndarray:
    """Labels (num_frames,): each of `labels` (L,) for `frames_each` frames.

    L is num_frames / frames_each, rounded up (the last one is cut) or down (the last one lasts). Raises RawDataError.
    """
    count = len(labels)
    if frames_each == 1 and count == num_frames:
        return labels
    fewest, most = num_frames // frames_each, -(-num_frames // frames_each)
    if count and fewest <= count <= most:
        return labels[np.minimum(np.arange(num_frames) // frames_each, count - 1)]
    if frames_each > 1:
        wanted = f"{fewest} or {most}, each for {frames_each} frames" if fewest < most else f"{most}"
        helps = f"wanted {wanted}; make one of them again, or give another label_shift=MS"
    else:
        each = round(num_frames / max(count, 1))
        rare = 1 < each <= _LONGEST_LABEL and num_frames // each <= count <= -(-num_frames // each)
        helps = f"is there one every {each} frames? label_shift=MS says how far apart they are" if rare else (
            "both must count the same frames: make one of them again, or use skip_bad=True")  # fmt: skip
    raise RawDataError(f"{labels_in}: {count} labels, but {features_in} has {num_frames} frames; {helps}")


def numbered_note(occur: np.ndarray, largest_in: str, otherwise: str = "") -> str:
    """What is said where the classes are the numbers 0..K-1. occur: (K,) bool, whether each does, the last one surely.

    Raises RawDataError where one stretch of numbers that do not is the larger half: a wrong label or two must not make
    hundreds of classes. `otherwise`: what else helps then.
    """
    there, last, absent = np.flatnonzero(occur), len(occur) - 1, int((~occur).sum())
    at = int(np.argmax(np.diff(there, prepend=-1)))
    below, above = (there[at - 1] if at else -1), there[at]
    if above - below > max(_WIDE, len(occur) / 2):
        without = f"between {below} and {above}" if at else f"below {above}"
        raise RawDataError(
            f"{largest_in}: label {last}, but no label is {without}; correct it, or, if there are so many classes, "
            f"classes={last + 1}{', ' + otherwise if otherwise else ''}"
        )
    some = f", of which {absent} never occur" if absent else ""
    return (
        f"{last + 1} classes are the numbers 0..{last}{some}; {last} is the largest that occurs, in {largest_in} "
        "(classes=N fixes how many there are, a phonemes.txt names them)"
    )


def list_strays(utterances: Iterable[tuple[RawPartition | Any, int]]) -> str:
    """The labels of (partition, index) that are no class, with their counts and the first file that has each, as words;
    or "". Asks partitions that have a method `strays`: index -> (file, label -> count).
    """
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for partition, index in utterances:
        if not partition.labelled or not hasattr(partition, "strays"):
            continue
        try:
            file, found = partition.strays(index)
        except RawDataError:
            continue  # what is wrong there is something else
        counts.update(found)
        for label in found:
            first.setdefault(label, file)
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    by_file: dict[str, list[str]] = {}
    for label, count in most[:_LISTED]:
        by_file.setdefault(first[label], []).append(f"{label!r:.60} {count} times")
    listed = "; ".join(f"{', '.join(labels)} (first in {file})" for file, labels in by_file.items())
    return listed + (f"; and {len(most) - _LISTED} more" if len(most) > _LISTED else "")
