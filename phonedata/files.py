"""Whole or absent: puts a finished folder in its place in one step, and mends an interrupted replacement."""

import ctypes
import errno
import os
import shutil
import sys
from pathlib import Path

from .errors import PhonedataError


def staging_path(target: Path) -> Path:
    """The folder beside `target` in which its successor is built: on the same file system, so that rename works."""
    return target.with_name(target.name + ".packing")


def replaced_path(target: Path) -> Path:
    """Where the old folder waits between two renames, on systems that cannot exchange two names at once.

    Inside the staging folder, which is known as ours by its lock file: beside the target, a name proves nothing.
    """
    return staging_path(target) / "replaced"


def recover(target: Path) -> None:
    """Bring back the old folder if a replacement was cut between its two renames; otherwise nothing happens."""
    # os.path answers False where a folder above may not be looked into; Path would raise.
    if os.path.exists(target):
        return
    old = replaced_path(target)
    if os.path.isdir(old) and os.path.isfile(old.with_name("lock")):
        try:
            os.rename(old, target)
        except OSError:
            pass  # another process did it first, or the disk is read-only: then the caller finds nothing


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable; systems that cannot open folders (Windows) order renames themselves."""
    if os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        # Network and user-space file systems (a mounted Drive) may not know the call for folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(fd)


def _exchange(a: Path, b: Path) -> bool:
    """renameat2(RENAME_EXCHANGE): both names change places in one step; False where the system has no such call."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    call = getattr(libc, "renameat2", None)
    if call is None:
        return False
    at_cwd, exchange = -100, 2
    return call(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) == 0


def remove_folder(path: Path) -> tuple[str, ...]:
    """Remove what nobody needs any more; if something in it cannot go, the rest does, and a note says so."""
    shutil.rmtree(path, ignore_errors=True)
    return (f"{path}: could not be removed (still open somewhere?); remove it by hand",) if path.exists() else ()


def put_in_place(finished: Path, target: Path) -> tuple[str, ...]:
    """Give the folder `finished`, which lies in the target's staging folder, the name `target`; an old one is removed.

    At every moment `target` is the old folder or the new one, or (without renameat2) absent with the old one in the
    staging folder, which `recover` brings back. Returns notes: the new folder is in place even if the old one cannot
    be removed.
    """
    sync_folder(finished)
    if not target.exists() or not any(target.iterdir()):
        try:
            if target.exists():
                target.rmdir()
            os.rename(finished, target)
        except OSError as error:
            reason = error.strerror
            raise PhonedataError(f"{target}: cannot be created ({reason}); choose another place") from None
        sync_folder(target.parent)
        return ()
    if _exchange(finished, target):
        sync_folder(target.parent)
        return remove_folder(finished)
    old = replaced_path(target)
    for _ in range(100):
        if old.exists() and remove_folder(old):
            raise PhonedataError(f"{old}: is in the way and cannot be removed; remove it and pack again")
        os.rename(target, old)
        try:
            os.rename(finished, target)
            break
        except OSError:
            # Somebody who opened the target between the two renames has brought the old one back: once more.
            if not target.exists():
                os.rename(old, target)
                raise
    else:
        raise PhonedataError(f"{target}: is opened again and again while it is replaced; the new corpus is {finished}")
    sync_folder(target.parent)
    return remove_folder(old)
