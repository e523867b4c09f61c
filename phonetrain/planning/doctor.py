"""What this machine offers for training, what is wrong with it and how to mend that; and what a recipe would cost here.

Facts are looked up, speeds are measured for about a second each, and a problem always comes with its remedy.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from phonedata import available_memory

from ..config import toml as recipes
from ..console.base import own_memory
from ..device import cpu_gains_by_bf16, version
from ..kernels import layer
from ..step.epoch import measure
from ..text import clock, counted, opening_line, short

PACKAGES = ("phonedata", "torch", "numpy", "numba", "zarr", "wandb", "rich", "cyclopts", "safetensors", "matplotlib")
LEAST_FREE = 2_000_000_000
MEASURE_SECONDS = 4.0


def doctor(
    recipe: str | os.PathLike[str] | None = None, *overrides: str, corpus: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Findings as a dict: facts (words by name), problems (sentences with a remedy) and, for a recipe, its cost here.

    recipe: also train it for some seconds, writing nothing, and say memory, frames/s, time an epoch and which loader.
    Overrides alone mean the default recipe. Raises ConfigError and phonedata's errors as `fit` would.
    """
    facts: dict[str, str] = {}
    problems: list[str] = []
    facts["python"] = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in PACKAGES:
        facts[name] = version(name) or "not installed"
        if version(name) is None:
            problems.append(f"{name} is not installed; `pip install {name}`")
    look_at_devices(facts, problems)
    look_at_host(facts, problems)
    if recipe is None and overrides:
        recipe = "default"
    cost = None if recipe is None else measure_recipe(recipe, overrides, corpus)
    if cost is not None:
        problems += cost.pop("problems")
    return {"facts": facts, "problems": problems, "recipe": cost}


def look_at_devices(facts: dict[str, str], problems: list[str]) -> None:
    """GPUs and whether this torch can use them."""
    driver = driver_cuda()
    built = torch.version.cuda
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            free, total = torch.cuda.mem_get_info(index)
            native = properties.major >= 8
            facts[f"cuda:{index}"] = (
                f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
                f"{short(free)}B of {short(total)}B free; precision auto takes {'bf16' if native else 'fp16'}"
                + ("" if native else " (bf16 is only emulated)")
            )
            if not has_kernels((properties.major, properties.minor), torch.cuda.get_arch_list()):
                name, built_for = f"sm_{properties.major}{properties.minor}", ", ".join(torch.cuda.get_arch_list())
                problems.append(
                    f"cuda:{index} ({properties.name}, {name}) is not among the devices that this torch was built for "
                    f"({built_for}); {needs_capability(built)}; install a torch built for it: "
                    "https://pytorch.org/get-started/previous-versions"
                )
            elif (reason := layer.why_not(torch.device("cuda", index))) is not None:
                problems.append(
                    f"cuda:{index}: Triton makes no kernels for it ({reason}), so hidden layers take torch's, which is "
                    f"slower; a C compiler and `pip install triton` are needed, and {needs_capability(built)}"
                )
        facts["cuda"] = f"torch is built for CUDA {built}, the driver offers {driver or 'an unknown version'}"
    elif driver is not None and built is None:
        problems.append(
            f"a GPU driver for CUDA {driver} is here, but this torch ({torch.__version__}) is a CPU build; "
            f"{remedy(driver)}"
        )
    elif driver is not None:
        problems.append(
            f"this torch is built for CUDA {built} and cannot use the present driver (CUDA {driver}): {cuda_error()}; "
            f"{remedy(driver)}, or update the driver"
        )
    else:
        facts["cuda"] = "no GPU driver here; training runs on the CPU"
    facts["cpu"] = (
        f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, bf16 instructions: "
        + ("yes, precision auto takes bf16" if cpu_gains_by_bf16() else "no, precision auto takes fp32")
    )


def driver_cuda() -> str | None:
    """The CUDA version that the GPU driver offers, as nvidia-smi prints it; None where there is no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        output = subprocess.run([program], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"CUDA Version:\s*([\d.]+)", output)
    return found[1] if found else None


def remedy(driver: str) -> str:
    """The command that installs a torch which a driver for CUDA `driver` runs.

    A driver runs every CUDA of its own major version (minor version compatibility), so 12.x drivers take PyTorch's
    cu126 wheels, from 12.8 on cu128; current torch has no wheels for CUDA 11.
    """
    version = tuple(int(part) for part in driver.split(".")[:2])
    if version < (12, 0):
        return "update the GPU driver to 525 or newer (CUDA 12)"
    wheel = "cu126" if version < (12, 8) else "cu128" if version < (13, 0) else "cu130"
    return f"pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/{wheel}"


def needs_capability(cuda: str | None) -> str:
    """What builds of torch for this CUDA ask of a device: CUDA 13 has left Volta (7.0) and older behind."""
    least = "7.5" if cuda is not None and int(cuda.split(".")[0]) >= 13 else "7.0"
    return f"builds for CUDA {cuda} need a device of compute capability {least} or more"


def has_kernels(capability: tuple[int, int], arch_list: list[str]) -> bool:
    """Whether a torch built for `arch_list` (sm_75, sm_86, compute_90, ...) runs on a device of this capability.

    Machine code runs on the same major version from its minor version up; PTX (compute_*) on anything newer.
    """
    for arch in arch_list:
        kind, _, digits = arch.partition("_")
        number = re.match(r"\d+", digits)
        if number is None:
            continue
        major, minor = int(number[0][:-1]), int(number[0][-1])
        if kind == "compute" and (major, minor) <= capability:
            return True
        if kind == "sm" and major == capability[0] and minor <= capability[1]:
            return True
    return not arch_list


def cuda_error() -> str:
    try:
        torch.cuda.init()
    except Exception as error:  # torch raises RuntimeError, AssertionError and its own kinds here
        return opening_line(error)
    return "torch.cuda.is_available() says no"


def look_at_host(facts: dict[str, str], problems: list[str]) -> None:
    """Memory, disk, copy speed, locks, wandb."""
    from ..runs.tracker import logged_in

    total = total_memory()
    available = min(total, found) if (found := available_memory()) is not None else total
    if total:
        held = f"; this process holds {short(own)}B" if (own := own_memory()) is not None else ""
        facts["memory"] = f"{short(available)}B of {short(total)}B available{held}"
    usage = shutil.disk_usage(".")
    facts["disk"] = f"{short(usage.free)}B of {short(usage.total)}B free here"
    if usage.free < LEAST_FREE:
        problems.append(f"only {short(usage.free)}B are free here; checkpoints and logs need room: free some")
    facts["memcpy"] = f"{copy_speed() / 1e9:.1f} GB/s on one thread"
    if not os.access(".", os.W_OK):
        problems.append(f"{Path.cwd()} cannot be written to; runs need that: go elsewhere, or give --run DIR")
    mode = os.environ.get("WANDB_MODE")
    facts["wandb login"] = ("logged in" if logged_in() else "not logged in: runs are recorded offline") + (
        f"; WANDB_MODE={mode}" if mode else ""
    )


def total_memory() -> int:
    """Bytes of RAM; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0


def copy_speed(size: int = 1 << 26) -> float:
    """Bytes a second of copying `size` bytes, more than the caches hold; best of 5."""
    source, target = np.ones(size, np.uint8), np.empty(size, np.uint8)
    np.copyto(target, source)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - began)
    return size / best


def measure_recipe(
    recipe: str | os.PathLike[str], overrides: tuple[str, ...], corpus: str | os.PathLike[str] | None
) -> dict[str, Any]:
    """Train the parts of a recipe for some seconds, writing nothing, and say what an epoch would take."""
    from ..config.resolve import resolve
    from ..training.data import open_corpus
    from ..training.session import prepare
    from .dry_run import dry_run

    recipes.locate(recipe)
    config = resolve(recipe, overrides, corpus)
    packed = open_corpus(config)
    planned = dry_run(recipe, *overrides, corpus=corpus)
    prepared = prepare(config, packed)
    setup, device_spec = prepared.setup, prepared.setup.device_spec
    try:
        loader_rate = measure(
            (len(batch.frames) for batch in setup.train.epoch(0)), device_spec.device, 0.4 * MEASURE_SECONDS
        )
        if device_spec.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device_spec.device)
        frames_per_second = setup.pace(MEASURE_SECONDS)
        memory = (
            torch.cuda.max_memory_allocated(device_spec.device) if device_spec.device.type == "cuda" else own_memory()
        )
    finally:
        setup.close()
    loader = planned["loader"]
    return {
        "recipe": str(recipe), "device": planned["device"], "precision": planned["precision"],
        "parameters": planned["parameters"], "memory_calculated": planned["memory"]["total"], "memory_measured": memory,
        "frames_per_second": frames_per_second, "loader_frames_per_second": loader_rate,
        "loader_share": min(1.0, frames_per_second / loader_rate),
        "epoch_seconds": loader["frames_per_epoch"] / frames_per_second, "frames_per_epoch": loader["frames_per_epoch"],
        "epochs": config.epochs, "loader": loader["kind"], "loader_reason": loader["reason"],
        "window_bytes": 2 * packed.feature_dim * config.window.width,
        "problems": prepared.warnings,
    }  # fmt: skip


def doctor_text(findings: dict[str, Any]) -> str:
    """The findings for people."""
    width = max(map(len, findings["facts"]))
    lines = [f"{name:<{width}}  {value}" for name, value in findings["facts"].items()]
    if (cost := findings["recipe"]) is not None:
        bytes_per_second = cost["loader_frames_per_second"] * cost["window_bytes"]
        lines += [
            "",
            f"{cost['recipe']}: {cost['parameters']:,} parameters in {cost['precision']}, {cost['device']}",
            f"  speed    {short(cost['frames_per_second'])} frames/s: an epoch of {short(cost['frames_per_epoch'])} "
            f"frames takes {clock(cost['epoch_seconds'])}, {counted(cost['epochs'], 'epoch')} "
            f"{clock(cost['epochs'] * cost['epoch_seconds'])}, scoring not counted",
            f"  loader   {cost['loader']} ({cost['loader_reason']}): alone {short(cost['loader_frames_per_second'])} "
            f"windows/s, {bytes_per_second / 1e9:.1f} GB/s; at most {100 * cost['loader_share']:.0f} % of a step",
            f"  memory   about {short(cost['memory_calculated'])}B calculated; measured "
            f"{short(cost['memory_measured'] or 0)}B with the libraries",
        ]
    lines += (
        ["", *(f"problem: {text}" for text in findings["problems"])]
        if findings["problems"]
        else ["", "no problems found"]
    )
    return "\n".join(lines)
