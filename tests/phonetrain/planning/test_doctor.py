"""doctor: a problem always comes with its remedy; what a recipe costs is measured on the parts that would train."""

import os
import sys
from types import SimpleNamespace

import pytest
import torch

from phonetrain.errors import ConfigError
from phonetrain.planning.doctor import doctor, doctor_text, has_kernels, look_at_devices, needs_capability, remedy
from tests.training import TINY

SMI = """#!/bin/sh
echo '| NVIDIA-SMI 550.54.15    Driver Version: 550.54.15    CUDA Version: {}     |'
"""


@pytest.mark.skipif(os.name != "posix", reason="a shell script stands for nvidia-smi")
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a torch that sees no GPU")
@pytest.mark.parametrize(("driver", "wheel"), [("12.4", "cu126"), ("12.8", "cu128"), ("13.1", "cu130")])
def test_torch_that_cannot_use_the_driver_is_named_with_the_fix(tmp_path, monkeypatch, driver, wheel):
    (tmp_path / "nvidia-smi").write_text(SMI.format(driver))
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    problems = []
    look_at_devices({}, problems)
    (problem,) = problems
    assert f"whl/{wheel}" in problem and driver in problem


def test_older_drivers_get_the_newest_wheels_they_run():
    wheels = [remedy(driver).rpartition("/")[2] for driver in ("12.0", "12.6", "12.9", "13.0", "14.0")]
    assert wheels == ["cu126", "cu126", "cu128", "cu130", "cu130"]
    assert "update the GPU driver" in remedy("11.8")


def test_device_that_torch_was_not_built_for_is_found():
    assert has_kernels((7, 5), ["sm_75", "sm_86"]) and has_kernels((8, 9), ["sm_86"])
    assert not has_kernels((7, 0), ["sm_75", "sm_86"]) and not has_kernels((12, 0), ["sm_90a"])
    assert has_kernels((12, 0), ["sm_90", "compute_90"])


def test_device_that_is_too_old_for_the_build_is_told_the_least_capability(monkeypatch):
    old = SimpleNamespace(name="Tesla V100", major=7, minor=0)
    for name, value in {
        "is_available": True, "device_count": 1, "get_device_properties": old, "mem_get_info": (1 << 30, 1 << 34),
        "get_arch_list": ["sm_75", "sm_80"],
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    problems = []
    look_at_devices({}, problems)
    assert len(problems) == 1
    assert (
        "cuda:0 (Tesla V100, sm_70)" in problems[0]
        and "CUDA 13.0 need a device of compute capability 7.5 or more" in problems[0]
    )
    assert "7.0 or more" in needs_capability("12.8") and "7.5 or more" in needs_capability("14.1")


def test_facts_name_versions_memory_and_copy_speed():
    told = doctor()
    assert {"python", "torch", "cpu", "memory", "disk", "memcpy", "wandb login"} <= set(told["facts"])
    assert "GB/s" in told["facts"]["memcpy"] and "torch" in doctor_text(told)


def test_recipe_is_measured_and_nothing_is_written(learnable_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules["phonetrain.planning.doctor"], "MEASURE_SECONDS", 0.2)
    told = doctor("default", *TINY, corpus=learnable_corpus.path)
    cost = told["recipe"]
    assert cost["frames_per_second"] > 0 and cost["epoch_seconds"] > 0 and 0 < cost["loader_share"] <= 1
    assert cost["frames_per_epoch"] <= learnable_corpus["train-clean"].num_frames
    text = doctor_text(told)
    assert "frames/s" in text and "loader   host" in text and list(tmp_path.iterdir()) == []


def test_unknown_recipe_is_refused(learnable_corpus):
    with pytest.raises(ConfigError, match="did you mean default"):
        doctor("defalt", corpus=learnable_corpus.path)
