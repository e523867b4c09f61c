"""torch.compile for the model of a training step, or the reason why it runs as it is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .ranks import here


def compiled(model: nn.Module, device: torch.device) -> tuple[Callable[[Tensor], Tensor], str]:
    """What to call in place of `model` in training, and one line on what it is.

    The module itself stays what it is (names, hooks, checkpoints, scoring). Its kernels are made at the first call;
    whether this machine can make any is tried on a function of one line, since a compiler that is not there is only
    noticed then. Dropout draws other numbers than the eager model does, from the same seed.
    """
    if here().world_size > 1:
        return model, "off: several processes meet inside the model"
    try:
        torch.compile(lambda values: values.sin() + 1, dynamic=False)(torch.zeros(8, device=device))
    except Exception as error:  # what a missing compiler raises differs by device, system and version
        return model, f"off: torch.compile does not work here ({reason(error)})"
    return torch.compile(model, dynamic=False), "on"


def reason(error: Exception) -> str:
    """The line of an error of torch's compiler that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].removesuffix(":") if lines else type(error).__name__
