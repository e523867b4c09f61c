"""The usual files of HW1P2, many in one call that never holds the interpreter's lock: read, looked up, normalised.

Usual are what numpy.save writes for float32 features (T, D) and `<U5` transcripts of the length that the plan
expects. A file that differs in anything is left to the ordinary way, which packs it or says what is wrong with it:
this room knows no errors. It exists because every call that gives the lock away waits to get it back: with a dozen
such calls an utterance, two threads were no faster than one.
"""

import functools
import os
import sys

import numpy as np
from numba import njit, types

from ..cmvn import moments, normalise_half, normalise_single, scale_into
from ..phonemes import END_MARKS, START_MARKS
from .label_table import SymbolTable, encode_text
from .npy import FLAGS

# open() takes further arguments only with O_CREAT; two are passed as those of any function.
_open = types.ExternalFunction("open", types.intc(types.uintp, types.intc))
_pread = types.ExternalFunction("pread", types.int64(types.intc, types.uintp, types.uintp, types.int64))
_close = types.ExternalFunction("close", types.intc(types.intc))

# Linux of 64 bits has the C functions as declared above; headers and values are read as they lie, little-endian.
AVAILABLE = sys.platform.startswith("linux") and sys.maxsize > 1 << 32 and sys.byteorder == "little"
_HEADER = 128
_WIDTH = 5
_LONGEST = 1 << 24  # bytes of a feature file; a longer one is not usual


@functools.lru_cache(maxsize=1 << 14)
def _header(descr: str, *shape: int) -> bytes:
    """The 128 bytes that numpy.save begins a C-order array with."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\1\0" + (_HEADER - 10).to_bytes(2, "little") + text.ljust(_HEADER - 11).encode() + b"\n"


def _points(symbols) -> np.ndarray:
    """(K, 5) code points of the symbols that have room in `<U5`."""
    return np.array([s for s in sorted(symbols) if len(s) <= _WIDTH], f"<U{_WIDTH}").view(np.uint32).reshape(-1, _WIDTH)


@njit(cache=True, nogil=True)
def _read(name, room, size, header):
    """Whether the file at address `name` is `size` bytes that begin with `header` (128,); they are then in `room`."""
    file = _open(name, FLAGS)
    if file < 0:
        return False
    # One byte more than is wanted shows a longer file.
    count = _pread(file, room.ctypes.data, np.uintp(size + 1), np.int64(0))
    _close(file)
    if count != size:
        return False
    return np.array_equal(room[:_HEADER], header)


@njit(cache=True, nogil=True)
def _among(row, marks):
    found = False
    for k in range(marks.shape[0]):
        found |= np.array_equal(row, marks[k])
    return found


@njit(cache=True, nogil=True)
def _read_labels(name, room, length, plain, marked, opening, closing, slots, spellings, classes):
    """Whether the transcript of `length` frames is usual; its classes are then in `classes`."""
    first = 0
    if _read(name, room, _HEADER + (length + 2) * _WIDTH * 4, marked):
        first = 1
    elif not _read(name, room, _HEADER + length * _WIDTH * 4, plain):
        return False
    text = room[_HEADER : _HEADER + (length + 2 * first) * _WIDTH * 4].view(np.uint32).reshape(-1, _WIDTH)
    wanted = first == 1
    if _among(text[0], opening) != wanted or _among(text[-1], closing) != wanted:
        return False
    return encode_text(text[first : first + length], slots, spellings, classes[:length]) < 0


@njit(cache=True, nogil=True)
def _fill(names, headers, room, labels, rows, row_labels, starts, lengths, statistics, own, half, limit, usual):
    """Fill `rows` and `row_labels` with the usual utterances, and set their `usual` (n,).

    `labels` is (marked headers, plain headers, opening and closing marks, slots, spellings, classes). `statistics`
    (4, n, D) holds means, squares, centres, scales; with `own` the last two come from the first two.
    """
    plain, marked, opening, closing, slots, spellings, classes = labels
    dim = rows.shape[1]
    for n in range(lengths.size):
        length, start = lengths[n], starts[n]
        mean, square, centre, scale = statistics[0, n], statistics[1, n], statistics[2, n], statistics[3, n]
        if names.shape[0] == 2 and not _read_labels(
            names[1, n], room, length, plain[n], marked[n], opening, closing, slots, spellings, classes
        ):
            continue
        if not _read(names[0, n], room, _HEADER + length * dim * 4, headers[n]):
            continue
        features = room[_HEADER : _HEADER + length * dim * 4].view(np.float32).reshape(length, dim)
        if not moments(features, mean, square):
            continue
        if own:
            centre[:] = mean
            scale_into(mean, square, length, scale)
        a, b = max(start, 0), min(start + length, rows.shape[0])
        inside = b - a == length
        target = rows[a:b] if inside else np.empty((length, dim), rows.dtype)
        if half:
            largest = normalise_half(features, centre, scale, target)
        else:
            largest = normalise_single(features, centre, scale, target)
        if not largest <= limit:
            continue
        if not inside:
            rows[a:b] = target[a - start : b - start]
        if names.shape[0] == 2:
            for t in range(a, b):
                row_labels[t] = classes[t - start]
        usual[n] = True


class UsualFiles:
    """Fills the rows of usual utterances of a chunk; every worker has its own."""

    def __init__(self, table: SymbolTable):
        self._table = table
        self._opening, self._closing = _points(START_MARKS), _points(END_MARKS)
        self._room, self._classes = np.empty(0, np.uint8), np.empty(0, np.uint16)

    def fill(self, paths, rows, row_labels, starts, lengths, statistics, own: bool, limit: float) -> np.ndarray:
        """Which of n utterances are now in place, (n,) bool.

        `paths` is one list of n files, features, or two, with transcripts. `rows` (R, D) uint16 (float16 bits) or
        float32 and `row_labels` (R,) get the part of utterance i that lies within, from row `starts[i]` on, which may
        be negative. `statistics` (4, n, D) float64: means, sums of squared deviations, and what to normalise with,
        filled here too if `own`. Values above `limit` are not usual.
        """
        dim, count = rows.shape[1], len(lengths)
        usual = np.zeros(count, bool)
        longest = int(lengths.max(initial=0))
        size = _HEADER + max(longest * dim * 4, (longest + 2) * _WIDTH * 4) + 1
        if size > _LONGEST or not AVAILABLE or not count:
            return usual
        if size > len(self._room):
            raw = np.empty(size * 5 // 4 + 64, np.uint8)
            self._room = raw[-raw.ctypes.data % 64 :]
        # Each buffer by its own measure: the slack of one says nothing of the other, and the kernel checks no bounds.
        if longest > len(self._classes):
            self._classes = np.empty(longest * 5 // 4, np.uint16)
        text = np.frombuffer(os.fsencode("\0".join(path for kind in paths for path in kind)) + b"\0", np.uint8)
        ends = np.flatnonzero(text == 0)
        if len(ends) != len(paths) * count:
            return usual
        names = text.ctypes.data + np.concatenate([[0], ends[:-1] + 1]).astype(np.uintp).reshape(len(paths), count)
        headers, plain, marked = (
            np.frombuffer(b"".join(kind), np.uint8).reshape(count, _HEADER)
            for kind in (
                [_header("<f4", t, dim) for t in lengths.tolist()],
                [_header(f"<U{_WIDTH}", t) for t in lengths.tolist()],
                [_header(f"<U{_WIDTH}", t + 2) for t in lengths.tolist()],
            )
        )
        slots, spellings = self._table.slots, self._table.spellings
        labels = plain, marked, self._opening, self._closing, slots, spellings, self._classes
        files = names, headers, self._room, labels
        half = rows.dtype == np.uint16
        _fill(*files, rows, row_labels, starts, lengths, statistics, own, half, limit, usual)
        return usual
