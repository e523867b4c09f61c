"""What this machine offers: cores and memory that this process may use."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import PhonedataError
from .files import is_folder


def check_compiler() -> None:
    """Raise PhonedataError where numba is told not to compile: a loop over frames in Python would take days."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        raise PhonedataError("NUMBA_DISABLE_JIT is set, but the kernels must be compiled; unset NUMBA_DISABLE_JIT")


def find_place_for_kernels() -> None:
    """Let numba keep compiled kernels in a temporary folder of this user where it could not write anywhere else.

    That is a container with another user id: numba writes beside the package, else below HOME, else not at all. To be
    called before numba is imported. Processes that are started from here inherit the place, so it is said once.
    """
    if "NUMBA_CACHE_DIR" in os.environ or os.name == "nt":
        return
    beside = Path(__file__).parent
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path(os.path.expanduser("~"), ".cache"))
    if _may_write(beside / "__pycache__") or _may_write(home / "numba"):
        return
    folder = Path(tempfile.gettempdir(), f"phonedata-kernels-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        about = folder.lstat()
        # What lies there is run: it must be this user's alone.
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o022:
            folder = Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))
    except OSError:
        return
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    print(f"note: compiled kernels are kept in {folder}: {beside} and {home} cannot be written to", file=sys.stderr)


def _may_write(folder: Path) -> bool:
    """Whether a file could be made in `folder`, or in the nearest folder above that is there."""
    with contextlib.suppress(OSError):  # of a disk that fails os.access says the rest
        while not is_folder(folder) and folder != folder.parent:
            folder = folder.parent
    return os.access(folder, os.W_OK | os.X_OK)


def available_memory(*, swap: bool = False) -> int | None:
    """Bytes that can be filled without pushing programs out, the limits of all control groups of this process included.

    swap: with the space that is left to push programs out to, after which the system kills. None where nobody says.
    """
    try:
        about = {name: int(size.split()[0]) * 1024 for name, size in _table("/proc/meminfo", ":").items() if size}
        free = about["MemAvailable"] + (about["SwapFree"] if swap else 0)
    except (OSError, KeyError, ValueError):
        return None
    for group, old in _control_groups():
        files = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else ("memory.max", "memory.current")
        try:
            limit, used = (int((group / file).read_text()) for file in files)
            parts = _table(group / "memory.stat", " ")
            cached = sum(int(parts[f"{'total_' * old}{name}_file"]) for name in ("inactive", "active"))
            spare = 0
            if swap and not old:
                allowed = (group / "memory.swap.max").read_text().strip()
                left = about["SwapFree"]
                if allowed != "max":
                    left = max(0, int(allowed) - int((group / "memory.swap.current").read_text()))
                spare = min(about["SwapFree"], left)
        except (OSError, ValueError, KeyError):  # no limit here ("max"), or no such controller
            continue
        free = min(free, max(0, limit - used + cached) + spare)
    return free


def _table(path: str | Path, separator: str) -> dict[str, str]:
    """The lines `name<separator>value` of a file of the kernel's."""
    pairs = (line.partition(separator) for line in Path(path).read_text().splitlines())
    return {name: value.strip() for name, _, value in pairs}


def _control_groups() -> Iterator[tuple[Path, bool]]:
    """Folders of the control groups that limit this process, its own and those above; whether of version 1."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            root = Path("/sys/fs/cgroup", "memory" if controllers else "")
            # A container sees its own group as the root, or a path from outside that is not there.
            for group in (own, *map(str, Path(own).parents)):
                yield root / group.lstrip("/"), bool(controllers)


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
