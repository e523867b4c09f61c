"""PackedCorpus: the packed format, opened and described; docs/FORMAT.md has it byte by byte."""

from __future__ import annotations

import contextlib
import json
import operator
from collections.abc import Callable, Iterator
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import CorpusNotFound, FormatError, PhonedataError, SpecError
from ..files import recover
from ..phonemes import PhonemeSet
from .verify import verify_files

if TYPE_CHECKING:
    import zarr

FORMAT_VERSION = 1


@contextlib.contextmanager
def _permitted(path: Path) -> Iterator[None]:
    """A file inside that the system refuses to read becomes a PhonedataError that names `path`."""
    try:
        yield
    except PhonedataError:
        raise
    except PermissionError as error:
        raise PhonedataError(f"{path}: cannot be read ({error.strerror}); mend its permissions") from None
    except OSError as error:
        raise PhonedataError(f"{str(path)[:200]}: cannot be read ({error.strerror}); give another path") from None


def read_group(file: Path) -> dict[str, Any]:
    """The `phonedata` attributes of a group's zarr.json; raises FormatError when they cannot be read."""
    try:
        attributes = json.loads(file.read_bytes())["attributes"]["phonedata"]
    except FileNotFoundError:
        raise FormatError(f"{file}: missing, but every group of a packed corpus has one; pack again") from None
    except (ValueError, KeyError, TypeError):
        raise FormatError(f"{file}: not the metadata of a packed corpus; pack again") from None
    if not isinstance(attributes, dict):
        raise FormatError(f"{file}: attributes.phonedata is not a table; pack again")
    return attributes


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
        with _permitted(self.path):
            recover(self.path)
            if not root.is_file():
                if self.path.is_dir() and any(self.path.iterdir()):
                    found = "no packed corpus (no zarr.json in it); if it is a raw folder, pack it into a new one"
                    raise CorpusNotFound(f"{self.path}: {found}: phonedata pack {self.path} PACKED")
                found = "no packed corpus (no zarr.json in it)" if self.path.exists() else "does not exist"
                raise CorpusNotFound(f"{self.path}: {found}; make one with: phonedata pack RAW {self.path}")
            self.attributes = read_group(root)
        version = self.attributes.get("format")
        if version != FORMAT_VERSION:
            raise FormatError(
                f"{self.path}: format version {version!r}, but this phonedata reads version {FORMAT_VERSION}; "
                f"pack again with: phonedata pack RAW {self.path} --replace"
            )
        try:
            self.phonemes = PhonemeSet(tuple(self.attributes["phonemes"]["symbols"]))
            self.feature_dim = int(self.attributes["feature_dim"])
            self.context = int(self.attributes["context"])
            self.frame_shift_ms = float(self.attributes["frame_shift_ms"])
            self.cmvn = dict(self.attributes["cmvn"])
            self.dtype = np.dtype(self.attributes["dtype"])
            self.digest = str(self.attributes["digest"])
            names = sorted(self.attributes["partitions"])
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{root}: damaged metadata ({error!r}); run: phonedata verify {self.path}") from None
        with self.unchanged():
            self.partitions = {name: Partition(self, name) for name in names}

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Files opened inside are of this corpus: raises FormatError where the folder holds another one by now.

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
        with _permitted(self.path):
            try:
                digest = read_group(self.path / "zarr.json").get("digest")
            except FormatError:
                digest = None
        if digest != self.digest:
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
        """Let go of the memory maps of its rows; they are made again when asked for. Arrays taken from them stay."""
        for partition in self.partitions.values():
            for name in ("features", "labels"):
                partition.__dict__.pop(name, None)

    def verify(self, progress: Callable[[str, int, int, str], None] | None = None) -> int:
        """Read every byte against the digests; returns the bytes read, raises FormatError naming the first bad file.

        `progress(stage, done, total, unit)` is called now and then, in bytes.
        """
        with self.unchanged():
            size = verify_files(self.path, progress)
            for partition in self.partitions.values():
                partition.check_rows()
        return size


def _reopen(path: Path, digest: str) -> PackedCorpus:
    corpus = PackedCorpus(path)
    if corpus.digest != digest:
        # What came with it, such as the rows of a selection, is of the other one.
        raise FormatError(f"{path}: holds another corpus than when it was pickled; open it again")
    return corpus


class Partition:
    """One partition: memory maps of its rows, and where its utterances lie. Opened by PackedCorpus.

    Frame f (0..N-1, cumulative over utterances) of utterance u is row `f + context * (u + 1)`.
    """

    def __init__(self, corpus: PackedCorpus, name: str) -> None:
        self.corpus, self.name, self.path = corpus, name, corpus.path / name
        with _permitted(self.path):
            self.attributes = read_group(self.path / "zarr.json")
        try:
            self.num_utterances = int(self.attributes["utterances"])
            self.num_frames = int(self.attributes["frames"])
            self.num_rows = int(self.attributes["rows"])
            self.labelled = bool(self.attributes["labelled"])
            self.mean: npt.NDArray[np.float64] = np.array(self.attributes["mean"], np.float64)
            self.std: npt.NDArray[np.float64] = np.array(self.attributes["std"], np.float64)
            self.lengths = dict(self.attributes["lengths"])
            histogram = self.attributes["label_histogram"]
            self.digest = str(corpus.attributes["partitions"][name]["digest"])
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(
                f"{self.path}/zarr.json: damaged metadata ({error!r}); run: phonedata verify {corpus.path}"
            ) from None
        self.label_histogram = None if histogram is None else np.array(histogram, np.int64)
        if self.num_rows != self.num_frames + corpus.context * (self.num_utterances + 1):
            raise FormatError(
                f"{self.path}/zarr.json: {self.num_rows} rows, but {self.num_frames} frames of {self.num_utterances} "
                f"utterances with context {corpus.context} need another count; run: phonedata verify {corpus.path}"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return operator.getitem, (self.corpus, self.name)

    def check_rows(self) -> None:
        """What digests cannot say: that rows, labels and utterances fit together. Raises FormatError."""
        lengths = np.diff(self.utterance_end, prepend=0)
        if not len(self.utterance_ids) == len(self.speakers) == len(lengths) == self.num_utterances:
            raise FormatError(f"{self.path}: ids, speakers and utterances differ in number; pack again")
        labels = self.labels
        if labels is None:
            return
        for u, (start, length) in enumerate(zip(self.utterance_start_row.tolist(), lengths.tolist())):
            largest = int(labels[start : start + length].max())
            if largest >= len(self.corpus.phonemes):
                raise FormatError(f"{self.path}/labels: utterance {u} has class {largest}, which is none; pack again")

    def _map(self, file: str, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
        path = self.path / file
        wanted = int(np.prod(shape)) * np.dtype(dtype).itemsize
        with self.corpus.unchanged(), _permitted(path):
            found = path.stat().st_size if path.is_file() else -1
            if found < wanted:
                raise FormatError(
                    f"{path}: {'missing' if found < 0 else f'{found} bytes'}, wanted at least {wanted}; "
                    f"copy the corpus again or pack again"
                )
            return np.memmap(path, dtype=dtype, mode="r", shape=shape)

    def array(self, name: str, dtype: npt.DTypeLike, count: int) -> np.memmap[Any, Any]:
        """A small 1-d array of the partition, (count,), as a memory map."""
        return self._map(f"{name}/c/0", dtype, (count,))

    @cached_property
    def features(self) -> np.memmap[Any, Any]:
        """(R, D) `corpus.dtype`, little-endian, padding rows zero; read-only memory map."""
        shape = self.num_rows, self.corpus.feature_dim
        return self._map("features/c/0/0", self.corpus.dtype.newbyteorder("<"), shape)

    @cached_property
    def labels(self) -> np.memmap[Any, Any] | None:
        """(R,) class indices, padding rows the dtype's maximum; None where there are no transcripts."""
        if not self.labelled:
            return None
        return self._map("labels/c/0", self.corpus.phonemes.label_dtype.newbyteorder("<"), (self.num_rows,))

    @cached_property
    def utterance_end(self) -> npt.NDArray[np.int64]:
        """(U,) int64 cumulative frame counts: utterance u is frames `[end[u-1], end[u])`, with end[-1] = 0."""
        ends = np.array(self.array("utterance_end", "<i8", self.num_utterances), np.int64)
        if ends[0] < 1 or np.any(np.diff(ends) < 1) or ends[-1] != self.num_frames:
            raise FormatError(f"{self.path}/utterance_end: not the cumulative counts of {self.num_frames} frames")
        return ends

    @cached_property
    def utterance_start_row(self) -> npt.NDArray[np.int64]:
        """(U,) int64: row of each utterance's first frame."""
        starts = np.concatenate((np.zeros(1, np.int64), self.utterance_end[:-1]))
        return starts + self.corpus.context * np.arange(1, self.num_utterances + 1)

    def _strings(self, name: str) -> list[str]:
        ends = np.array(self.array(f"{name}_end", "<i8", self.num_utterances))
        if ends[0] < 1 or np.any(np.diff(ends) < 1):
            raise FormatError(f"{self.path}/{name}_end: not increasing; run: phonedata verify {self.corpus.path}")
        text = self.array(f"{name}_bytes", "u1", int(ends[-1])).tobytes()
        starts = [0, *ends[:-1].tolist()]
        try:
            return [text[a:b].decode() for a, b in zip(starts, ends.tolist())]
        except UnicodeDecodeError:
            where = f"{self.path}/{name}_bytes"
            raise FormatError(f"{where}: not UTF-8; run: phonedata verify {self.corpus.path}") from None

    @cached_property
    def utterance_ids(self) -> list[str]:
        """U ids, in row order."""
        return self._strings("utterance_id")

    @cached_property
    def speakers(self) -> list[str]:
        """U speakers, in row order; the utterance id itself where the raw corpus names none."""
        return self._strings("speaker")

    @property
    def hours(self) -> float:
        """Speech without padding, in hours."""
        return self.num_frames * self.corpus.frame_shift_ms / 3.6e6
