"""What one training step launches on a GPU: calls, bytes and floating point operations, counted without a GPU."""

from __future__ import annotations

from collections import Counter
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from benchmarks.steps import Case, Ours
from phonetrain.kernels import cpu_layer, cuda_layer, layer
from phonetrain.step import train_step as step


class Tally(TorchDispatchMode):
    """Counts what a step launches: calls, bytes in and out, and floating point operations of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.launches, self.bytes, self.flops, self.calls = 0, 0, 0, []
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = str(function)
        # Views, allocations and what only the host does launch nothing.
        if function.is_view or any(word in name for word in ("empty", "detach", "item", "_local_scalar")):
            return result
        moved = sum(tensor.nbytes for tensor in tensors((args, result)))
        flops = 0
        if name.startswith(("aten.mm", "aten.addmm")):
            left, right = tensors(args)[-2:]
            flops = 2 * left.shape[0] * left.shape[1] * right.shape[1]
        self.launches, self.bytes, self.flops = self.launches + 1, self.bytes + moved, self.flops + flops
        self.names[name.split(".")[1]] += 1
        self.calls.append((moved, flops))
        return result


def tensors(values) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, (list, tuple)):
        return [tensor for value in values for tensor in tensors(value)]
    return []


class CountedLayer(torch.autograd.Function):
    """Stands for the kernels of cuda_layer.py: counts their launches and bytes, and computes nothing."""

    found: Tally

    @staticmethod
    def forward(context, hidden: Tensor, norm: nn.Module | None) -> Tensor:
        context.norm = norm is not None
        with _disable_current_modes():
            CountedLayer.count((1, 2) if context.norm else (2,), hidden)
            return hidden.clone()

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        with _disable_current_modes():
            CountedLayer.count((2, 3) if context.norm else (3,), gradient)
            return gradient.clone(), None

    @classmethod
    def count(cls, passes: tuple[int, ...], hidden: Tensor) -> None:
        """A launch for each of `passes`, which reads or writes so many matrices like `hidden`."""
        for matrices in passes:
            cls.found.launches, cls.found.bytes = cls.found.launches + 1, cls.found.bytes + matrices * hidden.nbytes
            cls.found.names["layer kernel"] += 1
            cls.found.calls.append((matrices * hidden.nbytes, 0))


def tally(case: Case) -> Tally:
    """What one step of ours launches on a GPU that Triton makes kernels for; its products and casts as autocast's."""
    ours, found = Ours(case, capture=False), Tally()
    CountedLayer.found = found
    with (
        patch.object(cpu_layer, "why_not", lambda: "counted as on a GPU"),
        patch.object(step, "total_norm", nn.utils.get_total_norm),
        patch.object(layer, "kernels_for", lambda hidden, *modules: cuda_layer if layer.are_known(*modules) else None),
        patch.object(cuda_layer, "hidden_layer", lambda hidden, norm, *_: CountedLayer.apply(hidden, norm)),
    ):
        ours()
        with found:
            found.launches, found.bytes, found.calls = 0, 0, []
            ours()
    return found
