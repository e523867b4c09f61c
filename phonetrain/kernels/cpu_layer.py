"""Hidden layers on a CPU: norm, activation and dropout as one operation, with masks that are hashed and not drawn.

Torch's own modules pass over the activations a dozen times a layer, and draw dropout's numbers on one thread. The
modules stay (parameters, buffers, names); here is only another way to compute what they define, equal to theirs within
rounding: results are rounded to the activations' dtype once and not after every step. cuda_layer.py does so on a GPU.
"""

from __future__ import annotations

import functools
import platform
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from .known import (
    IDENTITY,
    KERNEL_NUMBERS,
    KINDS,
    KeyedDropout,
    batch_norm_is_known,
    first_line,
    is_dropping,
    is_matrix_for_kernels,
    refuse_second_derivative,
    running_buffers,
)


def converted(values: Tensor, dtype: torch.dtype) -> Tensor:
    """values.to(dtype), faster than torch for windows of float16 on a CPU. values: (B, ...).

    The rows of `values` need not lie side by side, as those of a loader's windows do not. To bfloat16, numbers below
    2^-126 may become 0.
    """
    if values.dtype == dtype or dtype not in KINDS or values.ndim < 2 or values.requires_grad:
        return values.to(dtype)
    rows = values.flatten(1)
    if not runs_here(rows) or rows.stride(1) != 1:
        return values.to(dtype)
    work, output = Work(rows, None, None), torch.empty(values.shape, dtype=dtype, device=values.device)
    work.block[work.kernels.PITCH] = rows.stride(0)
    work.run(work.kernels.conversion(work.kind, KINDS[dtype]), input=rows, output=output)
    return output


@functools.cache
def why_not() -> str | None:
    """None where numba builds the kernels here, else the reason in one line.

    One small kernel is built, or read from numba's cache: what a broken compiler or a folder without a place for the
    cache raise is only noticed there. For an x86 without F16C LLVM would call a function that is not there to convert
    float16, and the process would end.
    """
    try:
        from . import cpu_kernels, cpu_math

        cpu_kernels.conversion(cpu_math.FLOAT, cpu_math.FLOAT)
    except Exception as error:  # a numba that does not know this Python, numpy or processor says so in many ways
        return first_line(error)
    if platform.machine().lower() in ("x86_64", "amd64") and not cpu_math.compiles_for("f16c"):
        return "this processor has no F16C, instructions that convert float16"
    return None


def runs_here(hidden: Tensor) -> bool:
    """Whether a tensor is one that the kernels take: (B, H) on the CPU, of a known dtype, and nobody is tracing."""
    return is_matrix_for_kernels(hidden, "cpu") and why_not() is None


def norm_is_known(hidden: Tensor, norm: nn.Module | None) -> bool:
    """Whether `hidden_layer` computes this norm."""
    if type(norm) is nn.BatchNorm1d:
        return batch_norm_is_known(hidden, norm)
    return norm is None or type(norm) is nn.RMSNorm or (type(norm) is nn.LayerNorm and norm.bias is not None)


def hidden_layer(
    hidden: Tensor, norm: nn.Module | None, activation: nn.Module | None, dropout: KeyedDropout | None
) -> Tensor:
    """dropout(activation(norm(hidden))), (B, H) -> (B, H) of the same dtype; running statistics move as torch's do."""
    hidden = hidden.contiguous()
    frozen = type(norm) is nn.BatchNorm1d and not norm.training
    work = Work(hidden, activation, dropout, learns=torch.is_grad_enabled() and not frozen)
    if norm is None:
        return ActivationOnly.apply(hidden, work)
    if type(norm) is nn.BatchNorm1d:
        if not norm.training:
            return batch_with_running_moments(hidden, norm, work)
        return BatchNormLayer.apply(hidden, norm.weight, norm.bias, norm, work)
    bias = norm.bias if type(norm) is nn.LayerNorm else None
    # torch reckons in float32 whatever the dtype, and takes that one's epsilon where none is given.
    epsilon = cast("float | None", norm.eps)
    work.settings[2] = epsilon if epsilon is not None else torch.finfo(torch.float32).eps
    return RowNormLayer.apply(hidden, norm.weight, bias, work)


class Work:
    """What the forward and backward kernels of one call share: sizes, activation, dropout's key and factor.

    hidden: (B, H). activation, dropout: modules, or None. The key is drawn here, from torch's default generator.
    learns: whether forward leaves slopes, (B, H), for a backward pass.
    """

    def __init__(
        self, hidden: Tensor, activation: nn.Module | None, dropout: KeyedDropout | None, *, learns: bool = False
    ) -> None:
        from . import cpu_kernels as kernels

        self.kernels = kernels
        self.rows, self.columns = hidden.shape
        rows = max(1, min(kernels.TASK_VALUES // self.columns, kernels.SUMMED_ROWS))
        self.tasks = -(-self.rows // rows)
        self.block = np.zeros(kernels.BLOCK_SIZE, np.int64)
        self.block[kernels.TASKS : kernels.COLUMNS + 1] = self.tasks, rows, self.rows, self.columns
        self.factor = 1.0
        drops = is_dropping(dropout)
        self.kind, self.learns = KINDS[hidden.dtype], learns
        number = IDENTITY if activation is None else KERNEL_NUMBERS[type(activation)]
        self.kernel_key = (self.kind, number, drops, learns)
        if dropout is not None and drops:
            key = int(dropout.next_key((), hidden.device))
            self.factor = 1 / (1 - dropout.p) if dropout.p < 1 else 0.0
            least = min(round(dropout.p * 2**32), 2**32 - 1)
            self.block[kernels.FIRST_ROW :] = dropout.rows_before, key & 0xFFFFFFFF, key >> 32, least
        self.settings = np.array([getattr(activation, "negative_slope", 0.0), self.factor, 0.0], np.float32)
        self.block[kernels.SETTINGS] = self.settings.ctypes.data

    def run(self, kernel: Any, **arrays: Tensor | np.ndarray | None) -> None:
        """Run a kernel. arrays: by their names in the block, in lower case; None where it takes none."""
        block = self.block.copy()  # one graph may be walked back by several threads at once
        for name, values in arrays.items():
            if values is None:
                continue
            address = values.data_ptr() if isinstance(values, Tensor) else values.ctypes.data
            block[getattr(self.kernels, name.upper())] = address
        self.kernels.run(kernel, block, torch.get_num_threads())

    def sums(self) -> np.ndarray:
        return np.empty((self.tasks, 2, self.columns), np.float32)

    def forward(self, kernel: Any, hidden: Tensor, **arrays: Tensor | np.ndarray) -> tuple[Tensor, Tensor | None]:
        """What a forward kernel makes of `hidden`: the output and, where somebody learns, the slopes, (B, H) each."""
        output, slopes = torch.empty_like(hidden), torch.empty_like(hidden) if self.learns else None
        self.run(kernel, input=hidden, output=output, slopes=slopes, **arrays)
        return output, slopes

    def scaled(
        self, hidden: Tensor, scale: Tensor | np.ndarray, shift: Tensor | np.ndarray
    ) -> tuple[Tensor, Tensor | None]:
        """`forward` of dropout(activation(hidden * scale + shift)); scale, shift: (H,) float32."""
        return self.forward(self.kernels.forward(*self.kernel_key, False, False), hidden, scale=scale, shift=shift)


class ActivationOnly(torch.autograd.Function):
    """dropout(activation(hidden)); either may be absent."""

    @staticmethod
    def forward(context: Any, hidden: Tensor, work: Work) -> Tensor:
        output, slopes = work.scaled(hidden, np.ones(work.columns, np.float32), np.zeros(work.columns, np.float32))
        context.save_for_backward(slopes)
        context.work = work
        return output

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivative()
        (slopes,), work, gradient = context.saved_tensors, context.work, gradient.contiguous()
        output, scale = torch.empty_like(gradient), np.full(work.columns, work.factor, np.float32)
        kernel = work.kernels.columns_backward(work.kind, False)
        work.run(kernel, output=output, slopes=slopes, gradient=gradient, scale=scale)
        return output, None


class BatchNormLayer(torch.autograd.Function):
    """dropout(activation(batch norm of hidden)) in training: moments of this batch (Ioffe and Szegedy 2015)."""

    @staticmethod
    def forward(context: Any, hidden: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm1d, work: Work) -> Tensor:
        kernels, rows = work.kernels, work.rows
        # About a row of their own, squares are summed without cancellation, whatever the mean is.
        mean, sums = hidden[0].detach().to(torch.float32, copy=True).numpy(), work.sums()
        work.run(kernels.column_sums(work.kind, False), input=hidden, centre=mean, sums=sums)
        deviation = np.empty_like(mean)
        variance = kernels.batch_moments(sums, mean, deviation, rows, norm.eps)
        running_mean, running_var, batches = running_buffers(norm)
        average, spread = running_mean.numpy(), running_var.numpy()
        with np.errstate(invalid="ignore", over="ignore"):  # numbers that went bad are the guard's business
            average += norm.momentum * (mean - average)
            spread += (norm.momentum * (variance * (rows / (rows - 1)) - spread)).astype(np.float32)
        batches.add_(1)
        scale = weight.detach().numpy() / deviation
        output, slopes = work.scaled(hidden, scale, bias.detach().numpy() - mean * scale)
        context.save_for_backward(hidden, slopes)
        context.work, context.vectors = work, (mean, deviation, scale)
        return output

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        (hidden, slopes), work, (mean, deviation, scale) = context.saved_tensors, context.work, context.vectors
        kernels, sums = work.kernels, work.sums()
        output = torch.empty_like(hidden)
        given: dict[str, Any] = {"input": hidden, "slopes": slopes, "gradient": gradient.contiguous(), "centre": mean}
        work.run(kernels.column_sums(work.kind, True), **given, sums=sums)
        by_shift, by_product = kernels.total(sums)
        first = (by_shift / work.rows).astype(np.float32)
        second = (by_product / work.rows / np.square(deviation, dtype=np.float64)).astype(np.float32)
        kernel, scale = kernels.columns_backward(work.kind, True), scale * np.float32(work.factor)
        work.run(kernel, **given, output=output, scale=scale, first=first, second=second)
        by_shift, by_product = by_shift * work.factor, by_product * work.factor
        by_weight = (by_product / deviation).astype(np.float32)
        return output, torch.from_numpy(by_weight), torch.from_numpy(by_shift.astype(np.float32)), None, None


def batch_with_running_moments(hidden: Tensor, norm: nn.BatchNorm1d, work: Work) -> Tensor:
    """Batch norm in evaluation, which is a scale and a shift, with the activation."""
    mean, variance, _ = running_buffers(norm)
    scale = (norm.weight * (variance + norm.eps).rsqrt()).detach()
    return work.scaled(hidden, scale, (norm.bias - mean * scale).detach())[0]


class RowNormLayer(torch.autograd.Function):
    """dropout(activation(layer norm of hidden)), or of its RMS norm where there is no bias."""

    @staticmethod
    def forward(context: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: Work) -> Tensor:
        moments = np.empty((work.rows, 2), np.float32)
        shift = np.zeros(work.columns, np.float32) if bias is None else bias.detach().numpy()
        kernel = work.kernels.forward(*work.kernel_key, True, bias is not None)
        output, slopes = work.forward(kernel, hidden, scale=weight.detach(), shift=shift, moments=moments)
        context.save_for_backward(hidden, weight, slopes)
        context.work, context.moments, context.centred = work, moments, bias is not None
        return output

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        (hidden, weight, slopes), work, moments = context.saved_tensors, context.work, context.moments
        gradient, output, sums = gradient.contiguous(), torch.empty_like(hidden), work.sums()
        work.run(
            work.kernels.rows_backward(work.kind, context.centred),
            input=hidden,
            output=output,
            slopes=slopes,
            gradient=gradient,
            scale=weight,
            moments=moments,
            sums=sums,
        )
        by_shift, by_weight = torch.from_numpy((work.kernels.total(sums) * work.factor).astype(np.float32))
        return output, by_weight, by_shift if context.centred else None, None
