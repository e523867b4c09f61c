"""SymbolTable: text labels to class indices by a hash table whose every hit is compared in full."""

import numpy as np
from numba import njit

from ..errors import RawDataError, StrayLabel
from ..phonemes import END_MARKS, START_MARKS, PhonemeSet


@njit("uint64(uint32[::1])", cache=True, nogil=True)
def _hash(points):
    """64-bit hash of a row of code points up to its first zero."""
    h = np.uint64(0xCBF29CE484222325)
    for j in range(points.size):
        if points[j] == 0:
            break
        h = (h ^ np.uint64(points[j])) * np.uint64(0x9E3779B97F4A7C15)
        h ^= h >> np.uint64(29)
    return h


@njit("int64(uint32[::1], int32[::1], uint32[:, ::1])", cache=True, nogil=True)
def _lookup(points, slots, spellings):
    """Class of one row of code points (W,), or -1. A spelling lies in its hash's slot or in the next free one."""
    known = spellings.shape[1] - 1
    slot = np.int64(_hash(points) & np.uint64(slots.size - 1))
    while slots[slot] >= 0:
        entry = slots[slot]
        equal = True
        for j in range(max(points.size, known)):
            a = points[j] if j < points.size else np.uint32(0)
            b = spellings[entry, j] if j < known else np.uint32(0)
            equal &= a == b
        if equal:
            return np.int64(spellings[entry, known])
        slot = (slot + 1) & (slots.size - 1)
    return -1


@njit("int64(uint32[:, ::1], int32[::1], uint32[:, ::1], uint16[::1])", cache=True, nogil=True)
def _encode_text(text, slots, spellings, classes):
    """Class of every row of `text` (T, W) into `classes` (T,); returns the first unknown row, or -1.

    Labels repeat for several frames: comparing with the row before is cheaper than hashing. W = 5, what every course
    file has, is compared without a loop.
    """
    frames, width = text.shape
    flat = text.reshape(-1)
    label = np.int64(-1)
    p0 = p1 = p2 = p3 = p4 = np.uint32(0xFFFFFFFF)
    for t in range(frames):
        at = np.uintp(t) * np.uintp(width)
        if width == 5:
            q0, q1, q2 = flat[at], flat[at + np.uintp(1)], flat[at + np.uintp(2)]
            q3, q4 = flat[at + np.uintp(3)], flat[at + np.uintp(4)]
            differs = (p0 ^ q0) | (p1 ^ q1) | (p2 ^ q2) | (p3 ^ q3) | (p4 ^ q4)
            p0, p1, p2, p3, p4 = q0, q1, q2, q3, q4
        else:
            differs = np.uint32(t == 0)
            if t > 0:
                for j in range(width):
                    differs |= flat[at + np.uintp(j)] ^ flat[at + np.uintp(j) - np.uintp(width)]
        if differs != 0 or t == 0:
            label = _lookup(text[t], slots, spellings)
            if label < 0:
                return t
        classes[np.uintp(t)] = np.uint16(label)
    return -1


def _symbol(points: np.ndarray) -> str:
    """Text of a row of code points; what is no code point at all (a damaged file) shows as U+FFFD."""
    return "".join(chr(p) if p <= 0x10FFFF else "\ufffd" for p in points.tolist()).rstrip("\0")


class SymbolTable:
    """Looks up the classes of whole transcripts. Accepts every spelling that `phonemes` accepts.

    `listed_in` is where whoever made the transcripts lists the symbols, for messages.
    """

    def __init__(self, phonemes: PhonemeSet, listed_in: str = "phonemes.txt"):
        self.phonemes, self._listed_in = phonemes, listed_in
        names = list(phonemes.classes)
        width = max(len(n) for n in names)
        # The class rides in one more column, out of reach of the comparison.
        self.spellings = np.zeros((len(names), width + 1), np.uint32)
        for row, name in zip(self.spellings, names):
            row[: len(name)] = [ord(c) for c in name]
            row[width] = phonemes.classes[name]
        # At most an eighth full, so that most lookups end at their first slot, and one always ends.
        self.slots = np.full(1 << (len(names) * 8 - 1).bit_length(), -1, np.int32)
        for entry, row in enumerate(self.spellings):
            slot = int(_hash(row[:width])) & (len(self.slots) - 1)
            while self.slots[slot] >= 0:
                slot = (slot + 1) & (len(self.slots) - 1)
            self.slots[slot] = entry
        self._out = np.empty(0, np.uint16)

    def encode(self, labels: np.ndarray, where: str) -> np.ndarray:
        """(T,) or (T + 2,) text or integer labels -> (T,) classes of `label_dtype`, start and end marks stripped.

        Integer labels are class indices; their marks are the two numbers after the last class. Valid until the next
        call. Raises RawDataError naming `where`.
        """
        if labels.ndim != 1:
            raise RawDataError(
                f"{where}: transcript of shape {labels.shape}, wanted (T,): one symbol a frame; make it again"
            )
        if labels.dtype.kind in "iu":
            return self._integers(labels, where)
        if labels.dtype.kind not in "US":
            raise RawDataError(
                f"{where}: transcript of type {labels.dtype.str}, wanted text or integers; make it again"
            )
        if labels.dtype.kind == "S":
            try:
                labels = labels.astype(str)
            except UnicodeDecodeError:
                raise RawDataError(f"{where}: transcript is not ASCII; save it as text (<U5)") from None
        if not labels.dtype.itemsize:
            raise RawDataError(f"{where}: transcript of empty symbols; make it again")
        text = np.ascontiguousarray(labels, labels.dtype.newbyteorder("=")).view(np.uint32)
        text = text.reshape(len(labels), labels.dtype.itemsize // 4)
        if len(text) >= 2:
            # Not labels.item: it raises SystemError for a symbol of one damaged code point.
            first, last = _symbol(text[0]), _symbol(text[-1])
            opened, closed = first in START_MARKS, last in END_MARKS
            if opened != closed:
                raise RawDataError(
                    f"{where}: begins with {first!r} and ends with {last!r}; "
                    f"wanted both marks, [SOS] and [EOS], or neither"
                )
            if opened:
                text = text[1:-1]
        if len(self._out) < len(text):
            self._out = np.empty(len(text) * 2, np.uint16)
        unknown = _encode_text(text, self.slots, self.spellings, self._out[: len(text)])
        if unknown >= 0:
            symbol = _symbol(text[unknown])
            raise StrayLabel(
                f"{where}: unknown symbol {symbol!r} at frame {unknown}, wanted one of the {len(self.phonemes)} "
                "phonemes "
                f"({' '.join(self.phonemes.symbols[:3])} ...); correct it or list the symbols in {self._listed_in}"
            )
        return self._out[: len(text)].astype(self.phonemes.label_dtype)

    def _integers(self, labels: np.ndarray, where: str) -> np.ndarray:
        count = len(self.phonemes)
        if len(labels) >= 2 and labels[0] == count and labels[-1] == count + 1:
            labels = labels[1:-1]
        if len(labels) and (labels.min() < 0 or labels.max() >= count):
            at = int(np.argmax((labels < 0) | (labels >= count)))
            raise StrayLabel(
                f"{where}: class {int(labels[at])} at frame {at}, wanted 0..{count - 1}; correct it or list the "
                f"symbols in {self._listed_in}"
            )
        return labels.astype(self.phonemes.label_dtype)

    def strays(self, labels: np.ndarray) -> dict[str, int]:
        """How often each label occurs that is no class, nor a mark at an end; `labels` as for `encode`."""
        found, counts = np.unique(labels, return_counts=True)
        if labels.dtype.kind in "iu":
            size = len(self.phonemes)
            marks = {size, size + 1} if len(labels) > 1 and (labels[0], labels[-1]) == (size, size + 1) else set()
            return {str(s): n for s, n in zip(found.tolist(), counts.tolist()) if not 0 <= s < size and s not in marks}
        known = self.phonemes.classes.keys() | START_MARKS | END_MARKS
        symbols = [s.decode("ascii", "replace") if isinstance(s, bytes) else str(s) for s in found.tolist()]
        return {symbol: n for symbol, n in zip(symbols, counts.tolist()) if symbol not in known}
