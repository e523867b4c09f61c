"""What every raw layout offers: partitions, utterances, problems, phonemes, front end."""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import date, time
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import xxhash

from ..errors import RawDataError, SpecError
from ..files import exists, is_file, is_folder, unusable_name
from ..phonemes import END_MARKS, START_MARKS, PhonemeSet

# How file managers and browsers call a second copy: `ID (1)`, `ID copy 2`, `ID - Copy (3)`.
_COPY = re.compile(r"(.+?)( \(\d+\)| copy( \d+)?| - Copy( \(\d+\))?)", re.IGNORECASE)


@dataclass(frozen=True)
class Problem:
    """An utterance that cannot be packed, found while listing; `message` is one line that names the file.

    `frames` is 0 for what is no utterance of its own, such as a second copy of a file; None: nobody knows.
    asked: it could be packed, and is left out because somebody wants that.
    """

    utterance_id: str
    message: str
    frames: int | None = None
    asked: bool = False


class RawPartition(Protocol):
    """One partition of a raw corpus. Picklable; every worker reads through its own copy.

    Attributes:
        name: partition name, usable as a folder name.
        labelled: whether every utterance has frame labels.
        utterance_ids: ids in the order of the packed corpus: sorted, unless the layout gives a test order.
        speakers: one per utterance; the utterance id itself where nothing is known.
        lengths_hint: guessed frame count per utterance (from file sizes), or None. Packing is right whatever it
            says, but a wrong guess costs a second pass.
        problems: utterances that were found and left out of `utterance_ids` (no partner, duplicate id, ...).
        order: "sorted", or the name of the file that gave the order.
        stamp: text that changes with the size of a file, and is the same for a copy of the folder elsewhere.
        written: text that changes when a file is written again; an interrupted pack continues only if it is the same.
        phonemes: the classes of its labels.
    """

    name: str
    labelled: bool
    utterance_ids: list[str]
    speakers: list[str]
    lengths_hint: Sequence[int] | None
    problems: list[Problem]
    order: str
    stamp: str
    written: str
    phonemes: PhonemeSet

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Features (T, D) native C-order float32 or float64 and labels (T,) of the corpus's label dtype, or None.

        Valid until the next `read` of this object. Raises RawDataError, one line that starts with the file's path.
        """

    def where(self, index: int) -> str:
        """Path of the utterance's feature file, for messages."""

    def num_frames(self, index: int) -> int | None:
        """Frames of an utterance that cannot be read, by its file's header; None where that does not say."""

    def files_of(self, index: int) -> list[tuple[str, int, int]]:
        """Path, bytes and time written (st_mtime_ns) of each file that `read` opens, as they were when it was listed.

        For workers on other machines, which must see the same files; nobody else asks.
        """


class Listing:
    """The files of a partition as they were when it was listed; `files[path]` is what `RawPartition.files_of` says of
    one, `digests` what `RawPartition.stamp` and `RawPartition.written` are."""

    def __init__(self, settings: object = "") -> None:
        """settings: what else decides what is read from the files."""
        self.files: dict[str, tuple[str, int, int]] = {}
        self._sizes, self._times = xxhash.xxh3_128(repr(settings).encode()), xxhash.xxh3_128()

    def add(self, path: str, name: str) -> None:
        """A file, which may be missing, under a name that says nothing of where the folder lies."""
        status = os.stat(path) if exists(path) else None
        size, time = (status.st_size, status.st_mtime_ns) if status else (-1, -1)
        self.files[path] = path, size, time
        self._sizes.update(f"{name} {size}\n".encode())
        self._times.update(f"{time}\n".encode())

    def digests(self) -> tuple[str, str]:
        """(stamp, written)."""
        return self._sizes.hexdigest(), self._times.hexdigest()


class Labelling(NamedTuple):
    """How much of a partition its alignments label, in counts of frames and utterances.

    uncovered: frames that are labelled silence because no interval covers them. without_phone: utterances refused
    because their alignment has no phone. unknown: frames of unknown words. skipped: utterances left out for those.
    """

    frames: int
    uncovered: int
    without_phone: int
    unknown: int
    skipped: int


@dataclass(frozen=True)
class RawCorpus:
    """A raw corpus of a known layout: partitions sorted by name, phonemes, and how the features were made."""

    path: Path
    layout: str
    partitions: tuple[RawPartition, ...]
    phonemes: PhonemeSet
    frontend: dict | None = None
    notes: tuple[str, ...] = field(default=())
    labelling: dict[str, Labelling] = field(default_factory=dict)
    """Partition -> what its alignments leave open, where labels come from alignments."""
    derived: dict[str, str] = field(default_factory=dict)
    """What was made of the folder's own partitions and classes, in words: "split", "map"."""

    @property
    def frame_shift_ms(self) -> float:
        """Milliseconds between frames."""
        return frame_shift_of(self.frontend)


def frame_shift_of(frontend: Mapping[str, Any] | None) -> float:
    """Milliseconds between frames: the front end's, or the 10 of every course and of Kaldi's default."""
    return float((frontend or {}).get("frame_shift_ms", 10.0))


def folders_in(root: Path) -> list[Path]:
    """The folders in `root`, sorted; hidden ones and what zip files of a Mac add (`__MACOSX`) hold no data."""
    names = sorted(name for name in os.listdir(root) if not name.startswith((".", "__MACOSX")))
    return [root / name for name in names if is_folder(root / name)]


def copy_of(name: str, names: Container[str]) -> str | None:
    """Which of `names` the file `name`, both without suffix, is a second copy of by what it is called; or None."""
    match = _COPY.fullmatch(name)
    return match[1] if match and match[1] in names else None


def read_frontend(root: Path) -> dict | None:
    """The optional `frontend.toml` of a raw folder: how its features were made; None where there is none."""
    file = root / "frontend.toml"
    if not is_file(file):
        return None
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise RawDataError(f"{file}: not TOML ({error}); mend or remove it") from None
    return check_frontend(table, file)


def check_frontend(table: Mapping[str, Any], where: Path | str) -> dict[str, Any]:
    """A table of how features were made, as a packed corpus can carry it. Raises RawDataError."""
    plain: dict[str, Any] = _plain(dict(table), where, "")
    shift = plain.get("frame_shift_ms", 10.0)
    if type(shift) not in (int, float) or not 0 < shift < 1000:
        raise RawDataError(f"{where}: frame_shift_ms = {shift!r}, wanted milliseconds between two frames, as 10")
    return plain


def as_features(values: np.ndarray, where: str) -> np.ndarray:
    """Features (T, D) as native C-order float32 or float64, copied only where they are not. Raises RawDataError."""
    if values.ndim != 2 or values.dtype.kind != "f" or values.dtype.itemsize > 8:
        raise RawDataError(
            f"{where}: features of shape {values.shape} and type {values.dtype.str}, "
            f"wanted (T, D) float32 or float64; make it again"
        )
    wanted = np.dtype(np.float64 if values.dtype.itemsize == 8 else np.float32)
    if values.dtype != wanted or not values.flags.c_contiguous or not values.flags.aligned:
        return np.require(values, wanted, ["C", "A"])
    return values


def _plain(value, file: Path | str, key: str):
    """A TOML value as the packed corpus can carry it, in JSON: dates as ISO text. Raises RawDataError."""
    if isinstance(value, dict):
        return {name: _plain(one, file, f"{key}.{name}".strip(".")) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one, file, key) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise RawDataError(f"{file}: {key} = {value}, wanted a finite number; mend or remove it")
    return value.isoformat() if isinstance(value, (date, time)) else value


def read_phonemes(root: Path, classes: int | None = None) -> PhonemeSet | None:
    """The optional `phonemes.txt` of a raw folder, one symbol a line, class index = line; None where there is none.

    `classes`: the numbers 0..classes-1 in its place. Raises RawDataError, SpecError where there are both.
    """
    file = root / "phonemes.txt"
    if classes is not None and is_file(file):
        raise SpecError(f"classes={classes}: {file} says what the classes are; leave one of them out")
    if not is_file(file):
        return None if classes is None else numbered(classes)
    try:
        lines = decode(file.read_bytes()).rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RawDataError(f"{file}: cannot be read as text ({error}); wanted one symbol a line") from None
    for number, line in enumerate(lines, 1):
        if len(line.split()) != 1:
            raise RawDataError(
                f"{file}: line {number} is {line[:60]!r}, wanted exactly one symbol: the class index is the line"
            )
        if line.strip() in START_MARKS | END_MARKS:
            raise RawDataError(
                f"{file}: line {number} is {line.strip()}, which marks a transcript's end and is no class; remove it"
            )
    try:
        return PhonemeSet(tuple(line.strip() for line in lines))
    except SpecError as error:
        raise RawDataError(f"{file}: {error}; wanted one symbol a line") from None


def first_said(options: Any) -> str:
    """The first field of the dataclass `options` that is not at its default, as NAME=VALUE; "" where all are."""
    said = ((f.name, getattr(options, f.name)) for f in fields(options) if getattr(options, f.name) != f.default)
    return next((f"{name}={value!r}" for name, value in said), "")


def numbered(classes: int) -> PhonemeSet:
    """Classes that are named by their numbers."""
    return PhonemeSet(tuple(map(str, range(classes))))


def decode(content: bytes) -> str:
    """Text of a file in UTF-8, or in UTF-16, as Praat and Windows write it, with its mark or known by a first letter of
    ASCII. Raises UnicodeDecodeError."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16")
    if len(content) > 1 and not all(content[:2]):
        return content.decode("utf-16-be" if content[0] == 0 else "utf-16-le")
    return content.decode("utf-8-sig")


def check_name(name: str, kind: str, where: str | Path) -> None:
    """Refuse an id or partition name that cannot stand in one line of text or one folder name."""
    check_names([name], kind, where)


def check_names(names: Iterable[str], kind: str, where: str | Path) -> None:
    """`check_name` of many."""
    name = unusable_name(names)
    if name is not None:
        raise RawDataError(
            f"{where}: {kind} {name!r} cannot be used: no slashes, no control characters, 1 to 255 characters"
        )
