"""Kernels where they compute just what torch's modules would, torch's modules everywhere else."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

from phonetrain import kernels
from phonetrain.config.run_config import load_recipe
from phonetrain.console.base import Console
from phonetrain.kernels import cpu_kernels, cpu_layer
from phonetrain.kernels.cpu_layer import converted
from phonetrain.kernels.layer import Dropout, hidden_layer, kernels_for
from phonetrain.training.fit import fit
from tests.training import TINY

ROWS, COLUMNS = 60, 24


@pytest.fixture
def hidden() -> torch.Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(4))


def test_modules_that_kernels_do_not_know_are_left_to_torch(hidden):
    silu = nn.SiLU()
    assert kernels_for(hidden, None, silu, None) is cpu_layer
    assert kernels_for(hidden.double(), None, silu, None) is None
    assert kernels_for(hidden[None], None, silu, None) is None
    assert kernels_for(hidden.to("meta"), None, silu, None) is None
    assert kernels_for(hidden, nn.BatchNorm1d(COLUMNS, affine=False), silu, None) is None
    assert kernels_for(hidden[:1], nn.BatchNorm1d(COLUMNS), silu, None) is None
    unbiased = nn.BatchNorm1d(COLUMNS)
    unbiased.bias = None
    assert kernels_for(hidden, unbiased, silu, None) is None
    assert kernels_for(hidden, nn.GroupNorm(1, COLUMNS), silu, None) is None
    assert kernels_for(hidden, None, nn.GELU(approximate="tanh"), None) is None
    assert kernels_for(hidden, None, nn.ELU(), None) is None
    assert kernels_for(hidden, None, nn.Softplus(beta=2), None) is None
    assert kernels_for(hidden, None, silu, nn.Dropout(0.5)) is None
    silu.register_forward_hook(lambda module, args, output: None)
    assert kernels_for(hidden, None, silu, None) is None


@pytest.fixture
def broken_compiler(monkeypatch):
    """numba that can be imported, and raises when it compiles."""

    def broken(*_, **__):
        def compile_(function):
            raise RuntimeError("Could not find any LLVM target\nand more")

        return compile_

    monkeypatch.setattr(cpu_kernels, "cfunc", broken)
    monkeypatch.setattr(cpu_layer, "why_not", cpu_layer.why_not.__wrapped__)
    cpu_kernels.conversion.cache_clear()


def test_compiler_that_fails_leaves_everything_to_torch(hidden, broken_compiler):
    """That numba could be imported was taken for kernels that could be built: training ended at the first layer."""
    assert cpu_layer.why_not() == "RuntimeError: Could not find any LLVM target"
    assert torch.equal(hidden_layer(hidden, None, nn.SiLU(), None), nn.functional.silu(hidden))
    output = Dropout(0.5)(hidden)
    assert (
        torch.equal(output, torch.where(output != 0, 2 * hidden, 0)) and 0.4 < float((output != 0).float().mean()) < 0.6
    )
    assert torch.equal(converted(hidden.half(), torch.bfloat16), hidden.half().bfloat16())


def test_run_without_kernels_trains_and_warns_once(broken_compiler, learnable_corpus, tmp_path, capsys):
    config = load_recipe("default").override([*TINY[1:], "epochs=1", "device=cpu"])
    run = fit(config=config, corpus=learnable_corpus.path, run=tmp_path / "run", console=Console())
    assert run.status == "finished"
    warning = (
        "warning: numba makes no kernels here, so layers take torch's own, which is slower (RuntimeError: Could not"
    )
    assert capsys.readouterr().err.count(warning) == 1


def test_no_triton_kernel_multiplies_matrices():
    """Triton has no tensor cores below capability 8.0: `tl.dot` on a T4 is slower than cuBLAS by far."""
    files = sorted(Path(kernels.__path__[0]).glob("*.py"))
    names = {node.attr for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
             if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("tl", "triton.language")}  # fmt: skip
    assert {"load", "store", "program_id"} <= names, "not what Triton's kernels are written with"
    assert {name for name in names if name.startswith("dot")} == set()
