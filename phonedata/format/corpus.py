"""PackedCorpus: the packed format, opened and described; docs/FORMAT.md has it byte by byte."""

from __future__ import annotations

import contextlib
import errno
import math
import operator
from collections.abc import Callable, Iterator
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import CorpusNotFound, FormatError, PhonedataError, SpecError
from ..files import recover, unusable_name
from ..phonemes import PhonemeSet
from ..system import available_memory
from .attributes import damaged, file_size, parse_group, read_exactly, read_partition, read_root, readable
from .verify import verify_files
from .zarr_files import chunk_rows, digest, num_chunks

if TYPE_CHECKING:
    import zarr

_CANNOT_MAP = {errno.ENODEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}
"""How file systems refuse memory maps: shared folders of virtual machines, some network and user-space ones."""


def _map_or_read(path: Path, dtype: npt.DTypeLike, rows: int) -> npt.NDArray[Any]:
    """The first `rows` values of a file, mapped; read where its file system maps no files and they fit the memory."""
    try:
        return np.memmap(path, dtype=dtype, mode="r", shape=(rows,))
    except OSError as error:
        if error.errno not in _CANNOT_MAP:
            raise
    size, free = rows * np.dtype(dtype).itemsize, available_memory()
    if free is not None and size > 0.8 * free:
        raise PhonedataError(
            f"{path}: its file system maps no files, and its {size / 2**30:.1f} GiB do not fit the free memory of "
            f"{free / 2**30:.1f} GiB; copy the corpus to a local disk"
        )
    values = np.fromfile(path, dtype, rows)
    values.flags.writeable = False
    return values


class PackedCorpus:
    """A packed corpus, opened by reading its metadata only; `verify()` reads every byte.

    Attributes: `path`, `attributes` (the root's), `phonemes`, `feature_dim` D, `context` (rows of zeros between
    utterances), `frame_shift_ms`, `cmvn` (dict, with its "kind"), `dtype` (of the stored features), `digest` (hex, of
    everything in it), `partitions` (name -> Partition, sorted by name).

    Files are opened when they are first needed, so a corpus of many partitions holds no descriptors. What is open
    keeps its data when `pack --replace` puts another corpus at `path`; what is opened after that is a FormatError.

    Raises CorpusNotFound when nothing is there, FormatError for another format version or damaged metadata, SpecError
    for what is no path, PhonedataError where it may not be read.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        try:
            self.path = Path(path)
        except TypeError:
            raise SpecError(f"corpus {path!r}; wanted the path of a packed corpus") from None
        root = self.path / "zarr.json"
        with readable(self.path):
            recover(self.path)
            if not root.is_file():
                if self.path.is_dir() and any(self.path.iterdir()):
                    found = "no packed corpus (no zarr.json in it); if it is a raw folder, pack it into a new one"
                    raise CorpusNotFound(f"{self.path}: {found}: phonedata pack {self.path} PACKED")
                found = "no packed corpus (no zarr.json in it)" if self.path.exists() else "does not exist"
                raise CorpusNotFound(f"{self.path}: {found}; make one with: phonedata pack RAW {self.path}")
            self.attributes = read_root(self.path)
        self.phonemes = PhonemeSet(tuple(self.attributes["phonemes"]["symbols"]))
        self.feature_dim: int = self.attributes["feature_dim"]
        self.context: int = self.attributes["context"]
        self.frame_shift_ms = float(self.attributes["frame_shift_ms"])
        self.cmvn: dict[str, Any] = dict(self.attributes["cmvn"])
        self.dtype = np.dtype(self.attributes["dtype"])
        self.digest: str = self.attributes["digest"]
        with self.unchanged():
            self.partitions = {name: Partition(self, name) for name in sorted(self.attributes["partitions"])}

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Check that files opened within the block are of this corpus: FormatError if the folder was replaced.

        An open file keeps its data when the folder is replaced, so one look at the root's digest afterwards is enough.
        An error inside may be only the consequence of a replacement, which is then named instead.
        """
        try:
            yield
        except PhonedataError:
            self.check_unchanged()
            raise
        self.check_unchanged()

    def check_unchanged(self) -> None:
        """Raise FormatError unless the folder still holds the corpus that was opened."""
        file = self.path / "zarr.json"
        with readable(self.path):
            try:
                found = parse_group(file, read_exactly(file, file_size(file)))[1].get("digest")
            except FormatError:
                found = None
        if found != self.digest:
            raise FormatError(f"{self.path}: no longer holds the corpus that was opened; open it again")

    def __getitem__(self, name: str) -> Partition:
        try:
            return self.partitions[name]
        except KeyError:
            raise SpecError(f"{self.path}: no partition {name!r}; it has {', '.join(self.partitions)}") from None

    def __repr__(self) -> str:
        frames = ", ".join(f"{p.name} {p.num_frames}" for p in self.partitions.values())
        return f"PackedCorpus({str(self.path)!r}: {frames} frames)"

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickled memory map would carry its data along: who unpickles opens the corpus.
        return _reopen, (self.path, self.digest)

    def zarr_group(self) -> zarr.Group:
        """The corpus as a read-only zarr group, for what is built on zarr (dask, xarray, remote stores).

        `corpus.zarr_group()["dev-clean/features"][:]` equals `corpus["dev-clean"].features`. zarr opens files by their
        names at each access: after `pack --replace` it shows the new corpus.
        """
        import zarr

        return zarr.open_group(self.path, mode="r")

    def close(self) -> None:
        """Release the memory maps of its rows; they are made again when asked for. Arrays taken from them stay."""
        for partition in self.partitions.values():
            for name in ("features", "labels"):
                partition.__dict__.pop(name, None)

    def verify(self, progress: Callable[[str, int, int, str], None] | None = None) -> int:
        """Read every byte against the digests; returns the bytes read, raises FormatError naming the first bad file.

        `progress(stage, done, total, unit)` is called now and then, in bytes.
        """
        with self.unchanged():
            for partition in self.partitions.values():
                partition.labels  # noqa: B018  a label that is no class is named with its frame, not with its chunk
            listed = {name: partition.attributes["files"] for name, partition in self.partitions.items()}
            size = verify_files(self.path, self.attributes, listed, progress)
            for partition in self.partitions.values():
                partition.check_values()
        return size


def _reopen(path: Path, digest: str) -> PackedCorpus:
    corpus = PackedCorpus(path)
    if corpus.digest != digest:
        # What came with it, such as the rows of a selection, is of the other one.
        raise FormatError(f"{path}: holds another corpus than when it was pickled; open it again")
    return corpus


class Partition:
    """One partition: memory maps of its rows, and where its utterances lie. Opened by PackedCorpus.

    Frame f (0..N-1, cumulative over utterances) of utterance u is row `f + context * (u + 1)`. `features_path` and
    `labels_path` are the files of its rows.
    """

    def __init__(self, corpus: PackedCorpus, name: str) -> None:
        self.corpus, self.name, self.path = corpus, name, corpus.path / name
        self.features_path, self.labels_path = self.path / "features/c/0/0", self.path / "labels/c/0"
        with readable(self.path):
            self.attributes = read_partition(self.path, corpus.attributes, corpus.phonemes)
        self.num_utterances: int = self.attributes["utterances"]
        self.num_frames: int = self.attributes["frames"]
        self.num_rows: int = self.attributes["rows"]
        self.labelled: bool = self.attributes["labelled"]
        self.mean: npt.NDArray[np.float64] = np.array(self.attributes["mean"], np.float64)
        self.std: npt.NDArray[np.float64] = np.array(self.attributes["std"], np.float64)
        self.lengths: dict[str, Any] = dict(self.attributes["lengths"])
        self.digest: str = corpus.attributes["partitions"][name]["digest"]
        histogram = self.attributes["label_histogram"]
        self.label_histogram = None if histogram is None else np.array(histogram, np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        return operator.getitem, (self.corpus, self.name)

    def check_values(self) -> None:
        """Check labels and ids against the metadata, which digests cannot do. Raises FormatError."""
        ids, _ = self.utterance_ids, self.speakers
        if len(set(ids)) < len(ids):
            raise damaged(self.path / "utterance_id_bytes", "an id is there twice")
        labels = self.labels
        if labels is not None and self.label_histogram is not None:
            histogram, step = np.zeros(self.corpus.phonemes.padding_label + 1, np.int64), chunk_rows(self.num_rows)
            for first in range(0, self.num_rows, step):
                histogram += np.bincount(labels[first : first + step], minlength=len(histogram))
            if not np.array_equal(histogram[: len(self.corpus.phonemes)], self.label_histogram):
                raise damaged(self.path / "zarr.json", "label_histogram does not count the labels")

    def _rows(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """The first values of a shard of the partition."""
        size = self.attributes["files"][path.relative_to(self.path).as_posix()]["bytes"]
        with self.corpus.unchanged(), readable(path):
            found = file_size(path)
            if found != size:
                raise damaged(path, f"{found} bytes, wanted {size}")
            return _map_or_read(path, dtype.newbyteorder("<"), math.prod(shape)).reshape(shape)

    def array(self, name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """A small 1-d array of the partition, read as a whole and held to its digest."""
        name = f"{name}/c/0"
        path, entry = self.path / name, self.attributes["files"][name]
        with self.corpus.unchanged(), readable(path):
            data = read_exactly(path, entry["bytes"])
        if digest(data) != entry["xxh3_128"]:
            raise damaged(path, "its bytes differ from their digest")
        return np.frombuffer(data, dtype)

    @cached_property
    def features(self) -> npt.NDArray[Any]:
        """(R, D) `corpus.dtype`, little-endian, padding rows zero; read-only memory map."""
        return self._rows(self.features_path, self.corpus.dtype, (self.num_rows, self.corpus.feature_dim))

    @cached_property
    def labels(self) -> npt.NDArray[Any] | None:
        """(R,) class indices, padding rows the dtype's maximum; None where there are no transcripts.

        They are few bytes, and one that is no class ends a loss or a histogram in a foreign error or a crash: all are
        held to their digests at the first look.
        """
        if not self.labelled:
            return None
        chunks = num_chunks(self.num_rows) * chunk_rows(self.num_rows)
        stored = self._rows(self.labels_path, self.corpus.phonemes.label_dtype, (chunks,))
        self._check_labels(stored)
        return stored[: self.num_rows]

    def _check_labels(self, labels: npt.NDArray[Any]) -> None:
        """Frames have classes, padding has none, and every chunk its digest. Raises FormatError naming the frame."""
        path, step, classes = self.labels_path, chunk_rows(self.num_rows), len(self.corpus.phonemes)
        # Rows from which on there are frames, then padding, then frames again, ...
        starts = self.utterance_start_row
        edges = np.stack((starts, starts + np.diff(self.utterance_end, prepend=0)), axis=1).ravel()
        if self.corpus.context == 0:
            edges = edges[[0, -1]]
        for chunk, wanted in enumerate(self.attributes["files"]["labels/c/0"]["chunks"]):
            part, first = labels[chunk * step : (chunk + 1) * step], chunk * step
            low, high = np.searchsorted(edges, (first, first + step))
            changes = np.diff(part < classes, prepend=low % 2 == 1)
            if not np.array_equal(np.flatnonzero(changes) + first, edges[low:high]):
                frames = np.searchsorted(edges, np.arange(first, first + step), side="right") % 2 == 1
                bad = np.flatnonzero((part < classes) != frames)
                beyond = np.flatnonzero(part[bad] != self.corpus.phonemes.padding_label)
                row = int(bad[beyond[0] if len(beyond) else 0])
                raise damaged(path, self._bad_label(first + row, int(part[row])))
            if digest(part) != wanted:
                raise damaged(path, f"rows from {first} on (chunk {chunk}) differ from their digest")

    def _bad_label(self, row: int, label: int) -> str:
        utterance = int(np.searchsorted(self.utterance_start_row, row, side="right")) - 1
        frame = row - self.corpus.context * (utterance + 1)
        if utterance < 0 or frame >= self.utterance_end[utterance]:
            return f"row {row} is padding, but has the label {label}"
        name = self.utterance_ids[utterance]
        start = int(self.utterance_end[utterance - 1]) if utterance else 0
        return (
            f"frame {frame} of partition {self.name} (frame {frame - start} of {name}) has the label {label}, "
            f"wanted 0 to {len(self.corpus.phonemes) - 1}"
        )

    @cached_property
    def utterance_end(self) -> npt.NDArray[np.int64]:
        """(U,) int64 cumulative frame counts: utterance u is frames `[end[u-1], end[u])`, with end[-1] = 0."""
        ends = self.array("utterance_end", "<i8").astype(np.int64)
        lengths = np.diff(ends, prepend=0)
        found = int(lengths.min()), int(lengths.max()), int(ends[-1])
        if found != (self.lengths["min"], self.lengths["max"], self.num_frames):
            raise damaged(self.path / "utterance_end/c/0", "is not where the utterances end that its metadata count")
        return ends

    @cached_property
    def utterance_start_row(self) -> npt.NDArray[np.int64]:
        """(U,) int64: row of each utterance's first frame."""
        starts = np.concatenate((np.zeros(1, np.int64), self.utterance_end[:-1]))
        return starts + self.corpus.context * np.arange(1, self.num_utterances + 1)

    def _strings(self, name: str) -> list[str]:
        path, text = self.path / f"{name}_bytes/c/0", self.array(f"{name}_bytes", "u1").tobytes()
        ends = self.array(f"{name}_end", "<i8")
        if ends[0] < 1 or np.any(np.diff(ends) < 1) or ends[-1] != len(text):
            raise damaged(self.path / f"{name}_end/c/0", f"is not where the {len(ends)} texts of {path.parent} end")
        starts = [0, *ends[:-1].tolist()]
        try:
            return [text[a:b].decode() for a, b in zip(starts, ends.tolist())]
        except UnicodeDecodeError:
            raise damaged(path, "is not UTF-8") from None

    @cached_property
    def utterance_ids(self) -> list[str]:
        """U ids, in row order."""
        ids = self._strings("utterance_id")
        bad = unusable_name(ids)
        if bad is not None:
            raise damaged(self.path / "utterance_id_bytes/c/0", f"holds {bad!r:.80}, which is no id")
        return ids

    @cached_property
    def speakers(self) -> list[str]:
        """U speakers, in row order; the utterance id itself where the raw corpus names none."""
        speakers = self._strings("speaker")
        odd = next((speaker for speaker in speakers if not speaker.isprintable()), None)
        if odd is not None:
            raise damaged(self.path / "speaker_bytes/c/0", f"holds {odd!r:.80}, which is no speaker")
        return speakers

    @property
    def hours(self) -> float:
        """Speech without padding, in hours."""
        return self.num_frames * self.corpus.frame_shift_ms / 3.6e6
