"""Fills inner chunks: reads the utterances that touch one, checks and normalises them, digests and writes the rows."""

import pickle

import numpy as np

from phonedata.cmvn import moments, normalise_half, normalise_single, scale_of
from phonedata.errors import RawDataError, SpecError
from phonedata.plan import ChunkTask
from phonedata.records import ChunkResult, Reading
from phonedata.shard import CHUNK_ROWS, ShardFile, digest

_LARGEST = {"float16": 65504.0, "float32": float(np.finfo(np.float32).max)}


class UtteranceReader:
    """Reads and checks utterances of a raw corpus; every worker has its own."""

    def __init__(self, raw, feature_dim: int, dim_from: str):
        # Copies, because a partition lends out its buffers until its next read.
        self.partitions = {p.name: pickle.loads(pickle.dumps(p)) for p in raw.partitions}
        self.feature_dim, self.dim_from = feature_dim, dim_from
        self._mean, self._square = np.empty(feature_dim), np.empty(feature_dim)

    def read(self, name: str, index: int):
        """(features, labels, mean, squares) of one utterance, valid until the next; raises RawDataError."""
        partition = self.partitions[name]
        features, labels = partition.read(index)
        frames, dim = features.shape
        if dim != self.feature_dim:
            raise RawDataError(
                f"{partition.where(index)}: {dim} coefficients a frame, wanted {self.feature_dim} as in "
                f"{self.dim_from}; "
                f"all partitions must come from one front end"
            )
        if frames == 0:
            raise RawDataError(
                f"{partition.where(index)}: no frames (T = 0), wanted at least one; remove it or use --skip-bad"
            )
        if labels is not None and len(labels) != frames:
            raise RawDataError(
                f"{partition.where(index)}: {frames} feature frames but {len(labels)} labels; make one again"
            )
        if not moments(features, self._mean, self._square):
            finite = np.isfinite(features)
            if finite.all():
                what = "values too large to add up in float64"
            else:
                t, d = np.argwhere(~finite)[0]
                what = f"{features[t, d]} at frame {t}, coefficient {d}"
            raise RawDataError(
                f"{partition.where(index)}: {what}, wanted finite numbers; make it again or use --skip-bad"
            )
        return features, labels, self._mean, self._square

    def measure(self, name: str, indices) -> Reading:
        """Raw moments of some utterances, without writing anything."""
        good, counts, means, squares, bad = [], [], [], [], {}
        for index in map(int, indices):
            try:
                features, _, mean, square = self.read(name, index)
            except RawDataError as error:
                bad[index] = str(error)
                continue
            good.append(index)
            counts.append(len(features))
            means.append(mean.copy())
            squares.append(square.copy())
        lengths = dict(zip(good, counts))
        return Reading.of(good, counts, means, squares, self.feature_dim, lengths=lengths, bad=bad)


class ChunkFiller:
    """Makes one inner chunk at a time in its own buffers.

    `statistics(partition, index)` gives the mean and scale (D,) to normalise an utterance with, or None for its own.
    """

    def __init__(self, reader: UtteranceReader, dtype: str, label_dtype, num_classes: int, statistics):
        self.reader, self.statistics = reader, statistics
        self.dtype, self.num_classes = dtype, num_classes
        half = dtype == "float16"
        self._normalise = normalise_half if half else normalise_single
        # float16 moves as its bits: numba knows no float16.
        self._rows = np.zeros((CHUNK_ROWS, reader.feature_dim), np.uint16 if half else np.float32)
        self._labels = np.empty(CHUNK_ROWS, label_dtype)
        self._padding = np.iinfo(label_dtype).max

    def fill(self, task: ChunkTask, features_file: ShardFile, labels_file: ShardFile | None) -> ChunkResult | Reading:
        """Write the chunk and return its result; or, if the plan was wrong about it, only what reading has shown."""
        first_row = task.chunk * CHUNK_ROWS
        rows, row_labels, dim = self._rows, self._labels, self.reader.feature_dim
        owned, counts, means, squares = [], [], [], []
        true_lengths, bad = {}, {}
        done = 0
        for index, start, length in zip(task.index.tolist(), task.start_row.tolist(), task.length.tolist()):
            try:
                features, labels, mean, square = self.reader.read(task.partition, index)
            except RawDataError as error:
                bad[index] = str(error)
                continue
            if len(features) != length:
                true_lengths[index] = len(features)
                continue
            if bad or true_lengths:
                continue  # this layout is refuted: go on only to find every other fault
            given = self.statistics(task.partition, index)
            centre, scale = given if given is not None else (mean, scale_of(mean, np.sqrt(square / length)))
            a, b = start - first_row, start - first_row + length
            inside = a >= 0 and b <= CHUNK_ROWS
            a, b = max(a, 0), min(b, CHUNK_ROWS)
            target = rows[a:b] if inside else np.empty((length, dim), rows.dtype)
            largest = self._normalise(features, centre, scale, target)
            if not largest <= _LARGEST[self.dtype]:
                self._refuse(task.partition, index, largest)
            if a > done:
                rows[done:a] = 0
                row_labels[done:a] = self._padding
            skip = first_row - start if start < first_row else 0
            if not inside:
                rows[a:b] = target[skip : skip + b - a]
            if labels is not None:
                row_labels[a:b] = labels[skip : skip + b - a]
            done = b
            if start >= first_row:
                owned.append(index)
                counts.append(length)
                means.append((mean - centre) * scale)
                squares.append(square * scale * scale)
        reading = Reading.of(owned, counts, means, squares, dim, lengths=true_lengths, bad=bad)
        if bad or true_lengths:
            return reading
        rows[done:] = 0
        row_labels[done:] = self._padding
        features_file.write(task.chunk, rows)
        if labels_file is None:
            return ChunkResult(digest(rows), None, None, reading)
        histogram = np.bincount(row_labels, minlength=self.num_classes)
        if histogram[self.num_classes : self._padding].any():
            raise RawDataError(
                f"{task.partition}: a label beyond the last class {self.num_classes - 1} in chunk {task.chunk}"
            )
        labels_file.write(task.chunk, row_labels)
        return ChunkResult(digest(rows), digest(row_labels), histogram[: self.num_classes], reading)

    def _refuse(self, partition: str, index: int, largest: float) -> None:
        where = self.reader.partitions[partition].where(index)
        way_out = "pack with --dtype float32, or with CMVN" if self.dtype == "float16" else "scale the features down"
        raise SpecError(
            f"{where}: a value of {largest:.6g} does not fit {self.dtype} (at most {_LARGEST[self.dtype]:.6g}); "
            f"{way_out}"
        )
