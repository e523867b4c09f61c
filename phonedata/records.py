"""What reading and writing have shown, and the same as journal records, exact to the last bit."""

import base64
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Reading:
    """What reading n utterances has shown.

    Attributes:
        index: (n,) int64 index in the raw partition of the good ones.
        counts: (n,) int64 frames.
        means: (n, D) float64 means.
        squares: (n, D) float64 sums of squared deviations.
        lengths: index -> true frame count, where it matters.
        bad: index -> one line that says why the utterance cannot be packed.
    """

    index: np.ndarray
    counts: np.ndarray
    means: np.ndarray
    squares: np.ndarray
    lengths: dict[int, int] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, index, counts, means: np.ndarray, squares: np.ndarray, **more) -> "Reading":
        """From lists or arrays of integers, and (n, D) arrays."""
        return cls(np.array(index, np.int64), np.array(counts, np.int64), means, squares, **more)

    def to_record(self) -> dict:
        """Plain values for JSON."""
        return {
            "index": _encode(self.index, "<i8"),
            "counts": _encode(self.counts, "<i8"),
            "means": _encode(self.means, "<f8"),
            "squares": _encode(self.squares, "<f8"),
            "bad": list(self.bad.items()),
        }

    @classmethod
    def from_record(cls, entry: dict, dim: int) -> "Reading":
        index, counts = _decode(entry["index"], "<i8"), _decode(entry["counts"], "<i8")
        means, squares = (_decode(entry[k], "<f8").reshape(-1, dim) for k in ("means", "squares"))
        lengths = dict(zip(index.tolist(), counts.tolist()))
        return cls(index, counts, means, squares, lengths, {int(i): m for i, m in entry["bad"]})


@dataclass
class ChunkResult:
    """A written chunk: digests of its features and labels, label counts (C,) int64, and the stored moments of the
    utterances that begin in it."""

    features: str
    labels: str | None
    histogram: np.ndarray | None
    reading: Reading

    def to_record(self) -> dict:
        """Plain values for JSON."""
        histogram = None if self.histogram is None else self.histogram.tolist()
        return {"features": self.features, "labels": self.labels, "histogram": histogram, **self.reading.to_record()}

    @classmethod
    def from_record(cls, entry: dict, dim: int) -> "ChunkResult":
        histogram = None if entry["histogram"] is None else np.array(entry["histogram"], np.int64)
        return cls(entry["features"], entry["labels"], histogram, Reading.from_record(entry, dim))


def _encode(array: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype).tobytes()).decode()


def _decode(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype).copy()
