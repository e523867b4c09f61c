"""Hidden layers on a GPU: batch norm, activation and dropout by triton_layer.py, where Triton can make kernels.

What cpu_layer.py is on a CPU. torch's modules read and write the activations two dozen times a layer; these do so eight
times and keep nothing for the backward pass but the layer's input.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .known import (
    IDENTITY,
    KERNEL_NUMBERS,
    KeyedDropout,
    batch_norm_is_known,
    first_line,
    is_dropping,
    is_matrix_for_kernels,
    refuse_second_derivative,
    running_buffers,
)


def runs_here(hidden: Tensor) -> bool:
    """Whether a tensor is one that the kernels take: (B, H) on a GPU, of a known dtype, and nobody is tracing."""
    return is_matrix_for_kernels(hidden, "cuda") and why_not(hidden.device) is None


def norm_is_known(hidden: Tensor, norm: nn.Module | None) -> bool:
    """Whether `hidden_layer` computes this norm: batch norm or none."""
    return norm is None or (type(norm) is nn.BatchNorm1d and batch_norm_is_known(hidden, norm))


@functools.cache
def why_not(device: torch.device) -> str | None:
    """None where Triton makes kernels for this device, else the reason in one line.

    Triton comes with torch's CUDA builds for Linux; it needs a C compiler and a device that it knows, which is only
    noticed at the first kernel.
    """
    try:
        from . import triton_layer  # noqa: F401

        values = torch.zeros((8, 8), device=device)
        norm, activation = nn.BatchNorm1d(8).to(device), nn.ReLU()
        hidden_layer(values, norm, activation, None)
    except torch.OutOfMemoryError:  # says nothing about Triton
        raise
    except Exception as error:  # what a missing compiler raises differs by system and version
        return first_line(error)
    return None


def hidden_layer(
    hidden: Tensor, norm: nn.BatchNorm1d | None, activation: nn.Module | None, dropout: KeyedDropout | None
) -> Tensor:
    """dropout(activation(norm(hidden))), (B, H) -> (B, H) of the same dtype; running statistics move as torch's do."""
    work = Work(hidden, norm, activation, dropout)
    weight, bias = (None, None) if norm is None else (norm.weight, norm.bias)
    return Layer.apply(hidden.contiguous(), weight, bias, norm, work)


def padded(windows: Tensor, padding: int, dtype: torch.dtype) -> Tensor:
    """Windows (B, W, D) as (B, W * D + padding) with zeros behind, in `dtype`; under autocast in its dtype where one
    kernel does it all, else in their own."""
    flat = windows.flatten(1)
    if not runs_here(flat) or flat.requires_grad or flat.stride(1) != 1:
        if flat.dtype != dtype and not torch.is_autocast_enabled(flat.device.type):
            flat = flat.to(dtype)
        return F.pad(flat, (0, padding)) if padding else flat
    from . import triton_step as kernels

    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else dtype
    if not padding and flat.dtype == dtype:
        return flat
    (rows, columns), width = flat.shape, flat.shape[1] + padding
    output = torch.empty((rows, width), dtype=dtype, device=flat.device)
    with torch.cuda.device_of(flat):
        kernels.padded_copy[rows, -(-width // kernels.COPIED)](
            flat, output, columns, flat.stride(0), width, ALIGNED=aligned(width), BLOCK=kernels.COPIED
        )
    return output


def aligned(columns: int) -> int:
    """A divisor of a row's length that the kernels may assume."""
    return 8 if columns % 8 == 0 else 1


class Work:
    """What the kernels of one call share: the grid, the activation, dropout's key and factor."""

    def __init__(
        self,
        hidden: Tensor,
        norm: nn.BatchNorm1d | None,
        activation: nn.Module | None,
        dropout: KeyedDropout | None,
    ) -> None:
        from . import triton_layer as kernels

        self.kernels = kernels
        rows, columns = hidden.shape
        self.size: tuple[int, ...]
        self.grid: tuple[int, ...]
        self.norm = kernels.NO_NORM if norm is None else kernels.BATCH if norm.training else kernels.RUNNING
        self.whole = self.norm == kernels.BATCH and rows <= kernels.WHOLE_ROWS
        self.leak = float(getattr(activation, "negative_slope", 0.0))
        self.key: Any = None
        self.factor, self.least = 1.0, 0
        if dropout is not None and is_dropping(dropout):
            self.key = key = dropout.next_key((2,), hidden.device)
            if dropout.rows_before:
                self.key = torch.stack((key[0], key[1] + dropout.rows_before))
            self.factor = 1 / (1 - dropout.p) if dropout.p < 1 else 0.0
            self.least = min(round(dropout.p * 2**32), 2**32 - 1)
        kernel_key: dict[str, Any] = {
            "WHICH": IDENTITY if activation is None else KERNEL_NUMBERS[type(activation)],
            "DROPS": is_dropping(dropout),
            "ALIGNED": aligned(columns),
        }
        if self.whole:
            self.size, self.grid = (rows, columns), (-(-columns // kernels.WHOLE_C),)
            self.kernel_key = kernel_key | {
                "ROWS": max(16, 1 << (rows - 1).bit_length()),
                "BLOCK_C": kernels.WHOLE_C,
                "num_warps": kernels.WHOLE_WARPS,
            }
            return
        tiles = max(2, -(-rows // (kernels.MOST_CHUNKS * kernels.BLOCK_R)))
        chunk_rows = tiles * kernels.BLOCK_R
        self.chunks, self.size = -(-rows // chunk_rows), (rows, columns, chunk_rows)
        self.grid = -(-columns // kernels.BLOCK_C), self.chunks
        self.shape = {
            "ALIGNED": aligned(columns),
            "BLOCK_R": kernels.BLOCK_R,
            "BLOCK_C": kernels.BLOCK_C,
            "num_warps": kernels.WARPS,
        }
        self.kernel_key = kernel_key | self.shape

    def partial(self, hidden: Tensor) -> Tensor:
        return torch.empty((self.chunks, 2, hidden.shape[1]), dtype=torch.float32, device=hidden.device)


class Layer(torch.autograd.Function):
    """dropout(activation(norm(hidden))): of batch norm in training, of one with running moments, or of none."""

    @staticmethod
    def forward(
        context: Any,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        norm: nn.BatchNorm1d | None,
        work: Work,
    ) -> Tensor:
        kernels, output, moments = work.kernels, torch.empty_like(hidden), None
        buffers: tuple[Tensor | None, ...] = (None, None, None)
        epsilon = momentum = unbiased = 0.0
        if norm is not None:
            buffers, epsilon = running_buffers(norm), norm.eps
        if norm is not None and work.norm == kernels.BATCH:
            moments = torch.empty((2, hidden.shape[1]), dtype=torch.float32, device=hidden.device)
            momentum, unbiased = cast("float", norm.momentum), len(hidden) / (len(hidden) - 1)
        numbers = epsilon, momentum, unbiased, work.leak, work.factor, work.least
        with torch.cuda.device_of(hidden):
            if work.whole:
                kernels.whole_forward[work.grid](
                    hidden, output, weight, bias, *buffers, moments, work.key, *work.size, *numbers, **work.kernel_key
                )
            else:
                partial = None
                if moments is not None:
                    partial = work.partial(hidden)
                    kernels.column_sums[work.grid](hidden, partial, *work.size, **work.shape)
                kernels.columns_forward[work.grid](
                    hidden,
                    output,
                    partial,
                    weight,
                    bias,
                    *buffers,
                    moments,
                    work.key,
                    *work.size,
                    work.chunks,
                    *numbers,
                    NORM=work.norm,
                    CHUNKS=kernels.MOST_CHUNKS,
                    **work.kernel_key,
                )
        context.save_for_backward(hidden, weight, bias, moments)
        context.work = work
        return output

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        (hidden, weight, bias, moments), work = context.saved_tensors, context.work
        kernels, gradient, output = work.kernels, gradient.contiguous(), torch.empty_like(hidden)
        partial = by_weight = by_bias = None
        if moments is not None:
            by_weight, by_bias = torch.empty_like(weight), torch.empty_like(bias)
        numbers = work.leak, work.factor, work.least
        with torch.cuda.device_of(hidden):
            if work.whole:
                kernels.whole_backward[work.grid](
                    hidden,
                    gradient,
                    output,
                    moments,
                    weight,
                    bias,
                    by_weight,
                    by_bias,
                    work.key,
                    *work.size,
                    *numbers,
                    **work.kernel_key,
                )
            else:
                if moments is not None:
                    partial = work.partial(hidden)
                    kernels.column_gradients[work.grid](
                        hidden,
                        gradient,
                        moments,
                        weight,
                        bias,
                        partial,
                        work.key,
                        *work.size,
                        *numbers,
                        **work.kernel_key,
                    )
                kernels.columns_backward[work.grid](
                    hidden,
                    gradient,
                    output,
                    moments,
                    weight,
                    bias,
                    partial,
                    by_weight,
                    by_bias,
                    work.key,
                    *work.size,
                    work.chunks,
                    *numbers,
                    NORM=work.norm,
                    CHUNKS=kernels.MOST_CHUNKS,
                    **work.kernel_key,
                )
        return output, by_weight, by_bias, None, None
