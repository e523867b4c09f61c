"""Reads .npy files into one reusable buffer with our own header parse; never unpickles."""

from __future__ import annotations

import ast
import math
import os
import re

import numpy as np

from ..errors import RawDataError

_MAGIC = b"\x93NUMPY"
# What np.save writes for one and two axes, to the letter; anything else takes the slow, general parse.
_USUAL = re.compile(
    rb"\{'descr': '([<>|=]?[a-zA-Z]\d+)', 'fortran_order': (True|False), "
    rb"'shape': \((0|[1-9]\d{0,11}),(?: (0|[1-9]\d{0,11}))?\), \} *\n"
)
# numpy knows more names, some of which it only warns about.
_TYPE = re.compile(r"[<>|=]?[?biufcSUO][0-9]{0,9}")
_LONGEST_HEADER = 10_000  # numpy's own limit: longer ones can make the parser run for minutes
# Opening a FIFO for reading waits for a writer unless told not to.
READ_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


Header = tuple[np.dtype, bool, tuple[int, ...], int]
"""dtype, fortran_order, shape, offset of the first value."""


def parse_header(data: bytes, where: str) -> Header:
    """The header of an .npy file that begins with `data`.

    Versions 1, 2 and 3 of numpy.lib.format. Raises RawDataError for anything else, and for Python objects.
    """
    if data[:6] != _MAGIC or len(data) < 10:
        raise RawDataError(
            f"{where}: not an .npy file (begins with {bytes(data[:8])!r}); save it again with numpy.save"
        )
    if data[6:8] == b"\1\0":
        start, length = 10, int.from_bytes(data[8:10], "little")
    elif data[6:8] in (b"\2\0", b"\3\0"):
        start, length = 12, int.from_bytes(data[8:12], "little")
    else:
        raise RawDataError(
            f"{where}: .npy version {data[6]}.{data[7]}, wanted 1, 2 or 3; save it again with numpy.save"
        )
    header = data[start : start + length]
    if length > _LONGEST_HEADER or len(header) < length:
        raise RawDataError(f"{where}: .npy header of {length} bytes is cut or too long; save it again with numpy.save")
    usual = _USUAL.fullmatch(header)
    if usual:
        descr, fortran = usual[1].decode(), usual[2] == b"True"
        shape = tuple(int(n) for n in usual.group(3, 4) if n)
    else:
        try:
            table = ast.literal_eval(header.decode("utf-8" if data[6] == 3 else "latin1").strip(" \n"))
            descr, fortran, shape = table["descr"], table["fortran_order"], table["shape"]
            known = len(table) == 3 and isinstance(fortran, bool) and isinstance(shape, tuple)
            if not known or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
                raise ValueError
        except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
            raise RawDataError(f"{where}: damaged .npy header {bytes(header[:60])!r}; save it again") from None
    try:
        dtype = np.dtype(descr) if isinstance(descr, str) and _TYPE.fullmatch(descr) else None
    except (TypeError, ValueError, SyntaxError):
        dtype = None
    # A type of no bytes promises any number of values for nothing.
    if dtype is None or (dtype.itemsize == 0 and 0 not in shape):
        raise RawDataError(f"{where}: .npy of type {str(descr)[:60]!r}, wanted numbers or text; save it again")
    if dtype.hasobject:
        raise RawDataError(
            f"{where}: holds pickled Python objects, which are never loaded; save it as plain numbers or text"
        )
    return dtype, fortran, shape, start + length


class NpyReader:
    """Loads .npy files one after the other into its own buffer.

    The buffer grows to the largest file and is used again: an array is valid until the next `load`.
    """

    def __init__(self) -> None:
        self._grow(1 << 18)
        # Headers of 128 bytes (what np.save writes for these shapes) and what they say: most lengths come again.
        self._seen: dict[bytes, Header] = {}

    def __reduce__(self) -> tuple[type[NpyReader], tuple[()]]:
        return NpyReader, ()  # a copy in another worker starts with its own buffer

    def _grow(self, size: int) -> None:
        raw = np.empty(size + 64, np.uint8)
        self._buffer = raw[-raw.ctypes.data % 64 :][:size]
        self._view = self._buffer.data

    def _fill(self, path: str) -> int:
        """Read the whole file into the buffer; returns its size."""
        fd = os.open(path, READ_FLAGS)
        try:
            read = os.readv if hasattr(os, "readv") else _readv
            count = 0
            # Only a read of nothing is the end: POSIX lets any read stop early, and network file systems do.
            while more := read(fd, [self._view[count:]]):
                count += more
                if count < len(self._buffer):
                    continue
                # Full: more may follow. Ask before growing, so that an endless device cannot fill the memory.
                size = os.fstat(fd).st_size
                if size <= count:
                    break
                _promised(parse_header(bytes(self._view[: _LONGEST_HEADER + 16]), path), size, path)
                head = self._buffer
                self._grow(size + 4096)
                self._buffer[:count] = head[:count]
            return count
        finally:
            os.close(fd)

    def load(self, path: str) -> np.ndarray:
        """The array in the file, as it lies there (any byte order, C or Fortran), in this reader's buffer.

        Raises RawDataError naming the file: unreadable, not .npy, object arrays, or a size that differs from what
        the header promises.
        """
        try:
            size = self._fill(path)
        except OSError as error:
            raise RawDataError(
                f"{path}: cannot be read ({error.strerror}); check the file and its permissions"
            ) from None
        except MemoryError:
            raise RawDataError(
                f"{path}: {os.path.getsize(path)} bytes do not fit into memory; cut it in pieces, or use skip_bad=True"
            ) from None
        usual = bytes(self._view[:128])
        found = self._seen.get(usual) if size >= 128 else None
        if found is None:
            dtype, fortran, shape, offset = parse_header(bytes(self._view[: min(size, _LONGEST_HEADER + 16)]), path)
            found = dtype, fortran, shape, offset
            if offset == 128 and len(self._seen) < 4096:
                self._seen[usual] = found
        dtype, fortran, shape, offset = found
        if not _promised(found, size, path):
            return np.empty(shape, dtype)
        return np.ndarray(shape, dtype, self._buffer, offset, order="F" if fortran else "C")


def _promised(header: Header, size: int, path: str) -> int:
    """Bytes of values that a header (as `parse_header` gives it) promises; RawDataError unless `size` is just that."""
    dtype, _, shape, offset = header
    wanted = dtype.itemsize * math.prod(shape)
    if wanted != size - offset:
        word = "cut short" if wanted > size - offset else "too long"
        raise RawDataError(
            f"{path}: {word}: {size - offset} bytes of values, but its header says shape {shape} of {dtype.str} "
            f"= {wanted} bytes; copy or make it again"
        )
    return wanted


def _readv(fd: int, views: list[memoryview]) -> int:
    """os.readv for systems without it."""
    data = os.read(fd, len(views[0]))
    views[0][: len(data)] = data
    return len(data)
