"""Which device, which precision: decided by what the machine is."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from phonetrain import device
from phonetrain.errors import ConfigError


@pytest.mark.parametrize(
    ("vendor", "amx", "avx512", "wanted"),
    [
        ("AuthenticAMD", False, True, "bf16"),
        ("GenuineIntel", False, True, "fp32"),
        ("GenuineIntel", True, True, "bf16"),
        ("AuthenticAMD", False, False, "fp32"),
        ("", False, False, "fp32"),
    ],
)
def test_auto_takes_bf16_on_cpus_that_gain_by_it(monkeypatch, vendor, amx, avx512, wanted):
    monkeypatch.setattr(device, "cpu_vendor", lambda: vendor)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert device.choose_device("cpu", "auto").precision == wanted


def test_mps_is_refused_in_a_sentence_where_there_is_none_and_sums_without_float64(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="finds no Apple GPU here; use device=cpu"):
        device.choose_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device.choose_device("mps").precision == "fp32"
    with pytest.raises(ConfigError, match="device=mps computes in fp32 only"):
        device.choose_device("mps", "bf16")
    assert device.sum_dtype("mps") == torch.float32 and device.sum_dtype("cpu") == torch.float64


FAULTS = """
import resource
import torch
from phonetrain.device import choose_device
if {keeps}:
    choose_device("cpu")
for turn in range(18):  # in the first ones the heap finds its size
    if turn == 8:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    made = [torch.ones(4 << 20) for _ in range(4)]  # 16 MiB each
    del made
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="speaks of glibc's malloc")
def test_memory_that_is_freed_stays_for_the_next_step():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}

    def faults(keeps: bool, **variables: str) -> int:
        return int(
            subprocess.run(
                [sys.executable, "-c", FAULTS.format(keeps=keeps)],
                text=True,
                capture_output=True,
                env=environment | variables,
                check=True,
            ).stdout
        )

    pages = 10 * (64 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert faults(True) < pages / 10
    # glibc alone gives the memory back, and so does who says so himself.
    if faults(False) > pages / 2:  # pages may be larger than the system says
        assert faults(True, MALLOC_TRIM_THRESHOLD_="65536") > pages / 2
