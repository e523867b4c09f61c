"""A model of the user's own: `model.factory = "file.py:build"`, imported, called and tried before training."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import ConfigError


def build_from_factory(factory: str, feature_dim: int, window_width: int, num_classes: int) -> nn.Module:
    """The module that `factory` builds, in training mode; tried on two windows first.

    factory: `path/file.py:function` or `package.module:function`; the function is called with the keywords
    `feature_dim` (D), `window_width` (W) and `num_classes` (C) and returns a module (B, W, D) -> (B, C). The module
    gets an attribute `logits_matrix`, the name of the parameter that gives the logits; see `find_logits_matrix`.
    Raises ConfigError in one line: not found, failed, or of another shape.
    """
    build = find(factory)
    try:
        model = build(feature_dim=feature_dim, window_width=window_width, num_classes=num_classes)
    except Exception as error:
        raise failed(factory, "failed when called with feature_dim, window_width, num_classes", error) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model.factory = {factory}: returned a {type(model).__name__}, wanted a torch.nn.Module")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"model.factory = {factory}: its model has no parameters to train")
    try:
        # Evaluation mode draws nothing and moves no norm buffers, so trying the model leaves it as it was built.
        with torch.enable_grad():
            logits = model.eval()(torch.zeros(2, window_width, feature_dim))
    except Exception as error:
        raise failed(factory, f"its model failed on windows (2, {window_width}, {feature_dim})", error) from error
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != (2, num_classes):
        raise ConfigError(
            f"model.factory = {factory}: windows (2, {window_width}, {feature_dim}) gave {shape}, "
            f"wanted logits (2, {num_classes})"
        )
    vars(model)["logits_matrix"] = find_logits_matrix(model, logits)
    return model.train()


def faster_precision(
    factory: str, feature_dim: int, window_width: int, num_classes: int, batch_size: int
) -> tuple[str, str]:
    """The faster of bf16 and fp32 on this CPU for the model that `factory` builds, and one line that says so.

    What a CPU is says how fast it multiplies matrices, but not how fast the operations of somebody's own model are:
    forward and backward of one batch, at most 512 windows, are timed in both, by turns, and the fastest of each counts.
    """
    model = build_from_factory(factory, feature_dim, window_width, num_classes)
    windows = torch.randn(min(batch_size, 512), window_width, feature_dim)
    labels = torch.arange(len(windows)) % num_classes

    def seconds(precision: str) -> float:
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(model(windows).float(), labels)
        loss.backward()
        return time.perf_counter() - began

    try:
        seconds("bf16")
    except Exception as error:  # what somebody's own code makes of bf16 may be anything
        return "fp32", f"the model cannot compute in bf16 ({' '.join(str(error).split())[:100]})"
    seconds("fp32")
    rounds = [(seconds("bf16"), seconds("fp32")) for _ in range(3)]
    bf16, fp32 = (1000 * min(times) for times in zip(*rounds, strict=True))
    reason = f"{len(windows)} windows took model.factory {bf16:.1f} ms in bf16 and {fp32:.1f} ms in fp32"
    return ("bf16" if bf16 < fp32 else "fp32"), reason


def find_logits_matrix(model: nn.Module, logits: torch.Tensor) -> str | None:
    """The name of the parameter that turns the last hidden layer into `logits`, (B, C); None where there is none.

    It is the matrix with C rows (or C columns) that is nearest to the logits in their autograd graph. The order in
    which a module registers its parameters says nothing about the order in which it calls them.
    """
    num_classes = logits.shape[1]
    names = {parameter: name for name, parameter in model.named_parameters()}
    nodes, seen = [logits.grad_fn], {logits.grad_fn, None}
    for node in nodes:  # grows while it is walked: nearer nodes first
        parameter = getattr(node, "variable", None)
        if parameter in names and parameter.ndim == 2 and num_classes in parameter.shape:
            return names[parameter]
        fresh = [before for before, _ in getattr(node, "next_functions", ()) if before not in seen]
        nodes += dict.fromkeys(fresh)
        seen.update(fresh)
    return None


def find(factory: str) -> Callable[..., object]:
    source, _, name = factory.rpartition(":")
    try:
        module = import_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except Exception as error:
        raise failed(factory, f"cannot import {source}", error) from error
    build = getattr(module, name, None)
    if not callable(build):
        raise ConfigError(f"model.factory = {factory}: {source} has no function {name}")
    return build


def import_file(path: Path) -> object:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    spec = importlib.util.spec_from_file_location(f"phonetrain_factory_{path.stem}", path)
    assert spec is not None and spec.loader is not None, "of a file that ends in .py there is one"
    module = importlib.util.module_from_spec(spec)
    # torch.compile and pickling look modules up by name; the file's neighbours are importable while it is read.
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


class FactoryFailed(ConfigError):
    """The user's own code raised something."""


def failed(factory: str, what: str, error: Exception) -> FactoryFailed:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return FactoryFailed(f"model.factory = {factory}: {what} ({reason[:300]})")
