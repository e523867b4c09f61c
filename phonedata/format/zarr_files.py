"""Writes zarr v3 files without the zarr library: metadata, uncompressed shards, small arrays, and their digests."""

import contextlib
import ctypes
import functools
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import xxhash

from ..files import exists

CHUNK_ROWS, SMALL_CHUNK_ROWS = 1 << 16, 1 << 12
"""Rows of an inner chunk; an array of fewer rows is one chunk of its rows, rounded up to a multiple of the second."""
INDEX_ENTRY, INDEX_CRC = 16, 4
"""Bytes of a chunk's entry in the shard index, and of the crc32c behind the entries."""


def digest(data) -> str:
    """xxh3_128, hex, of bytes or of anything with a buffer."""
    return xxhash.xxh3_128_hexdigest(data)


def render(document: dict) -> bytes:
    """The one spelling of a zarr.json that this format allows: two spaces, UTF-8, keys as given, final newline."""
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def root_digest(document: dict) -> str:
    """Digest of the root's zarr.json: over its canonical JSON (sorted keys, no spaces) without the digest itself."""
    attributes = {k: v for k, v in document["attributes"]["phonedata"].items() if k != "digest"}
    bare = {**document, "attributes": {**document["attributes"], "phonedata": attributes}}
    return digest(json.dumps(bare, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def group_metadata(attributes: dict) -> dict:
    """zarr.json of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": {"phonedata": attributes}}


def _bytes_codec(dtype: np.dtype) -> dict[str, Any]:
    if dtype.itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}


class ArraySpec(NamedTuple):
    """An array of the format: one chunk, or one shard of inner chunks of rows, uncompressed and little-endian."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fill: float = 0
    sharded: bool = False

    @property
    def file(self) -> str:
        """The file of its values, within the array's folder."""
        return "/".join(["c", *"0" * len(self.shape)])

    @property
    def size(self) -> int:
        """Bytes of that file."""
        if not self.sharded:
            return math.prod(self.shape) * self.dtype.itemsize
        chunks = num_chunks(self.shape[0])
        return chunks * (self.chunk_bytes + INDEX_ENTRY) + INDEX_CRC

    @property
    def chunk_bytes(self) -> int:
        """Bytes of an inner chunk of a shard."""
        return chunk_rows(self.shape[0]) * math.prod(self.shape[1:]) * self.dtype.itemsize

    def metadata(self) -> bytes:
        """Its zarr.json."""
        codecs, chunk = [_bytes_codec(self.dtype)], list(self.shape)
        if self.sharded:
            rows = chunk_rows(self.shape[0])
            chunk[0] = num_chunks(self.shape[0]) * rows
            inner = {
                "chunk_shape": [rows, *self.shape[1:]],
                "codecs": codecs,
                "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
                "index_location": "end",
            }
            codecs = [{"name": "sharding_indexed", "configuration": inner}]
        return render(
            {
                "zarr_format": 3,
                "node_type": "array",
                "shape": list(self.shape),
                "data_type": self.dtype.name,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
                "fill_value": self.fill,
                "codecs": codecs,
                "attributes": {},
            }
        )


def chunk_rows(rows: int) -> int:
    """Rows of each inner chunk of an array of `rows` rows."""
    return min(CHUNK_ROWS, -(-rows // SMALL_CHUNK_ROWS) * SMALL_CHUNK_ROWS)


def num_chunks(rows: int) -> int:
    """Inner chunks that hold `rows` rows."""
    return -(-rows // CHUNK_ROWS)


def shard_index(chunks: int, chunk_bytes: int) -> bytes:
    """(offset, length) uint64 of each inner chunk, then their crc32c: what stands behind the last chunk."""
    entries = np.empty((chunks, 2), "<u8")
    entries[:, 0] = np.arange(chunks, dtype=np.uint64) * np.uint64(chunk_bytes)
    entries[:, 1] = chunk_bytes
    body = entries.tobytes()
    return body + google_crc32c.value(body).to_bytes(4, "little")


@functools.cache
def _sync_file_range():
    """Linux's call of that name, or None."""
    call = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform.startswith("linux") else None
    if call:
        call.argtypes = ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint
    return call


def _start_writing(fd: int, offset: int, length: int) -> None:
    """Let the disk begin now with what a sync will wait for at the end; whether it does changes only the time."""
    call, write = _sync_file_range(), 2  # SYNC_FILE_RANGE_WRITE
    if call:
        call(fd, offset, length, write)


class ShardFile(NamedTuple):
    """One shard that is written in place, chunk by chunk, in any order, by any threads and processes: each opens it."""

    path: Path
    chunks: int
    chunk_bytes: int

    def create(self) -> None:
        """Make the file, unless it is there, and give it its full length at once: a file-size limit shows now, and a
        longer one of an earlier try is cut."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with opened(self.path, os.O_CREAT) as descriptor:
            os.ftruncate(descriptor, self.chunks * self.chunk_bytes + INDEX_ENTRY * self.chunks + INDEX_CRC)

    def write(self, chunk: int, data: np.ndarray) -> None:
        """Write one whole inner chunk."""
        with opened(self.path) as descriptor:
            write_at(descriptor, chunk * self.chunk_bytes, data)

    def read(self, chunk: int) -> np.ndarray:
        """(bytes,) uint8: what the file holds now where `chunk` belongs; none where there is no file."""
        if not exists(self.path):
            return np.empty(0, np.uint8)
        return np.fromfile(self.path, np.uint8, self.chunk_bytes, offset=chunk * self.chunk_bytes)

    def finish(self, digests: list[str]) -> dict:
        """Write the index; returns the file's entry for the partition's attributes."""
        index = shard_index(self.chunks, self.chunk_bytes)
        with opened(self.path) as descriptor:
            write_at(descriptor, self.chunks * self.chunk_bytes, np.frombuffer(index, np.uint8))
        return shard_entry(digests, self.chunk_bytes, index)


@contextlib.contextmanager
def opened(path: Path, flags: int = 0) -> Iterator[int]:
    """A descriptor for writing into a file that is there, or is made with `flags` os.O_CREAT."""
    descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_BINARY", 0) | flags, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_at(descriptor: int, offset: int, data: np.ndarray) -> None:
    """Write a whole array at a byte offset of a file, and start its way to the disk."""
    view = data.reshape(-1).view(np.uint8).data
    os.lseek(descriptor, offset, os.SEEK_SET)
    while view:
        view = view[os.write(descriptor, view) :]
    _start_writing(descriptor, offset, data.nbytes)


def shard_entry(digests: list[str], chunk_bytes: int, index: bytes) -> dict:
    """Size, digest and chunk digests of a shard file.

    The file's digest is taken over the 16-byte digests of its chunks in order and then the index: it covers every
    byte, and the chunks can be hashed by any number of workers.
    """
    whole = xxhash.xxh3_128(b"".join(map(bytes.fromhex, digests)))
    whole.update(index)
    return {"bytes": len(digests) * chunk_bytes + len(index), "xxh3_128": whole.hexdigest(), "chunks": digests}


def write_entry(path: Path, data: bytes) -> dict:
    """Write a small file; returns its entry for the parent's attributes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return {"bytes": len(data), "xxh3_128": digest(data)}


def write_array(folder: Path, array: np.ndarray) -> dict[str, dict]:
    """Write a 1-d array as one uncompressed chunk; returns the entries of its two files, named from the partition."""
    array = np.ascontiguousarray(array)
    spec = ArraySpec(array.shape, array.dtype)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return {
        f"{folder.name}/zarr.json": write_entry(folder / "zarr.json", spec.metadata()),
        f"{folder.name}/c/0": write_entry(folder / "c" / "0", little.tobytes()),
    }


def write_strings(partition: Path, name: str, strings: list[str]) -> dict[str, dict]:
    """Write U strings as UTF-8 bytes and their (U,) int64 ends: arrays that every zarr reader knows."""
    encoded = [s.encode() for s in strings]
    ends = np.cumsum([len(e) for e in encoded], dtype=np.int64)
    text = np.frombuffer(b"".join(encoded), np.uint8)
    return {**write_array(partition / f"{name}_bytes", text), **write_array(partition / f"{name}_end", ends)}
