"""What a number was measured under, and how results are written: every results/*.json begins with `conditions()`."""

import json
import os
import platform
import statistics
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("phonedata", "numpy", "numba", "torch")


def conditions() -> dict:
    """Device, cores, load, versions and commit; no host name and no user."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def commit() -> str | None:
    """The checkout's commit, marked where tracked files differ from it; None outside a checkout."""
    root = Path(__file__).parents[1]
    try:
        ask = ["git", "-C", str(root), "describe", "--always", "--dirty=-changed", "--abbrev=12"]
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def spread(values: list[float]) -> dict:
    """Median, least and greatest of some runs, and the runs themselves."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "runs": list(values)}


def ratio(found: dict, first: str, second: str, clock: str) -> float:
    """Median over the rounds of first / second, ways in `found`."""
    return statistics.median(a / b for a, b in zip(found[first][clock], found[second][clock]))


def write_results(path: Path, benchmark: str, results: dict) -> None:
    """Write `results` under the conditions they were measured in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"benchmark": benchmark, "conditions": conditions(), **results}, indent=1) + "\n")
