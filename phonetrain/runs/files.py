"""Files that survive: whole-or-absent writes, lines that are only added, and a lock that dies with its process.

Every error of the disk is raised as TrainingStopped with one sentence, because what follows is the same for all: the
old content stays, the run stops, and `resume` continues once there is room.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from ..errors import PhonetrainError, TrainingStopped

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def write_atomically(path: Path, content: bytes) -> None:
    """Put `content` at `path`, whole or not at all: on an error the old file stays. Raises TrainingStopped."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(beside, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise TrainingStopped(unwritable(path, error)) from error


def sync_directory(path: Path) -> None:
    """Make renames inside `path` survive a power cut, where the system can say so."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):  # some network mounts cannot sync a directory
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def exchange(a: Path, b: Path) -> bool:
    """Let two names change places in one step (renameat2); False, with nothing done, where the system cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform.startswith("linux") else None
    at_cwd, both = -100, 2
    return call is not None and call(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), both) == 0


def open_for_append(path: Path):
    """An unbuffered binary file whose position is its end, readable too. Raises TrainingStopped."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a+b", buffering=0)
    except OSError as error:
        raise TrainingStopped(unwritable(path, error)) from error


def append_line(path: Path, line: dict[str, Any], sync: bool = False) -> None:
    text = json.dumps(plain(line), allow_nan=False, ensure_ascii=False).encode() + b"\n"
    with open_for_append(path) as file:
        try:
            # A process killed inside a write leaves half a line; it must not swallow this one.
            if (end := file.seek(0, os.SEEK_END)) and (file.seek(end - 1), file.read(1))[1] != b"\n":
                text = b"\n" + text
            while text:
                text = text[file.write(text) :]
            if sync:
                os.fsync(file.fileno())
        except OSError as error:
            raise TrainingStopped(unwritable(path, error)) from error


def sync_file(path: Path) -> None:
    """Make what was added to `path` survive a power cut; nothing where it is not there. Raises TrainingStopped."""
    try:
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            os.fsync(file.fileno())
    except OSError as error:
        raise TrainingStopped(unwritable(path, error)) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file; a torn one (kill -9, full disk) is left out."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    lines = []
    for text in content.split(b"\n"):
        with contextlib.suppress(ValueError):  # also covers undecodable bytes
            line = json.loads(text)
            if isinstance(line, dict):
                lines.append(
                    {
                        key: _NOT_FINITE.get(value, value) if isinstance(value, str) else value
                        for key, value in line.items()
                    }
                )
    return lines


def plain(value: Any) -> Any:
    """`value` with JSON's types only: numpy and torch scalars as numbers, paths as text, NaN and infinities named."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(inner) for inner in value]
    if isinstance(value, (bool, str, int)) or value is None:
        return value
    if not isinstance(value, float) and callable(getattr(value, "tolist", None)):
        return plain(value.tolist())
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return str(value)


def write_result(path: Path, content: bytes, instead: str) -> None:
    """`write_atomically` for what a command makes besides a run; `instead`: what to do where it cannot be written."""
    try:
        write_atomically(path, content)
    except TrainingStopped as error:
        why = getattr(error.__cause__, "strerror", None) or error
        raise PhonetrainError(f"{path}: could not be written ({why}); {instead}") from error


def unwritable(path: Path, error: OSError) -> str:
    way = "make room or mend the disk, then `phonetrain resume` continues from the last checkpoint"
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        way = "write where you may: another --run or --out, or a copy of the run in a folder of your own"
    return f"{path}: could not be written ({error.strerror or error}); what was there before is unchanged: {way}"


def make_directory(path: Path) -> None:
    """Make `path` and what is above it; there already is fine. Raises TrainingStopped."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingStopped(
            f"{path}: the directory could not be made ({error.strerror or error}); "
            "give one that you may write to with `--run DIR`"
        ) from error


if os.name == "nt":
    import msvcrt

    _LOCK_BYTE = 1 << 30  # beyond the text, which others must be able to read

    def try_lock(file, shared: bool = False) -> bool:
        file.seek(_LOCK_BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def unlock(file) -> None:
        file.seek(_LOCK_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def try_lock(file, shared: bool = False) -> bool:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # the file system has no locks
            return True
        return True

    def unlock(file) -> None:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)
