"""Every byte of a packed corpus against its digests, and no file too few or too many."""

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

from ..errors import FormatError, PhonedataError
from ..files import is_litter, walk
from .attributes import damaged, file_size, read_root
from .zarr_files import CHUNK_ROWS, digest, shard_entry, shard_index

_PIECE = 1 << 24


def verify_files(
    root: Path,
    attributes: Mapping[str, Any],
    listed: Mapping[str, Mapping[str, Any]],
    progress: Callable[[str, int, int, str], None] | None = None,
) -> int:
    """Read the corpus folder `root` completely; returns its size in bytes.

    `attributes` are the root's, `listed` the entries of the files of each partition, both as they were when it was
    opened. `progress("verifying", done, total, "bytes")` is called after each piece. Raises FormatError that names the
    first file that is missing, extra, of another size, or changed (for shards with the rows concerned).
    """
    files: dict[str, Mapping[str, Any]] = {}
    for name, entry in attributes["partitions"].items():
        files[f"{name}/zarr.json"] = {"bytes": entry["bytes"], "xxh3_128": entry["digest"]}
        files |= {f"{name}/{inside}": digests for inside, digests in listed[name].items()}
    try:
        read_root(root)
        _compare_names(root, {"zarr.json", *files})
        total, done = sum(entry["bytes"] for entry in files.values()), 0
        for file, entry in files.items():
            for count in _read_file(root / file, entry):
                done += count
                if progress:
                    progress("verifying", done, total, "bytes")
        return total + file_size(root / "zarr.json")
    except OSError as error:
        if isinstance(error, PhonedataError):
            raise
        raise FormatError(f"{error.filename or root}: cannot be read ({error.strerror}); check the disk") from None


def _compare_names(root: Path, expected: set[str]) -> None:
    found = set()
    for folder, folders, names in walk(root):
        inside = Path(folder).relative_to(root)
        folders[:] = [name for name in folders if not is_litter(name)]
        found |= {(inside / name).as_posix() for name in names if not is_litter(name)}
        for name in folders:
            path = inside / name
            # A link to a folder, or an empty one, is as foreign as a file.
            if not any(e.startswith(path.as_posix() + "/") for e in expected) or (root / path).is_symlink():
                raise damaged(root / path, "does not belong to the corpus")
    for name in sorted(found - expected):
        raise FormatError(f"{root / name}: does not belong to the corpus; remove it")
    for name in sorted(expected - found):
        raise damaged(root / name, "missing")


def _read_file(path: Path, entry: Mapping[str, Any]) -> Iterator[int]:
    """Read one file against its entry; yields the bytes read, piece by piece."""
    size = file_size(path)
    if size != entry["bytes"]:
        raise damaged(path, f"{size} bytes, wanted {entry['bytes']}")
    with open(path, "rb") as file:
        if "chunks" in entry:
            yield from _read_shard(file, path, entry)
            return
        whole = xxhash.xxh3_128()
        while piece := file.read(_PIECE):
            whole.update(piece)
            yield len(piece)
        if whole.hexdigest() != entry["xxh3_128"]:
            raise damaged(path, "its bytes differ from their digest")


def _read_shard(file: io.BufferedReader, path: Path, entry: Mapping[str, Any]) -> Iterator[int]:
    digests = entry["chunks"]
    chunk_bytes = (entry["bytes"] - len(shard_index(len(digests), 0))) // len(digests)
    buffer = memoryview(bytearray(chunk_bytes))
    for chunk, wanted in enumerate(digests):
        if digest(buffer[: file.readinto(buffer)]) != wanted:
            raise damaged(path, f"rows from {chunk * CHUNK_ROWS} on (chunk {chunk}) differ from their digest")
        yield chunk_bytes
    index = file.read()
    if index != shard_index(len(digests), chunk_bytes) or shard_entry(digests, chunk_bytes, index) != entry:
        raise damaged(path, "its shard index differs from its digest")
    yield len(index)
