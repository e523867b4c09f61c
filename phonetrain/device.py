"""Chooses the device and the precision of a run, and describes the machine it runs on."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch

from .distributed import current
from .errors import ConfigError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
DEVICES = "auto, cpu, cuda, cuda:N or mps"
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class DeviceSpec:
    """Where and in which precision a run computes."""

    device: torch.device
    precision: str  # "fp32", "bf16" or "fp16"
    reason: str  # one line for people: why this device and this precision

    def autocast(self) -> contextlib.AbstractContextManager:
        """The autocast region of a forward pass; nothing at all for fp32."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, AUTOCAST_DTYPES[self.precision])

    @property
    def window_dtype(self) -> torch.dtype:
        """The dtype in which windows enter the model: the autocast dtype, so that no float32 copy is made."""
        return AUTOCAST_DTYPES.get(self.precision, torch.float32)

    @property
    def scales_loss(self) -> bool:
        """float16 gradients underflow below 6e-8 without a loss scale; bf16 has the range of float32."""
        return self.precision == "fp16"


def choose_device(device: str = "auto", precision: str = "auto") -> DeviceSpec:
    """The device and precision for `device` (auto, cpu, cuda, cuda:1, mps) and `precision` (auto, fp32, bf16, fp16).

    On a CPU the process keeps freed memory from then on (`keep_freed_memory`). Raises ConfigError for a device that is
    not there, for bf16 on a GPU that only emulates it, and on mps for all but fp32.
    """
    try:
        chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    except RuntimeError as error:
        raise ConfigError(f"device: got {device!r}, wanted {DEVICES}") from error
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device: got {device!r}, wanted {DEVICES}")
    if chosen.type == "mps":
        return _mps_spec(chosen, precision)
    if chosen.type == "cuda":
        count = torch.cuda.device_count()
        if (chosen.index or 0) >= count:
            raise ConfigError(
                f"device: got {device!r}, but torch {torch.__version__} sees {count} CUDA devices; "
                "use device=cpu, or run `phonetrain doctor` to see why"
            )
        # Tensors know the number of their device: "cuda" without one equals none of theirs.
        index = torch.cuda.current_device() if chosen.index is None else chosen.index
        return _cuda_spec(torch.device("cuda", index), precision)
    keep_freed_memory()
    if precision == "auto":
        if cpu_gains_by_bf16():
            return DeviceSpec(chosen, "bf16", "cpu with bf16 instructions")
        return DeviceSpec(chosen, "fp32", "cpu that bf16 would not speed up")
    return DeviceSpec(chosen, precision, f"cpu, {precision} as asked")


def _mps_spec(device: torch.device, precision: str) -> DeviceSpec:
    if not torch.backends.mps.is_available():
        raise ConfigError(f"device: got mps, but torch {torch.__version__} finds no Apple GPU here; use device=cpu")
    if precision not in ("auto", "fp32"):
        raise ConfigError(f"precision: got {precision}, but device=mps computes in fp32 only; leave precision out")
    return DeviceSpec(device, "fp32", "Apple GPU (mps)")


def sum_dtype(device: torch.device | str) -> torch.dtype:
    """The widest float that sums on `device` can have: Metal (mps) has no float64."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def _cuda_spec(device: torch.device, precision: str) -> DeviceSpec:
    capability = torch.cuda.get_device_capability(device)
    name = f"{torch.cuda.get_device_name(device)}, compute capability {capability[0]}.{capability[1]}"
    # torch.cuda.is_bf16_supported() also counts emulation, which a T4 (7.5) offers at a fraction of fp16's speed.
    native_bf16 = capability[0] >= 8
    if precision == "bf16" and not native_bf16:
        raise ConfigError(f"precision: got bf16, but {name} only emulates it; use precision=fp16")
    if precision == "auto":
        precision = "bf16" if native_bf16 else "fp16"
    return DeviceSpec(device, precision, name)


@contextlib.contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Within the block, if `wanted`, torch replaces or refuses CUDA operations whose sums depend on timing.

    cuBLAS reads its workspaces from the environment at its first use in the process (NVIDIA, cuBLAS library, "Results
    reproducibility"). CPUs give the same bits at the same number of threads anyway.
    """
    options: Any = torch.utils.deterministic
    before, filled = torch.are_deterministic_algorithms_enabled(), options.fill_uninitialized_memory
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        options.fill_uninitialized_memory = False  # a way to find bugs, at the price of a pass
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        options.fill_uninitialized_memory = filled


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc's malloc keep what a step has freed for the next step; other allocators are left alone.

    Activations and gradients have the same sizes every step. By default glibc gives blocks of megabytes back to the
    system, which hands them out as pages of zeros again: thousands of page faults a step, a tenth of its time
    (docs/PERFORMANCE.md). From here on they stay in the process, as much as it once had in blocks of up to 128 MiB, or
    32 in an older glibc, which takes no more. Who set malloc's own variables is left alone too.
    """
    if {"GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys():
        return
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    # The second call alone would freeze the first one's threshold where it happens to be.
    if libc.mallopt(M_MMAP_THRESHOLD, 128 << 20) or libc.mallopt(M_MMAP_THRESHOLD, 32 << 20):
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


def cpu_gains_by_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices faster than float32 ones, by its features, never by timing.

    A run that is resumed must find the same answer, so nothing is timed. AMX always gains. AVX-512 BF16 gains on AMD,
    whose cores issue as many of its instructions as of float32's; Intel's issue half as many, and torch's products
    then take twice float32's time (docs/PERFORMANCE.md). Elsewhere bf16 is emulated.
    """
    if _supports("_is_amx_tile_supported"):
        return True
    return _supports("_is_avx512_bf16_supported") and cpu_vendor() != "GenuineIntel"


def _supports(probe: str) -> bool:
    return bool(getattr(torch.cpu, probe, bool)())


def cpu_vendor() -> str:
    """The CPU's vendor as Linux names it ("AuthenticAMD", "GenuineIntel"); empty on other systems."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            lines = (line.partition(":") for line in file)
            return next((value.strip() for key, _, value in lines if key.strip() == "vendor_id"), "")
    except OSError:
        return ""


@functools.cache
def version(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe_machine(spec: DeviceSpec) -> dict[str, str | int | None]:
    """What equality of two runs depends on besides the configuration: machine type, versions, threads; no host."""
    gpu = torch.cuda.get_device_name(spec.device) if spec.device.type == "cuda" else None
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in ("numpy", "numba", "phonedata")},  # phonetrain comes with phonedata
        "cuda": torch.version.cuda if gpu else None,
        "threads": torch.get_num_threads(),
        "precision": spec.precision,
        "ranks": current().world_size,
    }
