"""Files on disk that are whole or absent: rename, exchange, fsync, lock, atomic write. A public module.

phonetrain uses it too, so whatever protects a file from a kill, a full disk or a second process is written once, here.
All functions raise OSError where the system refuses; `put_in_place` alone raises PhonedataError.
"""

import contextlib
import ctypes
import errno
import fnmatch
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from .errors import PhonedataError


def is_disk_full(error: BaseException) -> bool:
    """Whether the cause is a full disk, a quota or a file-size limit: with more space the work can continue."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def disk_error(path: Path, error: OSError) -> PhonedataError:
    """An OSError while a packed corpus is written, as an error of one line that says what to do."""
    if is_disk_full(error):
        return PhonedataError(
            f"{path}: disk full or size limit reached ({error.strerror}); free some space and pack again"
        )
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return PhonedataError(
            f"{path}: cannot be written ({error.strerror}); choose another place or mend its permissions"
        )
    return PhonedataError(f"{error.filename or path}: {error.strerror or error}; choose another place")


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Within the block an OSError becomes one line (`disk_error`); our own errors pass."""
    try:
        yield
    except OSError as error:
        if isinstance(error, PhonedataError):
            raise
        raise disk_error(path, error) from None


# Durable


def sync_file(path: Path) -> None:
    """Make the content of a file survive a power cut."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut; systems that cannot open folders (Windows) need no such call."""
    if os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        # Network and user-space file systems (a mounted Drive, WSL) may not know the call for folders, and say so in
        # many ways. A disk that fails shows when the files in the folder are synced.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EIO, errno.ENOSYS):
            raise
    finally:
        os.close(fd)


def make_folder(path: Path) -> list[Path]:
    """Make a folder and those above it, for good: their names survive a power cut. Returns the ones that were made."""
    made = [folder for folder in (*reversed(path.parents), path) if not exists(folder)]
    for folder in made:
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)
    path.mkdir(exist_ok=True)  # where a file is in the way, this says so
    return made


def sync_tree(root: Path) -> None:
    """`sync_file` and `sync_folder` for all below `root`. Best at the end: the first call flushes most of the rest."""
    for folder, _, names in walk(root, topdown=False):
        for name in names:
            sync_file(Path(folder, name))
        sync_folder(Path(folder))


# Asked. What the library has for it takes a disk that fails for a file that is not there (os.path, os.walk; pathlib in
# newer versions of Python), and what was asked for would be left out without a word.

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EACCES, errno.EPERM)


def _mode(path: str | os.PathLike[str]) -> int:
    """How os.stat describes what is at a path; 0 where nothing is, or where this user may not look."""
    try:
        return os.stat(path).st_mode
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
    except ValueError:  # a name that cannot be one
        pass
    return 0


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether anything is at a path. Raises OSError where the disk does not say, as do those below."""
    return _mode(path) != 0


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a regular file is at a path."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is at a path."""
    return stat.S_ISDIR(_mode(path))


def named(folder: Path, pattern: str) -> list[Path]:
    """What lies in a folder under names like `pattern`, as `step-*`, sorted; nothing where the folder is not there."""
    try:
        return [folder / name for name in sorted(os.listdir(folder)) if fnmatch.fnmatchcase(name, pattern)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def walk(
    root: str | os.PathLike[str],
    topdown: bool = True,
    followlinks: bool = False,
    closed: Callable[[str], None] | None = None,
) -> Iterator[tuple[str, list[str], list[str]]]:
    """os.walk that raises for a folder that is there and cannot be listed.

    closed: is told of one that this user may not look into, in place of an error.
    """

    def refuse(error: OSError) -> None:
        if error.errno in (errno.EACCES, errno.EPERM) and closed is not None:
            closed(error.filename)
        elif error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise error

    return os.walk(os.fspath(root), topdown, refuse, followlinks)


def files_below(root: Path) -> Iterator[Path]:
    """All files in a folder and in those below it."""
    return (Path(folder, name) for folder, _, names in walk(root) for name in names)


# Read


def check_place() -> None:
    """Raise PhonedataError if the working directory no longer exists: MKL would end the process silently."""
    try:
        os.getcwd()
    except OSError as error:
        raise PhonedataError(f"the current directory is gone ({error.strerror}); cd into one that is there") from None


def read_file(path: str | os.PathLike[str]) -> bytes:
    """All bytes of a regular file. A pipe or a device in its place is refused, never waited for.

    Every error names the file, one in the middle of reading too.
    """
    name = os.fspath(path)
    try:
        descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "no regular file")
            return file.read()
    except OSError as error:
        if error.filename is None:
            error.filename = name
        raise


def unreadable(error: OSError, path: str | os.PathLike[str] | None = None) -> str:
    """One sentence for an OSError: the file's name, the system's words, what helps.

    path: the file, where the error does not name it.
    """
    name = path if error.filename is None else error.filename
    named = "" if name is None else f"{os.fsdecode(name) if isinstance(name, (str, bytes)) else name}: "
    reason = f"{named}cannot be used ({error.strerror or error})"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{reason}; allow more open files: ulimit -n 4096"
    if error.errno == errno.ENOMEM:
        return f"{reason}; free some memory, or raise its limit"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{reason}; mend its permissions, or work on a copy of your own"
    if is_disk_full(error):
        return f"{reason}; make room"
    return f"{reason}; mend the disk, or bring a copy of it back"


def named_by_system(error: OSError) -> bool:
    """Whether an OSError explains itself: it names a file, or what the machine has run out of."""
    return error.filename is not None or error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)


# Written whole or not at all


def write_file(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all: on an error the old file stays. Folders above are made."""
    write_files({path: content})


def write_stream(path: Path, pieces: Iterable[bytes]) -> None:
    """`write_file` for what does not fit into memory at once: `pieces` follow each other in the file."""
    write_files({path: pieces})


def write_files(contents: Mapping[Path, bytes | Iterable[bytes]]) -> None:
    """Write several files; on an error all old ones stay, and no folder that had to be made for them.

    All are safely on the disk under other names before the first gets its own: a full disk shows before that.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    made: list[Path] = []
    try:
        for path, content in contents.items():
            made += make_folder(path.parent)
            with open(temporary[path], "wb") as file:
                file.writelines([content] if isinstance(content, bytes) else content)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            os.replace(temporary[path], path)
    except BaseException:
        for path in temporary.values():
            with contextlib.suppress(OSError):
                path.unlink()
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    for folder in {path.parent for path in contents}:
        sync_folder(folder)


def append_line(path: Path, line: bytes, sync: bool = False) -> None:
    """Add a line to a log. Half a line, left by a process that was killed, stays a line of its own.

    sync: the line, and with the first one of any kind the log's name, survive a power cut.
    """
    make_folder(path.parent)
    with open(path, "a+b", buffering=0) as file:
        text = line + b"\n"
        end = file.seek(0, os.SEEK_END)
        if end and (file.seek(end - 1), file.read(1))[1] != b"\n":
            text = b"\n" + text
        while text:
            text = text[file.write(text) :]
        if sync:
            os.fsync(file.fileno())
    if not end:
        sync_folder(path.parent)


# Names

_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX"}


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is what file managers leave wherever they look or copy."""
    return name in _LITTER or name.startswith("._")


def unusable_name(names: Iterable[str]) -> str | None:
    """The first of `names` that cannot be a folder's name or stand in a line of text; None where all can.

    Names come from foreign lists: `../x`, an absolute path or a terminal's escape sequence must not travel further.
    """
    names = list(names)
    together = "".join(names)
    # One look at all of them together, and each by itself only if that finds something.
    if together.isprintable() and "/" not in together and "\\" not in together:
        bad = (name for name in names if not 3 <= len(name) <= 255 and not _is_name(name))
    else:
        bad = (name for name in names if not _is_name(name))
    return next(bad, None)


def _is_name(name: str) -> bool:
    wild = name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable()
    return not wild and len(name) <= 255


def rename(old: Path, new: Path) -> None:
    """Rename durably: the new name survives a power cut."""
    os.rename(old, new)
    sync_folder(new.parent)


def exchange(a: Path, b: Path) -> bool:
    """Let two names change places in one step (renameat2); False, with nothing done, where the system cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform.startswith("linux") else None
    at_cwd, both = -100, 2
    return call is not None and bool(call(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), both) == 0)


def replace_folder(finished: Path, target: Path, aside: Path) -> Path | None:
    """Give the folder `finished` the name `target`; returns where the old folder is now, None if there was none.

    At every moment `target` is the old folder or the new one. Only where names cannot be exchanged it is absent between
    two renames, and the old folder at `aside`: who opens the target then may give it its name back.
    """
    sync_folder(finished)
    if not exists(target):
        rename(finished, target)
        return None
    if exchange(finished, target):
        sync_folder(target.parent)
        return finished
    for _ in range(100):
        remove_tree(aside)
        os.rename(target, aside)
        try:
            rename(finished, target)
            return aside
        except BaseException as error:
            if not exists(target):
                os.rename(aside, target)
                raise
            # Somebody who opened the target between the two renames has brought the old one back: once more.
            if not isinstance(error, OSError) or not exists(finished):
                raise
    raise OSError(errno.EBUSY, "opened again and again while it is replaced", str(target))


@contextlib.contextmanager
def write_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside `target` to write into; when the block ends without an error it replaces `target`.

    Whole or not at all: on an error the old folder stays, and no folder above that had to be made for the new one.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    made: list[Path] = []
    try:
        made += make_folder(target.parent)
        remove_tree(partial)  # of a process that was killed; in containers the next one often has its number
        partial.mkdir()
        yield partial
        sync_tree(partial)
        old = replace_folder(partial, target, partial.with_suffix(".old"))
    except BaseException:
        remove_tree(partial)
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    if old is not None:
        remove_tree(old)


# One process at a time

if sys.platform == "win32":
    import msvcrt

    _LOCK_BYTE = 1 << 30  # beyond the text, which others must be able to read

    def _lock(fd: int, shared: bool) -> None:
        os.lseek(fd, _LOCK_BYTE, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)

    def unlock(fd: int) -> None:
        """Give back what `try_lock` took."""
        os.lseek(fd, _LOCK_BYTE, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(fd: int, shared: bool) -> None:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)

    def unlock(fd: int) -> None:
        """Give back what `try_lock` took."""
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)


def try_lock(fd: int, shared: bool = False) -> bool:
    """Lock an open file for this process; False where another holds it. The lock dies with its process, kill -9 too.

    True also where the file system knows no locks (some network mounts): two writers there are the user's own business.
    Windows has no shared locks.
    """
    try:
        _lock(fd, shared)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK, errno.EDEADLK)
    return True


def remove_tree(path: Path) -> None:
    """Remove a folder with all in it, as far as it can go: what stays is in nobody's way."""
    with contextlib.suppress(OSError):  # rmtree lets through what closing a folder raises
        shutil.rmtree(path, ignore_errors=True)


# A folder that is built beside its target: packed corpora, extracted raw folders


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
    if exists(target):
        return
    old = replaced_path(target)
    if is_folder(old) and is_file(old.with_name("lock")):
        with contextlib.suppress(OSError):  # another process did it first, or the disk is read-only: nothing is found
            os.rename(old, target)


def remove_folder(path: Path) -> tuple[str, ...]:
    """Remove what nobody needs any more; if something in it cannot go, the rest does, and a note says so."""
    remove_tree(path)
    return (f"{path}: could not be removed (still open somewhere?); remove it by hand",) if exists(path) else ()


def put_in_place(finished: Path, target: Path) -> tuple[str, ...]:
    """Give the folder `finished`, from the target's staging folder, the name `target`; an old one is removed.

    Returns notes: the new folder is in place even if the old one cannot be removed. Raises PhonedataError, and
    OSError where the disk is full.
    """
    try:
        old = replace_folder(finished, target, replaced_path(target))
    except OSError as error:
        if is_disk_full(error):
            raise  # with more space the same call goes on
        raise PhonedataError(
            f"{target}: the finished folder {finished} cannot get this name ({error.strerror}); choose another place"
        ) from None
    return () if old is None else remove_folder(old)
