"""MappedFiles: notices a mapped file that shrinks, and reads its pages in order before they are read at random."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import FormatError
from ..format.attributes import readable
from ..format.selection import Selection
from ..system import available_memory

MADV_POPULATE_READ = 22
PIECE = 1 << 26
"""Bytes populated by one call, which Ctrl-C waits for."""
READ_BYTES = 1 << 22
"""Bytes of one read where it cannot go straight into its place."""


class MappedFiles:
    """The files behind some memory maps, held open so that a file that shrinks is noticed before it is read.

    Reading a mapping past the end of its file ends the process (SIGBUS), so `check` comes before every batch. What
    shrinks during a batch cannot be caught.
    """

    def __init__(self, maps: Sequence[np.ndarray], paths: Sequence[Path]) -> None:
        """`maps[n]` is the begin of the file `paths[n]`."""
        self.maps = tuple(maps)
        self._files: list[tuple[int, str, int]] = []
        self._populated, self._seeking = False, threading.Lock()
        self.close = weakref.finalize(self, _close, self._files)
        for array, path in zip(maps, paths, strict=True):
            with readable(path):
                descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            self._files.append((descriptor, str(path), array.nbytes))
        self.check()

    @classmethod
    def of(cls, selection: Selection) -> MappedFiles:
        """The features of each of the selection's partitions, then the labels of each where there are any.

        Raises FormatError where the corpus has been replaced since it was opened.
        """
        with selection.corpus.unchanged():
            maps, paths = [p.features for p in selection.partitions], [p.features_path for p in selection.partitions]
            for partition in selection.partitions:
                if partition.labels is not None:
                    maps.append(partition.labels)
                    paths.append(partition.labels_path)
            return cls(maps, paths)

    def check(self) -> None:
        """Raise FormatError if one of the files is now shorter than its mapping."""
        for file, path, wanted in self._files:
            with readable(Path(path)):
                size = os.fstat(file).st_size
            if size < wanted:
                raise FormatError(
                    f"{path}: {size} bytes, wanted at least {wanted}: cut short; copy the corpus again or pack again"
                )

    def read(self, file: int, first: int, out: np.ndarray) -> None:
        """Fill `out` with items [first, first + len(out)) of map `file`, by reading the file: it may shrink meanwhile.

        Raises FormatError where it did.
        """
        buffer = out.reshape(-1).view(np.uint8)
        offset = first * self.maps[file].strides[0]
        done = 0
        while done < buffer.size:
            with readable(Path(self._files[file][1])):
                count = self._read_at(self._files[file][0], buffer[done:], offset + done)
            if count == 0:
                self.check()
                raise FormatError(f"{self._files[file][1]}: ends at byte {offset + done}; run: phonedata verify")
            done += count

    def _read_at(self, descriptor: int, buffer: np.ndarray, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(descriptor, [buffer.data], offset)
        # Windows: the place in the file is shared by all who read it.
        with self._seeking:
            os.lseek(descriptor, offset, os.SEEK_SET)
            data = os.read(descriptor, min(buffer.size, READ_BYTES))
        buffer[: len(data)] = np.frombuffer(data, np.uint8)
        return len(data)

    def populate(self) -> None:
        """Read what is not in memory yet, in order: the first touch at random costs a disk seek, in order it streams.

        Takes as long as the disk does, once. Does nothing where the pages are in memory, do not fit into what is free
        (the kernel would only throw them out again), or the platform does not say.
        """
        absent = [] if self._populated else [n for n, array in enumerate(self.maps) if resident_share(array) < 0.95]
        self._populated = True
        free = available_memory()
        if free is not None and sum(self.maps[file].nbytes for file in absent) < free:
            for file in absent:
                self._populate(file)

    def _populate(self, file: int) -> None:
        libc, (base, end) = _libc(), _page_bounds(self.maps[file])
        for start in range(base, end, PIECE):
            length = min(PIECE, end - start)
            if libc is None or libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), MADV_POPULATE_READ) != 0:
                # An older kernel, another system, or a file that shrank (EFAULT, where a plain read would be SIGBUS).
                offset, buffer = start - base, np.empty(READ_BYTES, np.uint8)
                with readable(Path(self._files[file][1])):
                    while length > 0 and (count := self._read_at(self._files[file][0], buffer[:length], offset)):
                        length, offset = length - count, offset + count


def _close(files: list[tuple[int, str, int]]) -> None:
    while files:
        # Nothing was written to it, and it is closed even where the disk refuses: the others' turn comes.
        with contextlib.suppress(OSError):
            os.close(files.pop()[0])


def _libc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL(None, use_errno=True)
    except OSError:
        return None


def _page_bounds(array: np.ndarray) -> tuple[int, int]:
    page = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
    start = array.ctypes.data
    return start // page * page, start + array.nbytes


def resident_share(array: np.ndarray) -> float:
    """The share of the array's pages that are in memory, from 64 samples; 1.0 where the platform does not say."""
    libc = _libc()
    if libc is None or array.nbytes == 0:
        return 1.0
    base, end = _page_bounds(array)
    page = os.sysconf("SC_PAGE_SIZE")
    answer = (ctypes.c_ubyte * 16)()
    found = wanted = 0
    for start in np.linspace(base, max(base, end - 16 * page), 64).astype(np.int64).tolist():
        start = start // page * page
        length = min(16 * page, end - start)
        if libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(length), answer) != 0:
            return 1.0
        pages = -(-length // page)
        wanted += pages
        found += sum(byte & 1 for byte in answer[:pages])
    return found / wanted
