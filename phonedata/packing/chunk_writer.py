"""Fills inner chunks: reads the utterances that touch one, checks and normalises them, digests and writes the rows."""

import io
import os
import pickle
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numba import njit

from ..cmvn import moments, normalise_half, normalise_single, scale_into
from ..errors import RawDataError
from ..format.zarr_files import CHUNK_ROWS, digest, opened, write_at
from ..raw.base import RawCorpus, RawPartition, as_features
from .executor import Attempt, check_files
from .journal import ChunkResult, Measurements
from .plan import FEATURES, LABELS, ChunkTask, MeasureTask

_LARGEST = {"float16": 65504.0, "float32": float(np.finfo(np.float32).max)}


@njit(cache=True, nogil=True)
def count_labels(labels: np.ndarray, histogram: np.ndarray) -> None:
    """Add the counts of `labels` (R,) to `histogram` (every value of the dtype,) int64."""
    for r in range(labels.size):
        histogram[labels[r]] += 1


def copy_for_worker(partition: RawPartition) -> RawPartition:
    """A copy with buffers of its own, because a partition lends them out until its next read.

    Copied by pickling, except that long lists are shared: they no longer change once a partition is listed, and a
    copy of them per worker would make memory grow with the corpus.
    """
    shared: list[object] = []
    stream = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> int | None:
            if isinstance(value, (list, dict, tuple, np.ndarray)) and len(value) > 100:
                shared.append(value)
                return len(shared) - 1
            return None

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, number: int) -> object:
            return shared[number]

    Pickler(stream).dump(partition)
    stream.seek(0)
    copy: RawPartition = Unpickler(stream).load()
    return copy


def check_shape(where: str, features: np.ndarray, labels: np.ndarray | None, feature_dim: int, dim_from: str) -> None:
    """Refuse features that are not (T, `feature_dim`) as those of `dim_from`, or have another T than their labels."""
    frames, dim = features.shape
    if dim != feature_dim:
        raise RawDataError(
            f"{where}: {dim} coefficients a frame, wanted {feature_dim} as in {dim_from}; "
            f"all partitions must come from one front end"
        )
    if frames == 0:
        raise RawDataError(f"{where}: no frames (T = 0), wanted at least one; remove it or use skip_bad=True")
    if labels is not None and len(labels) != frames:
        raise RawDataError(f"{where}: {frames} feature frames but {len(labels)} labels; make one again")


class UtteranceReader:
    """Reads and checks utterances of a raw corpus; every worker has its own. `dim_from` is a file that has
    `feature_dim` coefficients."""

    def __init__(self, raw: RawCorpus, feature_dim: int, dim_from: str, elsewhere: bool):
        self.partitions = {p.name: copy_for_worker(p) for p in raw.partitions}
        self.feature_dim, self.dim_from, self.label_dtype = feature_dim, dim_from, raw.phonemes.label_dtype
        self._elsewhere = elsewhere

    def read(self, name: str, index: int, mean: np.ndarray, square: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """(features, labels) of one utterance, valid until the next; fills its `mean` (D,) and sum of squared
        deviations `square` (D,). Raises RawDataError, WorkerError."""
        partition = self.partitions[name]
        if self._elsewhere:
            check_files(partition, index)
        features, labels = partition.read(index)
        features = as_features(features, partition.where(index))
        if labels is not None and labels.dtype != self.label_dtype:
            raise RawDataError(
                f"{partition.where(index)}: labels of type {labels.dtype}, wanted {self.label_dtype} class indices; "
                "mend the layout that reads them"
            )
        check_shape(partition.where(index), features, labels, self.feature_dim, self.dim_from)
        if not moments(features, mean, square):
            finite = np.isfinite(features)
            if finite.all():
                what = "values too large to add up in float64"
            else:
                t, d = np.argwhere(~finite)[0]
                what = f"{features[t, d]} at frame {t}, coefficient {d}"
            raise RawDataError(
                f"{partition.where(index)}: {what}, wanted finite numbers; make it again or use skip_bad=True"
            )
        return features, labels


class ChunkFiller:
    """The tool of a thread (executor.MakeTool): makes one inner chunk at a time in its own buffers.

    `folder` is that of the corpus which is being built; the others are those of `UtteranceReader`.
    """

    def __init__(self, raw: RawCorpus, feature_dim: int, dim_from: str, dtype: str, folder: Path, elsewhere: bool):
        self.reader, self.folder = UtteranceReader(raw, feature_dim, dim_from, elsewhere), folder
        self.dtype, self.num_classes, self._limit = dtype, len(raw.phonemes), _LARGEST[dtype]
        half = dtype == "float16"
        self._normalise = normalise_half if half else normalise_single
        # float16 moves as its bits: numba knows no float16. They grow to the largest chunk that there is.
        self._rows = np.zeros((0, feature_dim), np.uint16 if half else np.float32)
        self._labels = np.empty(0, self.reader.label_dtype)
        self._padding = np.iinfo(self.reader.label_dtype).max

    def measure(self, task: MeasureTask, attempt: Attempt) -> Measurements:
        """A task of the first pass: raw moments, nothing is written."""
        lengths: dict[int, int] = {}
        bad: dict[int, str] = {}
        means, squares = np.empty((2, len(task.index), self.reader.feature_dim))
        for index in task.index.tolist():
            n = len(lengths)
            try:
                features, _ = self.reader.read(task.partition, index, means[n], squares[n])
            except RawDataError as error:
                bad[index] = str(error)
                continue
            lengths[index] = len(features)
        return Measurements(lengths, bad, means[: len(lengths)], squares[: len(lengths)])

    def fill(self, task: ChunkTask, attempt: Attempt) -> ChunkResult | Measurements:
        """Write the chunk and return its result; or, if the plan was wrong about it, only what reading has shown."""
        dim = self.reader.feature_dim
        if task.rows > len(self._rows):
            self._rows = np.zeros((task.rows, dim), self._rows.dtype)
            self._labels = np.empty(task.rows, self._labels.dtype)
        rows, row_labels = self._rows[: task.rows], self._labels[: task.rows]
        starts = task.start_row - task.chunk * CHUNK_ROWS
        own = starts >= 0  # the utterance counts where it begins
        means, squares, centres, scales = np.empty((4, len(starts), dim))
        given = task.statistics
        if given is not None:
            centres[:], scales[:] = given.centres, given.scales
        self._pad(starts, task.length, task.rows)
        lengths: dict[int, int] = {}
        bad: dict[int, str] = {}
        for n, (index, start, length) in enumerate(zip(task.index.tolist(), starts.tolist(), task.length.tolist())):
            if task.blank[n]:
                means[n] = squares[n] = centres[n] = scales[n] = 0
                rows[max(start, 0) : min(start + length, task.rows)] = 0
                continue
            try:
                features, labels = self.reader.read(task.partition, index, means[n], squares[n])
            except RawDataError as error:
                bad[index] = str(error)
                continue
            if len(features) != length:
                lengths[index] = len(features)
            if bad or lengths:
                continue  # this layout is refuted: go on only to find every other fault
            if given is None:
                centres[n] = means[n]
                scale_into(means[n], squares[n], length, scales[n])
            end = start + length
            inside = start >= 0 and end <= task.rows
            target = rows[start:end] if inside else np.empty((length, dim), rows.dtype)
            largest = self._normalise(features, centres[n], scales[n], target)
            if not largest <= self._limit:
                bad[index] = self._too_large(task.partition, index, largest)
                continue
            a, b = max(start, 0), min(end, task.rows)
            if not inside:
                rows[a:b] = target[a - start : b - start]
            if labels is not None:
                row_labels[a:b] = labels if inside else labels[a - start : b - start]
        if bad or lengths:
            return Measurements(lengths, bad, np.empty((0, dim)), np.empty((0, dim)))
        if given is not None and given.means is not None and given.squares is not None:
            other = ((means != given.means) | (squares != given.squares)).any(axis=1) & ~task.blank
            if other.any():
                where = self.reader.partitions[task.partition].where(int(task.index[np.argmax(other)]))
                raise RawDataError(f"{where}: has other values than when statistics were taken; pack again")
        stored = (means[own] - centres[own]) * scales[own], squares[own] * scales[own] ** 2
        labelled = self.reader.partitions[task.partition].labelled
        histogram = np.zeros(self._padding + 1, np.int64)
        if labelled:
            count_labels(row_labels, histogram)
            if histogram[: self.num_classes].sum() != task.own_frames:
                raise RawDataError(self._no_class(task, starts, row_labels))
        folder = self.folder / task.partition
        written = [(folder / FEATURES, rows), (folder / LABELS, row_labels)][: 1 + labelled]
        with ExitStack() as files:
            descriptors = [files.enter_context(opened(path)) for path, _ in written]
            attempt.claim()
            for descriptor, (_, data) in zip(descriptors, written):
                write_at(descriptor, task.chunk * data.nbytes, data)
                if attempt.must_sync:
                    os.fsync(descriptor)
        if not labelled:
            return ChunkResult(digest(rows), None, None, *stored)
        return ChunkResult(digest(rows), digest(row_labels), histogram[: self.num_classes], *stored)

    def _pad(self, starts: np.ndarray, lengths: np.ndarray, rows: int) -> None:
        """Padding wherever no utterance lies."""
        done = 0
        for a, b in [*zip(starts.tolist(), (starts + lengths).tolist()), (rows, rows)]:
            if a > done:
                self._rows[done:a] = 0
                self._labels[done:a] = self._padding
            done = b

    def _no_class(self, task: ChunkTask, starts: np.ndarray, labels: np.ndarray) -> str:
        """Names the first frame whose label is none of the classes."""
        frames = np.zeros(len(labels), bool)
        for start, length in zip(starts.tolist(), task.length.tolist()):
            frames[max(start, 0) : start + length] = True
        row = int(np.flatnonzero(frames & (labels >= self.num_classes))[0])
        n = int(np.searchsorted(starts, row, side="right")) - 1
        where = self.reader.partitions[task.partition].where(int(task.index[n]))
        return f"{where}: class {labels[row]} at frame {row - starts[n]}, wanted 0..{self.num_classes - 1}; correct it"

    def _too_large(self, partition: str, index: int, largest: float) -> str:
        where = self.reader.partitions[partition].where(index)
        way_out = "pack with dtype='float32', or with CMVN" if self.dtype == "float16" else "scale the features down"
        return f"{where}: a value of {largest:.6g} does not fit {self.dtype} (at most {self._limit:.6g}); {way_out}"
