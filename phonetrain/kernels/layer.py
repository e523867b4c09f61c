"""Chooses what computes a model's hidden layers: kernels on the CPU, on a GPU, or torch's modules.

The modules stay (parameters, buffers, names); kernels are another way to compute what they define. cpu_layer.py and
cuda_layer.py know nothing of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import cpu_layer, cuda_layer
from .cpu_layer import converted
from .cuda_layer import padded
from .known import KERNEL_NUMBERS, KeyedDropout, is_dropping, is_watched, refuse_second_derivative

__all__ = ["Dropout", "converted", "hidden_layer", "kernels_for", "padded", "prepare", "product", "why_not"]


def why_not(device: torch.device) -> str | None:
    """None where there are kernels for this device, else the reason in one line."""
    if device.type == "cuda":
        return cuda_layer.why_not(device)
    return cpu_layer.why_not() if device.type == "cpu" else f"there are none for {device.type}"


def hidden_layer(hidden: Tensor, norm: nn.Module | None, activation: nn.Module, dropout: nn.Module | None) -> Tensor:
    """dropout(activation(norm(hidden))), (B, H) -> (B, H); in one operation, where there are kernels for it."""
    kernels = kernels_for(hidden, norm, activation, dropout)
    if kernels is not None:
        return kernels.hidden_layer(hidden, norm, activation, dropout)
    hidden = activation(hidden if norm is None else norm(hidden))
    return hidden if dropout is None else dropout(hidden)


def kernels_for(
    hidden: Tensor, norm: nn.Module | None, activation: nn.Module, dropout: nn.Module | None
) -> ModuleType | None:
    """cpu_layer or cuda_layer, whichever computes just what these modules would; None where only they do."""
    for kernels in (cpu_layer, cuda_layer):
        if kernels.runs_here(hidden) and kernels.norm_is_known(hidden, norm):
            return kernels if are_known(norm, activation, dropout) else None
    return None


def are_known(norm: nn.Module | None, activation: nn.Module, dropout: nn.Module | None) -> bool:
    """Whether these are modules that kernels know, whatever the norm's type.

    Modules with hooks are not: who put a hook on a layer wants to see it called.
    """
    if type(activation) not in KERNEL_NUMBERS or getattr(activation, "approximate", "none") != "none":
        return False
    if type(activation) is nn.Softplus and (activation.beta, activation.threshold) != (1, 20):
        return False
    if dropout is not None and type(dropout) is not Dropout:
        return False
    if any(module is not None and is_watched(module) for module in (norm, activation, dropout)):
        return False
    return norm is None or (norm.weight is not None and norm.weight.dtype == torch.float32)


class Dropout(KeyedDropout):
    """nn.Dropout whose mask is a hash of each value's place in the global batch and of one key per call.

    A key of 62 bits a call in place of a generator's number a value. hidden: (B, ...).
    """

    def forward(self, hidden: Tensor) -> Tensor:
        if not is_dropping(self) or hidden.ndim < 2 or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return F.dropout(hidden, self.p, self.training)
        rows = hidden.flatten(1)
        for kernels in (cpu_layer, cuda_layer):
            if kernels.runs_here(rows):
                return kernels.hidden_layer(rows, None, None, self).view(hidden.shape)
        kept = kept_by_hash(self, rows).view(hidden.shape)
        return hidden * kept.to(hidden.dtype) * (1 / (1 - self.p) if self.p < 1 else 0.0)


def kept_by_hash(dropout: Dropout, rows: Tensor) -> Tensor:
    """Which values of (B, H) dropout keeps, bool: the hash of the kernels, `cpu_math.random_bits`, by torch."""
    on_cpu, word = rows.device.type == "cpu", 0xFFFFFFFF
    key = dropout.next_key(() if on_cpu else (2,), rows.device)
    key, before = (key, dropout.rows_before) if on_cpu else (key[0], (key[1] + dropout.rows_before) & word)
    row, column = (torch.arange(size, device=rows.device) for size in rows.shape)
    bits = ((row[:, None] + before) * rows.shape[1] + column) & word
    bits ^= key & word
    bits = ((bits ^ (bits >> 16)) * 0x21F0AAAD) & word
    bits = ((bits ^ (bits >> 15)) + (key >> 32)) & word
    bits = ((bits ^ (bits >> 16)) * 0x735A2D97) & word
    return bits >= min(round(dropout.p * 2**32), 2**32 - 1)


def hash_dropout(model: nn.Module) -> nn.Module:
    """Let the plain dropouts of `model` hash their masks, in place: a model of the user's own may have them."""
    for module in model.modules():
        if type(module) is nn.Dropout and not module.inplace:
            module.__class__ = Dropout
    return model


def prepare(
    linears: Sequence[nn.Linear], dropouts: Sequence[nn.Module | None], inputs: Tensor
) -> Sequence[Tensor | None]:
    """What the layers of a forward pass need, by one launch for all: keys for `dropouts`, which receive them, and
    16-bit copies of the matrices for `product`, which are returned, None for each that takes none."""
    hashing = [dropout for dropout in dropouts if isinstance(dropout, Dropout) and is_dropping(dropout)]
    if hashing and cuda_layer.runs_here(inputs) and all(dropout.key is None for dropout in hashing):
        keys = torch.randint(2**62, (len(hashing), 2), device=inputs.device)  # two each: kernels like whole 16 bytes
        for dropout, key in zip(hashing, keys.unbind(), strict=True):
            dropout.key = key
    if not all(takes_product(linear, inputs) for linear in linears):
        return [None] * len(linears)
    weights = [linear.weight.detach() for linear in linears]
    halves = [torch.empty_like(weight, dtype=torch.get_autocast_dtype("cuda")) for weight in weights]
    torch._foreach_copy_(halves, weights)
    return halves


def takes_product(linear: nn.Linear, inputs: Tensor) -> bool:
    """Whether `product` may compute it: a trainable nn.Linear under autocast on a GPU, without hooks."""
    return (
        type(inputs) is Tensor
        and inputs.device.type == "cuda"
        and inputs.ndim == 2
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cuda")
        and type(linear) is nn.Linear
        and not is_watched(linear)
        and linear.weight.requires_grad
        and linear.weight.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def product(linear: nn.Linear, inputs: Tensor, half: Tensor | None = None) -> Tensor:
    """linear(inputs), (B, inputs) -> (B, outputs); under autocast on a GPU the weight's derivative is not rounded.

    half: the matrix in autocast's dtype, where there is such a copy already.
    """
    if not takes_product(linear, inputs):
        return linear(inputs)
    dtype = torch.get_autocast_dtype("cuda")
    half = linear.weight.detach().to(dtype) if half is None else half
    return Product.apply(inputs.to(dtype), linear.weight, linear.bias, half)


class Product(torch.autograd.Function):
    """inputs @ weight.T + bias in the dtype of inputs, with float32 weights.

    The weight's derivative is summed in float32 by the matrix product anyway. Autocast lets it be rounded to 16 bits
    and makes float32 of that again: more bytes to move, for less precision.
    """

    @staticmethod
    def forward(context: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, half: Tensor) -> Tensor:
        context.save_for_backward(inputs, half)
        context.biased = bias is not None
        return F.linear(inputs, half, None if bias is None else bias.to(inputs.dtype))

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        (inputs, half), gradient = context.saved_tensors, gradient.contiguous()
        by_inputs = gradient.mm(half) if context.needs_input_grad[0] else None
        by_bias = gradient.sum(0, dtype=torch.float32) if context.biased else None
        return by_inputs, float_product(gradient.t(), inputs), by_bias, None


def float_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in float32, of 16-bit matrices."""
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left.float(), right.float())
