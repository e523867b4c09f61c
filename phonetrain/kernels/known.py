"""Which torch modules the kernels cover."""

from __future__ import annotations

import torch
from torch import Tensor, nn

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
ACTIVATIONS = {
    nn.ReLU: 0,
    nn.LeakyReLU: 1,
    nn.GELU: 2,
    nn.SiLU: 3,
    nn.Mish: 4,
    nn.Softplus: 5,
    nn.Tanh: 6,
    nn.Sigmoid: 7,
}
IDENTITY = 8


def is_watched(module: nn.Module) -> bool:
    """Whether somebody put a hook on it, who wants to see it called."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def masks_are_hashed(dropout: nn.Module) -> bool:
    """Whether it is exactly the Dropout of layer.py, no subclass, whose forward may be another."""
    return vars(type(dropout)).get("hashes_masks", False)


def are_known(norm: nn.Module | None, activation: nn.Module, dropout: nn.Module | None) -> bool:
    """Whether these are modules that kernels of ours know, whatever the norm.

    Modules with hooks are not: who put a hook on a layer wants to see it called.
    """
    if type(activation) not in ACTIVATIONS or getattr(activation, "approximate", "none") != "none":
        return False
    if type(activation) is nn.Softplus and (activation.beta, activation.threshold) != (1, 20):
        return False
    if dropout is not None and not masks_are_hashed(dropout):
        return False
    if any(part is not None and is_watched(part) for part in (norm, activation, dropout)):
        return False
    return norm is None or (norm.weight is not None and norm.weight.dtype == torch.float32)


def batch_norm_is_known(hidden: Tensor, norm: nn.BatchNorm1d) -> bool:
    """Whether it is one in training, or one with running moments through which nothing is learnt."""
    if norm.bias is None:
        return False
    if norm.training:
        return norm.running_mean is not None and norm.momentum is not None and len(hidden) > 1
    learning = any(part.requires_grad for part in (hidden, norm.weight, norm.bias))
    return norm.running_mean is not None and not (torch.is_grad_enabled() and learning)


def refuse_second_derivative() -> None:
    """Raises RuntimeError in a backward pass that is itself recorded: its kernels leave nothing to go back by."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "kernels of phonetrain have no second derivative (create_graph=True); put a forward hook on "
            "each linear layer and activation, and torch's own modules compute it"
        )
