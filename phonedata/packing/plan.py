"""Plan: which rows every utterance gets, which inner chunks they fall in, and what must be done again."""

import json
import os
import shlex
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import xxhash

from phonedata import __version__

from ..format.zarr_files import CHUNK_ROWS, chunk_rows, num_chunks
from ..raw.base import RawCorpus


@dataclass(frozen=True)
class PackOptions:
    """What decides the bytes of a packed corpus, besides the raw files."""

    cmvn: str = "utterance"
    train_partition: str | None = None
    dtype: str = "float16"
    context: int = 50
    skip_bad: bool = False
    part: tuple[int, int] | None = None

    @property
    def train_partitions(self) -> tuple[str, ...]:
        """The partitions that `train_partition`, "A" or "A + B", names; sorted, so that every wording is one corpus."""
        return tuple(sorted({name.strip() for name in (self.train_partition or "").split("+")} - {""}))

    def command(self, raw: RawCorpus, packed: os.PathLike[str]) -> str:
        """The shell command of this pack, but for the part."""
        words = ["phonedata", "pack", str(raw.path), str(packed), "--layout", raw.layout, *raw.arguments]
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name != "part" and value != option.default:
                words.append(f"--{option.name.replace('_', '-')}")
                words += [] if value is True else [str(value)]
        return shlex.join(words)

    def source(self, raw: RawCorpus, feature_dim: int) -> str:
        """What the bytes of a pack depend on: parts belong together where it is the same.

        It depends neither on `part` nor on where the raw folder lies and when its files were written, so that parts can
        be made from copies.
        """
        options = {k: v for k, v in asdict(self).items() if k != "part"} | {"train_partition": self.train_partitions}
        return _digest([__version__, options, feature_dim, raw.frontend, *_contents(raw)])

    def origin(self, raw: RawCorpus, feature_dim: int, statistics: str) -> dict[str, Any]:
        """What a part says of where it comes from.

        `source`, see there; `statistics`, the digest of those that it was normalised with; `written`, which changes
        when a raw file is written again; `place`, the raw folder and those in it, none of which a copy has: only among
        parts of one place do different times mean that files were written in between.
        """
        with os.scandir(raw.path) as entries:
            folders = [os.stat(raw.path), *(entry.stat() for entry in entries if entry.is_dir())]
        return {
            "source": self.source(raw, feature_dim),
            "statistics": statistics,
            "written": _digest([p.written for p in raw.partitions]),
            "place": sorted(_digest([folder.st_ino, folder.st_ctime_ns]) for folder in folders),
        }

    def fingerprint(self, origin: dict[str, Any]) -> str:
        """Changes whenever an interrupted pack must not be continued."""
        return _digest([self.part, origin["source"], origin["statistics"], origin["written"]])


def _contents(raw: RawCorpus) -> list[Any]:
    """The raw files as far as listing them shows: layout, phonemes, and what each partition says of itself."""
    partitions = [
        (p.name, p.stamp, p.order, p.labelled, _digest(p.utterance_ids), _digest(p.speakers)) for p in raw.partitions
    ]
    return [raw.layout, raw.phonemes.symbols, raw.derived, partitions]


def _digest(values: list[Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(values).encode())


def rows_of(lengths: np.ndarray, context: int) -> int:
    """Rows of utterances of `lengths` (U,): their frames, and `context` rows before, between and after them."""
    return int(lengths.sum()) + context * (len(lengths) + 1)


@dataclass(frozen=True)
class ChunkTask:
    """One inner chunk of `rows` rows: `index`, `start_row`, `length` of every utterance that touches it, (n,) each, and
    whether it is `blank`: nothing but zeros in the place of one that cannot be packed."""

    partition: str
    chunk: int
    rows: int
    index: np.ndarray
    start_row: np.ndarray
    length: np.ndarray
    blank: np.ndarray
    key: str

    @property
    def own_frames(self) -> int:
        """Frames that lie in this chunk."""
        first = self.chunk * CHUNK_ROWS
        a, b = np.maximum(self.start_row, first), np.minimum(self.start_row + self.length, first + CHUNK_ROWS)
        return int((b - a).sum())


@dataclass
class PartitionPlan:
    """The rows of one partition, from the lengths that are believed so far.

    `index` (U,) names the utterances of the raw partition that are in; `lengths` (all of the raw partition) may be
    corrected, and utterances taken out, until every one was read. `bad` are those that cannot be packed, by reason; the
    places of those in `kept` are filled with zeros.
    """

    name: str
    context: int
    lengths: np.ndarray
    index: np.ndarray
    salt: str
    bad: dict[int, str] = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._lay_out()

    def _lay_out(self) -> None:
        self.length = self.lengths[self.index]
        self.utterance_end = np.cumsum(self.length)
        self.start_row = self.utterance_end - self.length + self.context * np.arange(1, len(self.length) + 1)
        self.end_row = self.start_row + self.length
        self.rows = rows_of(self.length, self.context)
        self.chunks, self.chunk_rows = num_chunks(self.rows), chunk_rows(self.rows)

    def correct(self, lengths: dict[int, int], bad: dict[int, str], kept: Collection[int]) -> None:
        """Take over what reading has shown: true lengths, and utterances that cannot be packed, of which those in
        `kept` keep their place."""
        for index, length in lengths.items():
            self.lengths[index] = length
        self.bad.update(bad)
        self.kept.update(kept)
        if bad:
            self.index = self.index[~np.isin(self.index, list(bad.keys() - self.kept))]
        self._lay_out()

    def task(self, chunk: int) -> ChunkTask:
        """The utterances of one chunk; its key is equal exactly when the chunk's bytes must be equal."""
        first_row, end_row = chunk * CHUNK_ROWS, (chunk + 1) * CHUNK_ROWS
        # Slices of arrays that the plan has: a task that made its own would keep one as long as the corpus.
        first = int(np.searchsorted(self.end_row, first_row, side="right"))
        end = int(np.searchsorted(self.start_row, end_row, side="left"))
        index, start, length = self.index[first:end], self.start_row[first:end], self.length[first:end]
        key = xxhash.xxh3_128(f"{self.salt} {self.name} {chunk} {min(self.rows, end_row)}".encode())
        for values in (index, start, length):
            key.update(np.ascontiguousarray(values, "<i8").tobytes())
        blank = np.isin(index, list(self.kept)) if self.kept else np.zeros(len(index), bool)
        if blank.any():
            key.update(blank.tobytes())
        return ChunkTask(self.name, chunk, self.chunk_rows, index, start, length, blank, key.hexdigest())
