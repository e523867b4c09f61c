"""Every byte of a packed corpus against its digests, and no file too few or too many."""

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from ..errors import FormatError
from .zarr_files import CHUNK_ROWS, digest, render, root_digest, shard_entry, shard_index

_PIECE = 1 << 24


def verify_files(root: Path, progress: Callable[[str, int, int, str], None] | None = None) -> int:
    """Read the corpus folder `root` completely; returns its size in bytes.

    `progress("verifying", done, total, "bytes")` is called after each piece. Raises FormatError that names the first
    file that is missing, extra, of another size, or changed (for shards with the rows concerned).
    """
    try:
        partitions = _read_root(root)["partitions"]
        expected = {"zarr.json"}
        files: dict[str, dict[str, Any]] = {}
        for name, entry in partitions.items():
            file = root / name / "zarr.json"
            for _ in _read_file(file, {"bytes": entry["bytes"], "xxh3_128": entry["digest"]}):
                pass
            stated = json.loads(file.read_bytes())["attributes"]["phonedata"]["files"]
            files |= {f"{name}/{inside}": digests for inside, digests in stated.items()}
            expected.add(f"{name}/zarr.json")
        expected |= files.keys()
        _compare_names(root, expected)
        total, done = sum(entry["bytes"] for entry in files.values()), 0
        for file, entry in files.items():
            for count in _read_file(root / file, entry):
                done += count
                if progress:
                    progress("verifying", done, total, "bytes")
        return sum((root / file).stat().st_size for file in expected)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{root}: damaged metadata ({error!r}); copy the corpus again or pack again") from None
    except OSError as error:
        raise FormatError(f"{error.filename or root}: cannot be read ({error.strerror}); check the disk") from None


def _changed(path: Path, what: str) -> FormatError:
    return FormatError(f"{path}: {what}; copy the corpus again or pack again")


def _read_root(root: Path) -> dict[str, Any]:
    """The root's attributes. It has no parent to vouch for it: it carries its own digest, and has one spelling."""
    file = root / "zarr.json"
    data = file.read_bytes()
    try:
        document = json.loads(data)
        attributes = document["attributes"]["phonedata"]
        intact = root_digest(document) == attributes["digest"] and render(document) == data
    except (ValueError, KeyError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise _changed(file, "differs from its own digest")
    return attributes


def _compare_names(root: Path, expected: set[str]) -> None:
    found = set()
    for folder, folders, names in os.walk(root):
        inside = Path(folder).relative_to(root)
        for name in names:
            found.add((inside / name).as_posix())
        for name in folders:
            path = inside / name
            # A link to a folder, or an empty one, is as foreign as a file.
            if not any(e.startswith(path.as_posix() + "/") for e in expected) or (root / path).is_symlink():
                raise _changed(root / path, "does not belong to the corpus")
    for name in sorted(found - expected):
        raise FormatError(f"{root / name}: does not belong to the corpus; remove it")
    for name in sorted(expected - found):
        raise _changed(root / name, "missing")


def _read_file(path: Path, entry: dict[str, Any]) -> Iterator[int]:
    """Read one file against its entry; yields the bytes read, piece by piece."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise _changed(path, "missing") from None
    if size != entry["bytes"]:
        raise _changed(path, f"{size} bytes, wanted {entry['bytes']}")
    with open(path, "rb", buffering=0) as file:
        if "chunks" in entry:
            yield from _read_shard(file, path, entry)
            return
        whole = xxhash.xxh3_128()
        while piece := file.read(_PIECE):
            whole.update(piece)
            yield len(piece)
        if whole.hexdigest() != entry["xxh3_128"]:
            raise _changed(path, "its bytes differ from their digest")


def _read_shard(file: io.FileIO, path: Path, entry: dict[str, Any]) -> Iterator[int]:
    digests = entry["chunks"]
    if not digests:
        raise _changed(path, "its metadata lists no chunks")
    chunk_bytes = (entry["bytes"] - len(shard_index(len(digests), 0))) // len(digests)
    buffer = memoryview(bytearray(chunk_bytes))
    for chunk, wanted in enumerate(digests):
        got = 0
        while got < chunk_bytes and (count := file.readinto(buffer[got:])):
            got += count
        if digest(buffer[:got]) != wanted:
            raise _changed(path, f"rows from {chunk * CHUNK_ROWS} on (chunk {chunk}) differ from their digest")
        yield chunk_bytes
    index = file.read()
    if index != shard_index(len(digests), chunk_bytes) or shard_entry(digests, chunk_bytes, index) != entry:
        raise _changed(path, "its shard index differs from its digest")
    yield len(index)
