"""Which device, which precision: decided by what the machine is."""

import pytest
import torch

from phonetrain import device


@pytest.mark.parametrize(("vendor", "amx", "avx512", "wanted"), [
    ("AuthenticAMD", False, True, "bf16"), ("GenuineIntel", False, True, "fp32"), ("GenuineIntel", True, True, "bf16"),
    ("AuthenticAMD", False, False, "fp32"), ("", False, False, "fp32"),
])
def test_auto_takes_bf16_on_cpus_that_gain_by_it(monkeypatch, vendor, amx, avx512, wanted):
    monkeypatch.setattr(device, "cpu_vendor", lambda: vendor)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert device.choose_compute("cpu", "auto").precision == wanted
