"""What this machine offers: cores and memory that this process may use."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path

from .errors import PhonedataError


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
    while not os.path.isdir(folder) and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK | os.X_OK)


def available_memory() -> int | None:
    """Bytes that can be filled without pushing programs out, container limit included; None where nobody says."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(stat["inactive_file"]) + int(stat["active_file"]))
    except (OSError, ValueError, KeyError):
        pass
    return free


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
