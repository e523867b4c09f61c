"""What the kernels on CPUs and GPUs have in common: dtypes, activations, and which tensors and norms they take."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The number by which a CPU kernel knows a dtype of activations."""


class Activation(NamedTuple):
    """One row of ACTIVATIONS. kernel: the number by which all kernels know it, None where torch alone computes it."""

    module: type[nn.Module]
    kernel: int | None


# The allowed names in config/sections.py and the numbers in cpu_math.py and triton_math.py are held equal by tests.
ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(nn.ReLU, 0),
    "leaky_relu": Activation(nn.LeakyReLU, 1),
    "gelu": Activation(nn.GELU, 2),
    "silu": Activation(nn.SiLU, 3),
    "mish": Activation(nn.Mish, 4),
    "softplus": Activation(nn.Softplus, 5),
    "tanh": Activation(nn.Tanh, 6),
    "sigmoid": Activation(nn.Sigmoid, 7),
}
KERNEL_NUMBERS: dict[type[nn.Module], int] = {
    row.module: row.kernel for row in ACTIVATIONS.values() if row.kernel is not None
}
IDENTITY = 8
"""The number of no activation at all."""


class KeyedDropout(nn.Dropout):
    """nn.Dropout with what its masks are hashed from: a key a call, and where the rows of a call lie in the batch.

    key: one that was drawn for the next call. drawn: the one of the last call, which the other pieces of a batch take
    too. rows_before: rows of the global batch before the first one here. So a frame's mask is the same however many
    processes and pieces the batch is cut into.
    """

    key: Tensor | None = None
    drawn: Tensor | None = None
    rows_before: int = 0

    def next_key(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """The key that is there, else one drawn on the device: a captured graph draws another at each replay."""
        self.drawn = torch.randint(2**62, shape, device=device) if self.key is None else self.key
        self.key = None
        return self.drawn


def is_matrix_for_kernels(hidden: Tensor, device_type: str) -> bool:
    """Whether a tensor is (B, H) on such a device, of a known dtype, and nobody is tracing."""
    return (
        type(hidden) is Tensor
        and hidden.device.type == device_type
        and hidden.ndim == 2
        and hidden.dtype in KINDS
        and 0 < hidden.numel() < 2**32
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def is_watched(module: nn.Module) -> bool:
    """Whether the module has hooks, which run only if it is called."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def is_dropping(dropout: KeyedDropout | None) -> bool:
    """Whether there is a dropout, in training mode, with p > 0."""
    return dropout is not None and dropout.training and dropout.p > 0


def batch_norm_is_known(hidden: Tensor, norm: nn.BatchNorm1d) -> bool:
    """Whether kernels compute this batch norm: in training, or with running moments where no gradient is wanted."""
    if norm.bias is None:
        return False
    if norm.training:
        return norm.running_mean is not None and norm.momentum is not None and len(hidden) > 1
    learning = any(tensor.requires_grad for tensor in (hidden, norm.weight, norm.bias))
    return norm.running_mean is not None and not (torch.is_grad_enabled() and learning)


def running_buffers(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor, Tensor]:
    """Running mean and variance, (H,) each, and number of batches, (), of a norm that has them."""
    return cast("tuple[Tensor, Tensor, Tensor]", (norm.running_mean, norm.running_var, norm.num_batches_tracked))


def refuse_second_derivative() -> None:
    """Raises RuntimeError in a backward pass that is itself recorded: the kernels have no second derivative."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "kernels of phonetrain have no second derivative (create_graph=True); put a forward hook on "
            "each linear layer and activation, and torch's own modules compute it"
        )


def first_line(error: Exception) -> str:
    """`TypeOfError: first line of what it says`."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
