"""pack_utterances: packs utterances that a Python program yields, by the same code as a raw folder.

What arrives is read once: it is staged in two files on the target's disk, features as they are and labels as numbers,
and then packed from there like any raw corpus. So statistics over speakers or training data, and a class set that only
the last utterance completes, cost a second pass over our own files and no memory.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import RawDataError, SpecError
from ..files import disk_errors, recover, remove_tree
from ..phonemes import ARPABET, END_MARKS, START_MARKS, PhonemeSet, spellings
from ..raw.base import Problem, RawCorpus, as_features, check_frontend, check_name, frame_shift_of
from ..raw.frame_labels import LabelOptions, fit_labels
from ..raw.label_table import SymbolTable
from .checks import check_options, check_partitions, check_target, find_feature_dim
from .chunk_writer import check_shape
from .executor import check_workers, threads_or
from .journal import Staging
from .pack import build
from .plan import PackOptions
from .report import PackReport

Utterance = tuple[str, str, npt.ArrayLike, npt.ArrayLike | None, str | None]
"""(partition, id, features (T, D), labels (T,) or None, speaker or None)."""
_WANTED = "(partition, id, features, labels or None, speaker or None)"
_NAMED = "symbols=[...]"


def pack_utterances(
    utterances: Iterable[Utterance],
    packed: str | os.PathLike[str],
    *,
    symbols: PhonemeSet | Sequence[str] | None = None,
    cmvn: str = "utterance",
    train_partition: str | None = None,
    dtype: str = "float16",
    context: int = 50,
    frontend: Mapping[str, Any] | None = None,
    label_shift: float | None = None,
    skip_bad: bool = False,
    replace: bool = False,
    workers: int | None = None,
    progress: Callable[..., None] | None = None,
) -> PackReport:
    """Pack what `utterances` yields into the corpus `packed`, whole or not at all; returns what was done.

    Each is (partition, id, features, labels, speaker): features (T, D) float16, float32 or float64; labels (T,) symbols
    or class numbers, or None in a partition that has none; speaker None where it is not known. They are read once, in
    any order of partitions, and keep that order within each; an id may occur once in a partition. An array may be used
    again by the caller as soon as the next utterance is asked for.

    `symbols` are the classes in their order. Without them, class numbers 0..K-1 keep their numbers, with the largest
    that occurs as K-1; symbols are the course's 40 phonemes where all are among them, else what occurs, sorted.
    `frontend` is a table that says how the features were made, as in `frontend.toml`; `frame_shift_ms` in it counts, 10
    without. `label_shift`: milliseconds from one label to the next, a multiple of that; each label is repeated. The
    other options are those of `pack`. The disk holds the features twice meanwhile.

    Raises what `pack` does, SpecError for something else than such a tuple, and whatever `utterances` itself raises.
    """
    started = time.perf_counter()
    target = Path(os.path.realpath(packed))
    options = PackOptions(cmvn, train_partition, dtype, context, skip_bad)
    check_options(options)
    check_workers(None, workers)
    table = check_frontend(dict(frontend), "frontend") if frontend is not None else None
    recover(target)
    check_target(target, replace)
    labels, shift = LabelOptions(label_shift=label_shift), frame_shift_of(table)
    codes = LabelCodes(symbols)
    # No journal of these utterances is ever continued: they cannot be asked for twice.
    staging = Staging(target, f"utterances {uuid.uuid4()}")
    try:
        with _Stage(staging.path / "utterances", codes, skip_bad, labels.frames_each(shift)) as stage:
            stage.take(utterances, progress)
        with disk_errors(target):
            corpus = labels.recorded(stage.corpus(table))
            check_partitions(corpus, options)
            dim = find_feature_dim(corpus)
            with threads_or(None, workers) as threads:
                report = build(corpus, options, dim, staging, target, replace, threads, progress)
    finally:
        staging.remove()
    report.path, report.seconds = Path(packed), time.perf_counter() - started
    return report


class _Stage:
    """The two files in which utterances wait, and what is known of each partition's."""

    def __init__(self, folder: Path, codes: LabelCodes, skip_bad: bool, frames_each: int) -> None:
        self._folder, self._frames_each = folder, frames_each
        with disk_errors(folder):
            remove_tree(folder)
            folder.mkdir()
            self._features = open(folder / "features", "wb")  # noqa: SIM115
            self._labels = open(folder / "labels", "wb")  # noqa: SIM115
        self._partitions: dict[str, StagedPartition] = {}
        self._codes, self._skip_bad = codes, skip_bad
        self._dim: tuple[int, str] | None = None

    def __enter__(self) -> _Stage:
        return self

    def __exit__(self, *_: object) -> None:
        with disk_errors(self._folder):
            self._features.close()
            self._labels.close()

    def take(self, utterances: Iterable[Utterance], progress: Callable[..., None] | None) -> None:
        """Stage every utterance; raises RawDataError for the first bad one, unless they are skipped."""
        for count, one in enumerate(utterances, 1):
            if not isinstance(one, (tuple, list)) or len(one) != 5:
                kinds = ", ".join(type(value).__name__ for value in (one if isinstance(one, (tuple, list)) else [one]))
                raise SpecError(f"utterance {count} is ({kinds}), wanted {_WANTED}")
            name, utterance, features, labels, speaker = one
            for what, value in (("partition", name), ("id", utterance), ("speaker", speaker)):
                if not isinstance(value, str) and not (value is None and what == "speaker"):
                    raise SpecError(f"utterance {count}: its {what} is {value!r:.60}, wanted text; yield {_WANTED}")
            partition = self._partition(name, labels is not None)
            check_name(utterance, "utterance id", name)
            try:
                self._add(partition, utterance, features, labels, speaker)
            except RawDataError as error:
                if not self._skip_bad:
                    raise
                partition.problems.append(Problem(utterance, str(error)))
            if progress:
                progress("reading", count, count, "utterances")
        if not self._partitions:
            raise RawDataError(f"utterances: there are none, wanted {_WANTED} of each")

    def _partition(self, name: str, labelled: bool) -> StagedPartition:
        if name not in self._partitions:
            check_name(name, "partition name", "utterances")
            self._partitions[name] = StagedPartition(name, labelled, self._folder)
        return self._partitions[name]

    def _add(
        self,
        partition: StagedPartition,
        utterance: str,
        features: npt.ArrayLike,
        labels: npt.ArrayLike | None,
        speaker: str | None,
    ) -> None:
        where = f"{partition.name}/{utterance}"
        if speaker is not None and not (speaker.isprintable() and speaker):
            raise RawDataError(
                f"{where}: speaker {speaker!r:.80} is empty or has control characters; name it otherwise"
            )
        if utterance in partition.seen:
            raise RawDataError(f"{where}: the id {utterance} was seen already in {partition.name}; yield it once")
        if (labels is not None) != partition.labelled:
            has, others = ("labels", "none") if labels is not None else ("no labels", "some")
            raise RawDataError(f"{where}: has {has}, but those before it in {partition.name} have {others}; part them")
        rows = as_features(_as_array(features, where), where)
        codes = None if labels is None else self._codes.encode(_as_text(_as_array(labels, where), where), where)
        if codes is not None and self._frames_each > 1:
            codes = fit_labels(codes, len(rows), self._frames_each, where, "its array of features")
        if self._dim is None:
            self._dim = rows.shape[1], where
        if not self._skip_bad:
            # Sooner than after the last utterance. Where some are left out, most of them decide what is right.
            check_shape(where, rows, codes, *self._dim)
        partition.seen.add(utterance)
        partition.utterance_ids.append(utterance)
        partition.speakers.append(utterance if speaker is None else speaker)
        partition.shapes.append((*rows.shape, rows.dtype.itemsize == 8))
        partition.places.append((self._features.tell(), self._labels.tell(), 0 if codes is None else len(codes)))
        with disk_errors(self._folder):
            self._features.write(rows.data)
            if codes is not None:
                self._labels.write(codes.data)

    def corpus(self, frontend: dict[str, Any] | None) -> RawCorpus:
        """What was staged, as a raw corpus."""
        phonemes, classes, note = self._codes.finish()
        partitions = tuple(self._partitions[name] for name in sorted(self._partitions))
        for partition in partitions:
            partition.phonemes, partition.classes = phonemes, classes.astype(phonemes.label_dtype)
            partition.lengths_hint = [max(1, frames) for frames, _, _ in partition.shapes]
            partition.seen.clear()
        return RawCorpus(Path("utterances"), "python", partitions, phonemes, frontend, (note,) if note else ())


@dataclass
class StagedPartition:
    """One partition of what was handed over; see raw.RawPartition.

    `shapes` are (T, D, whether float64), `places` (byte of the features, byte of the labels, number of labels),
    `classes` (codes,) the class of each staged label.
    """

    name: str
    labelled: bool
    folder: Path
    utterance_ids: list[str] = field(default_factory=list)
    speakers: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    shapes: list[tuple[int, int, bool]] = field(default_factory=list)
    places: list[tuple[int, int, int]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    lengths_hint: Sequence[int] | None = None
    order: str = "given"
    stamp: str = ""
    written: str = ""

    phonemes: PhonemeSet = ARPABET
    classes: npt.NDArray[Any] = field(default_factory=lambda: np.empty(0, np.uint8))

    def num_frames(self, index: int) -> int | None:
        """See raw.RawPartition.num_frames."""
        return self.shapes[index][0]

    def files_of(self, index: int) -> list[tuple[str, int, int]]:
        """See raw.RawPartition.files_of: its own files are seen by nobody else."""
        return []

    def where(self, index: int) -> str:
        return f"{self.name}/{self.utterance_ids[index]}"

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """See raw.RawPartition.read."""
        (frames, dim, double), (first, first_label, labels) = self.shapes[index], self.places[index]
        dtype = np.float64 if double else np.float32
        features = np.fromfile(self.folder / "features", dtype, frames * dim, offset=first).reshape(frames, dim)
        if not self.labelled:
            return features, None
        return features, self.classes[np.fromfile(self.folder / "labels", np.int32, labels, offset=first_label)]


def _as_array(values: npt.ArrayLike, where: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RawDataError(
            f"{where}: {str(error).splitlines()[0]:.100}; wanted numpy arrays, of the same in each row"
        ) from None


def _as_text(labels: npt.NDArray[Any], where: str) -> npt.NDArray[Any]:
    """Labels as they are, but text in bytes and in Python objects, as HDF5 and lists give it, as text."""
    if labels.dtype == object and labels.ndim == 1:
        kinds = {type(word) for word in labels.tolist()}
        labels = np.array(labels.tolist()) if kinds in ({str}, {bytes}) else labels
    try:
        return np.char.decode(labels, "utf-8") if labels.dtype.kind == "S" else labels
    except UnicodeDecodeError:
        raise RawDataError(f"{where}: labels are bytes that are not UTF-8; give them as text") from None


class LabelCodes:
    """Labels of all utterances as numbers, while the set of classes may still be growing."""

    def __init__(self, symbols: PhonemeSet | Sequence[str] | None) -> None:
        known = symbols if isinstance(symbols, PhonemeSet) or symbols is None else PhonemeSet(tuple(symbols))
        self._known = known
        self._table = None if known is None else SymbolTable(known, _NAMED)
        self._seen: list[str] = []
        self._spelled: set[str] = set()
        self._largest, self._first = -1, ""

    def encode(self, labels: npt.NDArray[Any], where: str) -> npt.NDArray[np.int32]:
        """(T,) labels, with or without the two marks -> (T,) int32 codes. Raises RawDataError."""
        if labels.shape == (0,):
            return np.empty(0, np.int32)
        if self._known is None and labels.ndim == 1 and labels.dtype.kind in "iu":
            return self._numbers(labels, where)
        if self._known is None and labels.ndim == 1 and labels.dtype.kind == "U":
            if self._largest >= 0:
                raise RawDataError(f"{where}: labels are symbols, but class numbers in {self._first}; give one kind")
            self._first = self._first or where
            self._learn(labels, where)
        if self._table is None:
            # Neither text nor numbers: the table of any set says so.
            self._table = SymbolTable(ARPABET, _NAMED)
        return self._table.encode(labels, where).astype(np.int32)

    def _numbers(self, labels: npt.NDArray[Any], where: str) -> npt.NDArray[np.int32]:
        if self._seen:
            raise RawDataError(f"{where}: labels are class numbers, but symbols in {self._first}; give one kind")
        self._first = self._first or where
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high > 65534:
            at = int(np.argmax((labels < 0) | (labels > 65534)))
            raise RawDataError(f"{where}: class {int(labels[at])} at frame {at}, wanted 0 to 65534; correct it")
        self._largest = max(self._largest, high)
        return labels.astype(np.int32)

    def _learn(self, labels: npt.NDArray[Any], where: str) -> None:
        """Give codes to the symbols that no utterance had before."""
        # Labels repeat for several frames.
        new = set(labels[np.append(True, labels[1:] != labels[:-1])].tolist())
        new -= self._spelled | START_MARKS | END_MARKS
        for symbol in sorted(new):
            if symbol not in self._spelled:
                self._seen.append(symbol)
                self._spelled.update(spellings(symbol))
        if new:
            try:
                self._table = SymbolTable(PhonemeSet(tuple(self._seen)), _NAMED)
            except SpecError as error:
                raise RawDataError(f"{where}: {error}") from None

    def finish(self) -> tuple[PhonemeSet, npt.NDArray[np.int64], str]:
        """The classes, the class of each code, and a note where they came from the data."""
        if self._known is not None:
            return self._known, np.arange(len(self._known)), ""
        if self._largest >= 0:
            count = self._largest + 1
            note = f"classes are the numbers 0..{self._largest}, the largest that occurs; symbols=[...] would name them"
            return PhonemeSet(tuple(map(str, range(count)))), np.arange(count), note
        if not self._seen:
            return ARPABET, np.arange(len(ARPABET)), ""
        if all(symbol in ARPABET.classes for symbol in self._seen):
            return ARPABET, np.array([ARPABET.index(symbol) for symbol in self._seen]), ""
        phonemes = PhonemeSet(tuple(sorted(self._seen)))
        note = f"{len(phonemes)} classes are the symbols that occur, sorted; symbols=[...] fixes them and their order"
        return phonemes, np.array([phonemes.index(symbol) for symbol in self._seen]), note
