"""Plan: which rows every utterance gets, which inner chunks they fall in, and what must be done again."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import xxhash

from phonedata import __version__

from ..format.zarr_files import CHUNK_ROWS, chunk_rows, num_chunks
from ..raw.base import RawCorpus

FEATURES, LABELS = "features/c/0/0", "labels/c/0"
"""The two shards of a partition, within its folder."""


@dataclass(frozen=True)
class PackOptions:
    """What decides the bytes of a packed corpus, besides the raw files."""

    cmvn: str = "utterance"
    train_partition: str | None = None
    dtype: str = "float16"
    context: int = 50
    skip_bad: bool = False

    @property
    def train_partitions(self) -> tuple[str, ...]:
        """The partitions that `train_partition`, "A" or "A + B", names; sorted, so that every wording is one corpus."""
        return tuple(sorted({name.strip() for name in (self.train_partition or "").split("+")} - {""}))

    def fingerprint(self, raw: RawCorpus, feature_dim: int) -> str:
        """Changes whenever an interrupted pack must not be continued: with any option, the version, what the raw folder
        holds, and the size or time of any file in it."""
        options = asdict(self) | {"train_partition": self.train_partitions}
        written = [p.written for p in raw.partitions]
        return _digest([2, __version__, options, feature_dim, raw.frontend, *_contents(raw), written])


def _contents(raw: RawCorpus) -> list[Any]:
    """The raw files as far as listing them shows: layout, phonemes, and what each partition says of itself."""
    partitions = [
        (p.name, p.stamp, p.order, p.labelled, _digest(p.utterance_ids), _digest(p.speakers)) for p in raw.partitions
    ]
    return [raw.layout, raw.phonemes.symbols, raw.derived, partitions]


def _digest(values: list[Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(values).encode())


@dataclass(frozen=True)
class MeasureTask:
    """Some utterances of a partition, (n,) int64, whose raw moments are wanted before any row is written."""

    partition: str
    index: np.ndarray


class Statistics(NamedTuple):
    """What normalises the n utterances of a chunk, if they do not do it themselves: `centres` and `scales` (n, D).
    Where they were measured, `means` and `squares` (n, D) are the raw moments that were found then."""

    centres: np.ndarray
    scales: np.ndarray
    means: np.ndarray | None = None
    squares: np.ndarray | None = None


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
    statistics: Statistics | None = None

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
        self.rows = int(self.length.sum()) + self.context * (len(self.length) + 1)
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
