"""The HW1P2 layout of CMU 11-785, every semester: PARTITION/mfcc/ID.npy and PARTITION/transcript/ID.npy."""

import csv
import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash

from ..errors import RawDataError
from ..files import is_file, is_folder, walk
from ..phonemes import ARPABET, PhonemeSet
from .base import (
    Problem,
    RawCorpus,
    as_features,
    check_name,
    check_names,
    copy_of,
    folders_in,
    frame_shift_of,
    numbered,
    read_frontend,
    read_phonemes,
)
from .frame_labels import LabelOptions, fit_labels, numbered_note
from .label_table import SymbolTable
from .npy import Header, NpyReader, parse_header

LOOKS_FOR = "PARTITION/mfcc/ID.npy, e.g. train-clean-100/mfcc/103-1240-0000.npy"
TEST_ORDER = "test_order.csv"
_HEADERS = {"files", "filename", "file_name", "name", "path", "id", "ids", "utterance", "utterance_id", "utt", "utt_id"}
_LARGE = 1 << 24  # bytes of a feature file that is opened while listing: an hour and more of 28 coefficients
_TRANSCRIPTS = ("transcript", "transcripts")
_MOST_CLASSES = 65534


def detect(root: Path) -> bool:
    """Whether any folder in `root` holds a folder `mfcc` in which Kaldi does not keep its arks."""
    return any(
        not is_file(folder / "feats.scp") and not any(f.suffix == ".ark" for f in _entries(folder / "mfcc"))
        for folder in folders_in(root)
        if is_folder(folder / "mfcc")
    )


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def open_layout(root: Path, labels: LabelOptions | None = None) -> RawCorpus:
    """List the partitions of `root`: every folder that has `mfcc/`. Raises RawDataError.

    A `test_order.csv` (S22) orders the partition whose utterances it lists.
    """
    labels, frontend = labels or LabelOptions(), read_frontend(root)
    given = read_phonemes(root, labels.classes)
    phonemes, frames_each = given or ARPABET, labels.frames_each(frame_shift_of(frontend))
    names = [folder.name for folder in folders_in(root) if is_folder(folder / "mfcc")]
    partitions = tuple(Hw1p2Partition(root, name, phonemes, frames_each) for name in names)
    notes = _put_in_test_order(root, partitions)
    if given is None:
        phonemes = _count_numbers(partitions, notes)
    notes += [note for partition in partitions for note in partition.unread]
    for folder in folders_in(root):
        if folder.name in names:
            continue
        try:
            held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:3]) or "nothing"
            notes.append(f"{folder} is no partition and is left out: it holds {held}, and no folder mfcc")
        except PermissionError:
            notes.append(f"{folder} cannot be looked into and is left out; check its permissions if it is a partition")
    for i, a in enumerate(partitions):
        for b in partitions[i + 1 :]:
            both = set(a.utterance_ids) & set(b.utterance_ids)
            if both:
                notes.append(f"{len(both)} utterance ids are in both {a.name} and {b.name}, e.g. {min(both)}")
    return RawCorpus(root, "hw1p2", partitions, phonemes, frontend, tuple(notes))


def _count_numbers(partitions: "tuple[Hw1p2Partition, ...]", notes: list[str]) -> PhonemeSet:
    """The classes where nobody names them: the course's, or 0 up to the largest number if labels are numbers and the
    course has not so many. The two numbers behind the last class may mark the ends of every transcript."""
    largest, largest_in, marked, seen = -1, "", True, np.zeros(_MOST_CLASSES + 1, bool)
    for partition in partitions:
        for index in range(len(partition.utterance_ids)):
            labels = partition.numbers(index)
            if labels is None:
                if largest < 0:
                    break  # symbols: one look at a partition is enough
                continue
            top = int(labels.max(initial=-1))
            marked = (marked or top > largest) and len(labels) > 2 and labels[0] == top - 1 and labels[-1] == top
            seen[labels] = True
            if top > largest:
                largest, largest_in = top, partition.where_labels(index)
    if largest < 0:
        return ARPABET
    count = largest + 1 - 2 * marked
    if count <= len(ARPABET) + 2:
        notes.append(
            "labels are numbers, taken as those of the course's 40 phonemes; classes=N says that they are others, "
            "a phonemes.txt names them"
        )
        return ARPABET
    notes.append(numbered_note(seen[:count], largest_in))
    phonemes = numbered(count)
    for partition in partitions:
        partition.phonemes = phonemes
    return phonemes


def speaker_of(utterance_id: str) -> str:
    """`103-1240-0000` (speaker-chapter-utterance) -> `103`; other ids name no speaker and stand for themselves."""
    parts = utterance_id.split("-")
    return parts[0] if len(parts) >= 3 and parts[0] else utterance_id


def _put_in_test_order(root: Path, partitions: "tuple[Hw1p2Partition, ...]") -> list[str]:
    """Order partitions by the lists that lie in them, in `root` or beside it, the nearest first; returns notes.

    Courses hand the list out in any of the three places. One in a partition must fit that partition, one in `root` any
    partition; what lies beside `root` may be another corpus's. Raises RawDataError.
    """
    notes = []
    for partition in partitions:
        file = root / partition.name / TEST_ORDER
        if is_file(file):
            difference = partition.put_in_order(_read_order(file, set(partition.utterance_ids)))
            if difference:
                raise RawDataError(
                    f"{file}: {difference}; both must name the same utterances: mend the list or the folder"
                )
            notes.append(f"{partition.name} is in the order of {file}")
    known = {i for partition in partitions for i in partition.utterance_ids}
    for folder, ours in ((root, True), (Path(os.path.abspath(root)).parent, False)):
        file = folder / TEST_ORDER
        if not is_file(file):
            continue
        try:
            names = _read_order(file, known)
        except RawDataError:
            if ours:
                raise
            continue
        fitting = [p for p in partitions if not p.labelled and not p.differs(names)]
        if not fitting and ours:
            nearest = max(partitions, key=lambda p: (len(set(names) & set(p.utterance_ids)), not p.labelled))
            difference = nearest.differs(names) or "it has transcripts"
            raise RawDataError(
                f"{file}: fits no partition without transcripts (nearest: {nearest.name}, {difference}); mend or "
                "remove the list"
            )
        for partition in fitting:
            if partition.order == "sorted":
                partition.put_in_order(names)
                notes.append(f"{partition.name} is in the order of {file}")
    return notes


def _read_order(file: Path, known: set[str]) -> list[str]:
    """Utterance ids in the order of a list of file names or ids, one a line, perhaps under a header.

    Of several columns the one named `file` counts, else the last. A first line is a header if it is a word of headers:
    an id that no file has is a difference to be told, not a line to be dropped. Raises RawDataError.
    """
    try:
        rows = [row for row in csv.reader(file.read_text(encoding="utf-8-sig").splitlines()) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RawDataError(f"{file}: cannot be read as text ({error}); mend or remove it") from None
    column, header = -1, [cell.strip().lower() for cell in rows[0]] if rows else []
    if "file" in header:
        column = header.index("file")
    try:
        names = [row[column].strip() for row in rows]
    except IndexError:
        raise RawDataError(f"{file}: a line has no column {column + 1}, which is `file`; mend it") from None
    if "file" in header or (names and names[0].lower() in _HEADERS and names[0] not in known):
        names = names[1:]
    names = [os.path.basename(name).removesuffix(".npy") for name in names]
    if len(set(names)) != len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise RawDataError(f"{file}: lists {twice!r} twice; remove one line")
    return names


def _list_npy(folder: Path, problems: list[Problem], notes: list[str]) -> dict[str, tuple[str, int, int]]:
    """id -> (file name, bytes, time written in ns) of every .npy file; hidden files (`._ID.npy` of a Mac) and others
    are not ours; `notes` gets how many others. Copies of a file beside it, and files in folders below, become problems.

    Plain names and numbers: a million directory entries with their status would be a gigabyte.
    """
    files: dict[str, tuple[str, int, int]] = {}
    try:
        entries = [name for name in os.listdir(folder) if name[0] != "."]
    except OSError as error:
        raise RawDataError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from None
    names = [name for name in entries if name[-4:].lower() == ".npy"]
    check_names((name[:-4] for name in names), "utterance id", folder)
    stems = {name[:-4] for name in names}
    others = [name for name in sorted(set(entries) - set(names)) if is_file(folder / name)]
    if others:
        notes.append(f"{folder}: {len(others)} files are not read, as they are no .npy, e.g. {others[0]}")
    for below in sorted(set(entries) - set(names) - set(others)):
        count = sum(
            n[-4:].lower() == ".npy" and n[0] != "." for _, _, below_it in walk(folder / below) for n in below_it
        )
        if count:
            message = f"{folder / below}: {count} .npy files are in this folder, but only files directly in "
            problems.append(Problem(below, f"{message}{folder.name}/ are read; move them up"))
    for name in sorted(names):
        stem, path, broken = name[:-4], f"{folder}{os.sep}{name}", None
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                broken = "is not a file"
        except OSError as error:
            broken = f"cannot be read ({error.strerror})"
        copied = copy_of(stem, stems)
        if copied is not None:
            broken = f"is a second copy of {copied}.npy by its name"
        if stem in files:
            broken = f"the id {stem} was seen already in {files[stem][0]}"
        if broken:
            problems.append(Problem(stem, f"{path}: {broken}; remove or mend it", None if copied is None else 0))
            continue
        files[stem] = name, status.st_size, status.st_mtime_ns
    return files


class Hw1p2Partition:
    """One folder with `mfcc/` and, unless it is a test partition, `transcript/`; see raw.RawPartition."""

    def __init__(self, root: Path, name: str, phonemes: PhonemeSet, frames_each: int):
        check_name(name, "partition name", root)
        self.name = name
        self.phonemes, self._frames_each = phonemes, frames_each
        self.problems: list[Problem] = []
        self.unread: list[str] = []
        folder = root / name
        folders = folders_in(folder)
        texts = [child for child in folders if child.name.lower() in _TRANSCRIPTS]
        spare = [child.name for child in folders if child.name != "mfcc" and child not in texts[:1]]
        if spare:
            self.unread.append(f"{folder}: its folders {', '.join(spare[:3])} are not read, only mfcc and transcript")
        self.labelled = bool(texts)
        self._mfcc = str(folder / "mfcc")
        features = _list_npy(folder / "mfcc", self.problems, self.unread)
        labels = _list_npy(texts[0], self.problems, self.unread) if texts else {}
        self._transcript = str(texts[0]) if texts else None
        if not features and not self.problems:
            raise RawDataError(
                f"{folder / 'mfcc'}: no .npy files, wanted one per utterance; fill or remove the partition"
            )
        refused = {p.utterance_id for p in self.problems}
        if texts:
            for i in sorted(features.keys() - labels.keys() - refused):
                wrong = f"{self._mfcc}/{features[i][0]}: no transcript {self._transcript}/{i}.npy; add it"
                self.problems.append(Problem(i, f"{wrong} or use skip_bad=True"))
            for i in sorted(labels.keys() - features.keys() - refused):
                wrong = f"{self._transcript}/{labels[i][0]}: no features {self._mfcc}/{i}.npy; add them"
                self.problems.append(Problem(i, f"{wrong} or use skip_bad=True"))
            refused = {p.utterance_id for p in self.problems}
        self.order = "sorted"
        ids = self.utterance_ids = sorted(features.keys() - refused)
        self.speakers = [speaker_of(i) for i in ids]
        self._files = [features[i][0] for i in ids]
        self._label_files = [labels[i][0] for i in ids] if texts else []
        self.lengths_hint: Sequence[int] | None = self._guess_lengths([features[i][1] for i in ids])
        kinds = (features, labels) if texts else (features,)
        # (kinds, U) each
        self._sizes, self._times = (
            np.array([[files[i][place] for i in ids] for files in kinds], np.int64) for place in (1, 2)
        )
        self.stamp, self.written = (xxhash.xxh3_128_hexdigest(all_.data) for all_ in (self._sizes, self._times))
        self._reader = NpyReader()
        self._label_reader = NpyReader()
        self._table: SymbolTable | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_table": None}  # a copy in another worker makes its own, which has a buffer

    def differs(self, names: list[str]) -> str:
        """How an order list differs from the utterances that are here, in words; empty if it lists just them."""
        other = set(names) ^ set(self.utterance_ids)
        # A file that was found and refused is missing here, but the list is right to name it.
        other -= {problem.utterance_id for problem in self.problems}
        if not other:
            return ""
        first = min(other)
        side = "lists" if first in set(names) else "does not list"
        return f"the list {side} {first!r}, and mfcc/ holds the contrary"

    def put_in_order(self, names: list[str]) -> str:
        """Take the order of a list that fits; otherwise returns how it differs."""
        difference = self.differs(names)
        if not difference:
            self.order = TEST_ORDER
            place = {utterance: n for n, utterance in enumerate(self.utterance_ids)}
            order = [place[name] for name in names if name in place]
            for lists in ("utterance_ids", "speakers", "_files", "_label_files", "lengths_hint"):
                values = getattr(self, lists)
                setattr(self, lists, values and [values[n] for n in order])
            self._sizes, self._times = self._sizes[:, order], self._times[:, order]
        return difference

    def _guess_lengths(self, sizes: list[int]) -> list[int] | None:
        """Frame counts from file sizes and the first readable header: the files of a corpus are made alike.

        A file of many megabytes is asked itself: one with a damaged length must not decide how much disk is wanted.
        """
        for header in filter(None, map(self._header, range(min(20, len(sizes))))):
            dtype, _, shape, offset = header
            if len(shape) == 2 and shape[1] and dtype.itemsize:
                lengths = [max(1, (size - offset) // (shape[1] * dtype.itemsize)) for size in sizes]
                for n in (n for n, size in enumerate(sizes) if size > _LARGE):
                    dtype, _, shape, offset = self._header(n) or header
                    promised = offset + dtype.itemsize * math.prod(shape)
                    lengths[n] = max(1, shape[0]) if promised == sizes[n] and len(shape) == 2 else 1
                return lengths
        return None

    def _header(self, n: int) -> Header | None:
        """What the n-th file's header says, see `parse_header`; None if it says nothing."""
        try:
            with open(f"{self._mfcc}/{self._files[n]}", "rb") as file:
                return parse_header(file.read(10_016), self._files[n])
        except (OSError, RawDataError):
            return None

    def numbers(self, index: int) -> np.ndarray | None:
        """The labels (T,) of an utterance as they stand in its file, if they are numbers that classes can have."""
        if not self.labelled:
            return None
        try:
            labels = self._label_reader.load(self.where_labels(index))
        except RawDataError:
            return None
        plain = labels.dtype.kind in "iu" and labels.ndim == 1 and len(labels) and labels.min() >= 0
        return labels if plain and labels.max() <= _MOST_CLASSES else None

    def where_labels(self, index: int) -> str:
        """Path of the utterance's transcript."""
        return f"{self._transcript}/{self._label_files[index]}"

    def num_frames(self, index: int) -> int | None:
        """See raw.RawPartition.num_frames."""
        header = self._header(index)
        return header[2][0] if header and len(header[2]) == 2 else None

    def files_of(self, index: int) -> list[tuple[str, int, int]]:
        """See raw.RawPartition.files_of."""
        paths = [self.where(index)]
        if self.labelled:
            paths.append(self.where_labels(index))
        return list(zip(paths, self._sizes[:, index].tolist(), self._times[:, index].tolist()))

    def where(self, index: int) -> str:
        return f"{self._mfcc}/{self._files[index]}"

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """See raw.RawPartition.read."""
        path = f"{self._mfcc}/{self._files[index]}"
        features = as_features(self._reader.load(path), path)
        if not self.labelled:
            return features, None
        path = self.where_labels(index)
        if self._table is None:
            self._table = SymbolTable(self.phonemes)
        labels = self._table.encode(self._label_reader.load(path), path)
        return features, fit_labels(labels, len(features), self._frames_each, path, self.where(index))

    def strays(self, index: int) -> tuple[str, dict[str, int]]:
        """See frame_labels.list_strays."""
        path = self.where_labels(index)
        labels = self._label_reader.load(path)
        return path, SymbolTable(self.phonemes).strays(labels) if labels.dtype.kind in "iuUS" else {}
