"""JoinedRows: the rows of a selection as one array, in the layout of a single partition, read from its files."""

from __future__ import annotations

import numpy as np

from ..format.selection import Selection
from .mapped_files import MappedFiles


class JoinedRows:
    """Frame `f` of the selection's utterance `u` is row `f + context * (u + 1)` of R = N + context * (U + 1) rows.

    Attributes: `context`, `num_rows` R, `dim` D, `dtype` of the rows, `label_dtype` that `read` gives.
    """

    def __init__(self, selection: Selection):
        self._selection, self.context = selection, selection.corpus.context
        self.num_rows = num_joined_rows(selection)
        self.dim, self.dtype = selection.corpus.feature_dim, selection.corpus.dtype
        self.label_dtype = joined_label_dtype(selection)
        self._files = MappedFiles.of(selection)
        self._source, self._row, self._first, self._end = _runs(selection)

    def read(self, first: int, stop: int, rows: np.ndarray, labels: np.ndarray | None = None) -> None:
        """Fill `rows` (stop - first, D) and `labels` (stop - first,) with rows [first, stop); raises FormatError."""
        run = int(np.searchsorted(self._first, first, side="right")) - 1
        at = first
        while at < stop:
            count = min(stop, int(self._end[run])) - at
            source, row = int(self._source[run]), int(self._row[run]) + at - int(self._first[run])
            part = slice(at - first, at - first + count)
            self._files.read(source, row, rows[part])
            if labels is not None:
                self._read_labels(len(self._selection.partitions) + source, row, labels[part])
            at += count
            run += 1

    def _read_labels(self, file: int, row: int, labels: np.ndarray) -> None:
        stored = self._selection.corpus.phonemes.label_dtype
        if stored == labels.dtype:
            self._files.read(file, row, labels)
        else:
            wide = np.empty(labels.shape, stored)
            self._files.read(file, row, wide)
            labels[:] = wide

    def close(self) -> None:
        """Close the files."""
        self._files.close()


def num_joined_rows(selection: Selection) -> int:
    """R of `JoinedRows`."""
    return selection.num_frames + selection.corpus.context * (selection.num_utterances + 1)


def joined_label_dtype(selection: Selection) -> np.dtype | None:
    """uint8, or int32 for more than 255 classes (torch gathers no uint16); None where there are no labels."""
    if not selection.labelled:
        return None
    return np.dtype(np.uint8 if selection.corpus.phonemes.label_dtype == np.uint8 else np.int32)


def _runs(selection: Selection) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The K runs of rows that are contiguous in a source: (source, row there, first row, end row here), (K,) each.

    Together they cover all R rows. A run ends with the padding behind its last utterance; only the first run also
    begins with padding, since each later one follows that of the run before it.
    """
    context, source, row = selection.corpus.context, selection.utterance_source, selection.utterance_start_row
    lengths = np.diff(selection.utterance_end, prepend=0)
    begins = selection.utterance_end - lengths + context * np.arange(1, len(lengths) + 1)
    neighbours = (source[1:] == source[:-1]) & (row[1:] == row[:-1] + lengths[:-1] + context)
    firsts = np.concatenate(([0], np.flatnonzero(~neighbours) + 1))
    lasts = np.append(firsts[1:], len(row)) - 1
    first_row, source_row = begins[firsts], row[firsts]
    # Only the very first run starts with its own padding.
    first_row[0] -= context
    source_row = source_row - np.where(np.arange(len(firsts)) == 0, context, 0)
    return source[firsts], source_row, first_row, begins[lasts] + lengths[lasts] + context
