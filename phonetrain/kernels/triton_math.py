"""What Triton's kernels of a hidden layer do with single values, in float32: activation, slope, dropout's hash."""

from __future__ import annotations

import triton
import triton.language as tl

# Numbered as in known.ACTIVATIONS.
RELU, LEAKY_RELU, GELU, SILU = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
MISH, SOFTPLUS, TANH, SIGMOID = tl.constexpr(4), tl.constexpr(5), tl.constexpr(6), tl.constexpr(7)


@triton.jit
def _softplus(z):
    """log(1 + e^z), linear above 20 as torch's; for small e^z by its series, which 1 + e^z would round away."""
    e = tl.exp(tl.minimum(z, 20.0))
    return tl.where(z > 20.0, z, tl.where(e < 1e-3, e * (1.0 - 0.5 * e), tl.log(1.0 + e)))


@triton.jit
def activated(z, leak, WHICH: tl.constexpr):
    if WHICH == RELU:
        return tl.where(z <= 0.0, 0.0, z)
    if WHICH == LEAKY_RELU:
        return tl.where(z <= 0.0, z * leak, z)
    if WHICH == GELU:
        return 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    if WHICH == SILU:
        return z * tl.sigmoid(z)
    if WHICH == MISH:
        return z * (2.0 * tl.sigmoid(2.0 * _softplus(z)) - 1.0)
    if WHICH == SOFTPLUS:
        return _softplus(z)
    if WHICH == TANH:
        return 2.0 * tl.sigmoid(2.0 * z) - 1.0
    if WHICH == SIGMOID:
        return tl.sigmoid(z)
    return z


@triton.jit
def slope(z, leak, WHICH: tl.constexpr):
    """The activation's derivative at z."""
    if WHICH == RELU:
        return tl.where(z <= 0.0, 0.0, z * 0.0 + 1.0)
    if WHICH == LEAKY_RELU:
        return tl.where(z <= 0.0, leak, z * 0.0 + 1.0)
    if WHICH == GELU:
        return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476)) + z * tl.exp(-0.5 * z * z) * 0.3989422804014327
    if WHICH == SILU:
        s = tl.sigmoid(z)
        return s * (1.0 + z * (1.0 - s))
    if WHICH == MISH:
        t = 2.0 * tl.sigmoid(2.0 * _softplus(z)) - 1.0
        return t + z * (1.0 - t * t) * tl.sigmoid(z)
    if WHICH == SOFTPLUS:
        return tl.where(z > 20.0, z * 0.0 + 1.0, tl.sigmoid(z))
    if WHICH == TANH:
        t = 2.0 * tl.sigmoid(2.0 * z) - 1.0
        return 1.0 - t * t
    if WHICH == SIGMOID:
        s = tl.sigmoid(z)
        return s * (1.0 - s)
    return z * 0.0 + 1.0


@triton.jit
def kept(row, before, column, columns, word, least):
    """Which values dropout keeps, (R, C) bool: those whose hash, `cpu_math.random_bits`, is at least `least`.

    word: both keys, the first in the low half. before: rows of the batch before row 0, plus a number drawn with it.
    """
    number = (row.to(tl.uint32) + before.to(tl.uint32))[:, None] * columns.to(tl.uint32) + column.to(tl.uint32)[None, :]
    bits = number ^ (word & 0xFFFFFFFF).to(tl.uint32)
    bits = (bits ^ (bits >> 16)) * 0x21F0AAAD
    bits = (bits ^ (bits >> 15)) + (word >> 32).to(tl.uint32)
    bits = (bits ^ (bits >> 16)) * 0x735A2D97
    return bits >= least.to(tl.uint32)
