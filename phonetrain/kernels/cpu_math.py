"""float32 arithmetic for the fused kernels, written value by value so that LLVM turns it into vectors.

numba has no bfloat16 and no float16 on CPUs: values are loaded and stored by address, as LLVM knows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

FLOAT, BFLOAT, HALF = 0, 1, 2
"""How activations lie in memory: float32, bfloat16, float16."""

RELU, LEAKY_RELU, GELU, SILU, MISH, SOFTPLUS, TANH, SIGMOID, IDENTITY = range(9)

# Multiply-add may be contracted; nothing else may change, since NaN and infinity must come through to the guard.
EXACT: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract"}}

_float, _word, _short, _half, _long = ir.FloatType(), ir.IntType(32), ir.IntType(16), ir.HalfType(), ir.IntType(64)


def _at(builder, args: Sequence, kind):
    """Pointer to element args[1] of the array at address args[0]; a GEP, which the vectoriser understands."""
    return builder.gep(builder.inttoptr(args[0], kind.as_pointer()), [args[1]])


@intrinsic
def _load_float(typingctx, address, index):
    def codegen(context, builder, signature, args):
        return builder.load(_at(builder, args, _float), align=4)

    return types.float32(types.int64, types.int64), codegen


@intrinsic
def _load_bfloat(typingctx, address, index):
    def codegen(context, builder, signature, args):
        upper = builder.zext(builder.load(_at(builder, args, _short), align=2), _word)
        return builder.bitcast(builder.shl(upper, _word(16)), _float)

    return types.float32(types.int64, types.int64), codegen


@intrinsic
def _load_half(typingctx, address, index):
    def codegen(context, builder, signature, args):
        return builder.fpext(builder.load(_at(builder, args, _half), align=2), _float)

    return types.float32(types.int64, types.int64), codegen


@intrinsic
def _store_float(typingctx, address, index, value):
    def codegen(context, builder, signature, args):
        builder.store(args[2], _at(builder, args, _float), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32), codegen


def compiles_for(feature: str) -> bool:
    """Whether numba compiles for processors with this feature, as LLVM calls it: this one, or what NUMBA_CPU_* say."""
    return f"+{feature}" in cpu_target.target_context.codegen().magic_tuple()[2].split(",")


class _BrainFloat(ir.HalfType):
    """LLVM's bfloat, which llvmlite has no name for."""

    intrinsic_name = "bf16"

    def __eq__(self, other: object) -> bool:  # llvmlite leaves out a cast between types that are equal
        return type(other) is type(self)

    __hash__ = ir.HalfType.__hash__

    def __str__(self) -> str:
        return "bfloat"


_BrainFloat._create_instance()


@intrinsic
def _store_bfloat(typingctx, address, index, value):
    """Rounded to the nearest, ties to even; a NaN stays one (rounding its bits could carry it over to zero).

    By the processor's own instruction, where it has one, which takes numbers below 2^-126 for 0. Elsewhere LLVM would
    call a function for it, value by value; LLVM 14 and 15 (numba before 0.62) end the process, as they cannot select
    the instruction.
    """

    def codegen(context, builder, signature, args):
        if binding.llvm_version_info >= (20,) and compiles_for("avx512bf16") and compiles_for("avx512vl"):
            brain = _BrainFloat()
            builder.store(builder.fptrunc(args[2], brain), _at(builder, args, brain), align=2)
            return context.get_dummy_value()
        bits = builder.bitcast(args[2], _word)
        odd = builder.and_(builder.lshr(bits, _word(16)), _word(1))
        rounded = builder.add(builder.add(bits, _word(0x7FFF)), odd)
        is_nan = builder.fcmp_unordered("uno", args[2], args[2])
        bits = builder.select(is_nan, builder.or_(bits, _word(0x400000)), rounded)
        builder.store(builder.trunc(builder.lshr(bits, _word(16)), _short), _at(builder, args, _short), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32), codegen


@intrinsic
def _store_half(typingctx, address, index, value):
    def codegen(context, builder, signature, args):
        builder.store(builder.fptrunc(args[2], _half), _at(builder, args, _half), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32), codegen


@intrinsic
def next_task(typingctx, address):
    """The number at `address`, int64, which one thread at a time then counts up."""

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", builder.inttoptr(args[0], _long.as_pointer()), _long(1), "seq_cst")

    return types.int64(types.int64), codegen


@intrinsic
def random_bits(typingctx, first, index, key, second_key):
    """uint32 hash of the number first + index (modulo 2^32) under two keys: `lowbias32` (Wellons 2018) with the
    second key between its two products, so that masks of two calls are not permutations of each other.

    The key is folded once more: without it kept counts of whole masks vary 0.6 to 0.8 times as much as a binomial's.
    The last step of `lowbias32` is left out: it would mend the low bits, and a threshold looks at the high ones. Both
    summands are cut to 32 bits before they are added: vectors of 64-bit numbers cost twice as much.
    """

    def codegen(context, builder, signature, args):
        def fold(bits, by):
            return builder.xor(bits, builder.lshr(bits, _word(by)))

        number = builder.add(builder.trunc(args[0], _word), builder.trunc(args[1], _word))
        bits = fold(builder.xor(number, args[2]), 16)
        bits = builder.add(fold(builder.mul(bits, _word(0x21F0AAAD)), 15), args[3])
        return builder.mul(fold(bits, 16), _word(0x735A2D97))

    return types.uint32(types.int64, types.int64, types.uint32, types.uint32), codegen


@intrinsic
def _power_of_two(typingctx, shifted):
    """2^n for the float32 n + 1.5 * 2^23, whose low bits are n."""

    def codegen(context, builder, signature, args):
        bits = builder.shl(builder.bitcast(args[0], _word), _word(23))
        return builder.bitcast(builder.add(bits, _word(0x3F800000)), _float)

    return types.float32(types.float32), codegen


@njit(**EXACT)
def load(kind, address, index):
    """Element `index` of the array of `kind` at `address`, as float32."""
    if kind == BFLOAT:
        return _load_bfloat(address, index)
    if kind == HALF:
        return _load_half(address, index)
    return _load_float(address, index)


@njit(**EXACT)
def store(kind, address, index, value):
    """Write float32 `value` to element `index` of the array of `kind` at `address`, rounded to the nearest."""
    if kind == BFLOAT:
        _store_bfloat(address, index, value)
    elif kind == HALF:
        _store_half(address, index, value)
    else:
        _store_float(address, index, value)


F = np.float32
ZERO, HALF_ONE, ONE, TWO = F(0.0), F(0.5), F(1.0), F(2.0)
LOG2_E, SHIFTER, LARGEST, SMALLEST = F(1.44269504088896341), F(12582912.0), F(127.0), F(-126.0)
E1, E2, E3, E4, E5 = F(0.693147), F(0.24022242), F(0.055507336), F(0.009671513), F(0.0013264727)


@njit(**EXACT)
def exp(x):
    """e^x = 2^t, t held between -126 and 127, to 2e-7 + 5e-8 |x| relative; NaN for NaN.

    2^t = 2^n 2^f with n whole and |f| <= 1/2; 2^f by the polynomial of degree 5 with the least largest relative
    error, 1.1e-7, among those that are 1 at 0.
    """
    t = x * LOG2_E
    t = LARGEST if t > LARGEST else t
    t = SMALLEST if t < SMALLEST else t
    shifted = t + SHIFTER
    f = t - (shifted - SHIFTER)
    return (((((E5 * f + E4) * f + E3) * f + E2) * f + E1) * f + ONE) * _power_of_two(shifted)


@njit(**EXACT)
def sigmoid(z):
    return ONE / (ONE + exp(-z))


L3, L5, L7, L9 = F(1 / 3), F(1 / 5), F(1 / 7), F(1 / 9)
L11, L13, L15 = F(1 / 11), F(1 / 13), F(1 / 15)


@njit(**EXACT)
def softplus(z):
    """log(1 + e^z) = max(z, 0) + log(1 + u), u = e^-|z|; the logarithm by 2 artanh(u / (2 + u))."""
    u = exp(-z if z > ZERO else z)
    w = u / (TWO + u)
    s = w * w
    series = ((((((L15 * s + L13) * s + L11) * s + L9) * s + L7) * s + L5) * s + L3) * s + ONE
    return (z if z > ZERO else ZERO) + TWO * w * series


P, A1, A2 = F(0.3275911), F(0.254829592), F(-0.284496736)
A3, A4, A5 = F(1.421413741), F(-1.453152027), F(1.061405429)
ROOT_HALF, ROOT_TWO_PI = F(0.70710678118654752), F(0.39894228040143268)


@njit(**EXACT)
def normal_below(z, bell):
    """Probability that N(0, 1) < z, to 1.5e-7 (Abramowitz and Stegun 7.1.26); bell: e^(-z^2 / 2)."""
    size = (z if z > ZERO else -z) * ROOT_HALF
    t = ONE / (ONE + P * size)
    tail = HALF_ONE * ((((A5 * t + A4) * t + A3) * t + A2) * t + A1) * t * bell
    return ONE - tail if z > ZERO else tail


TWENTY = F(20.0)


@njit(**EXACT)
def activation(which, z, leak):
    """The activation `which` at z and its derivative there; leak: leaky ReLU's slope below zero.

    What a kernel does not store of the two LLVM does not compute.
    """
    if which == RELU:
        return (ZERO, ZERO) if z <= ZERO else (z, ONE)
    if which == LEAKY_RELU:
        return (z * leak, leak) if z <= ZERO else (z, ONE)
    if which == GELU:
        bell = exp(-HALF_ONE * z * z)
        below = normal_below(z, bell)
        return z * below, below + z * bell * ROOT_TWO_PI
    if which == SILU:
        s = sigmoid(z)
        value = z * s
        return value, s + value * (ONE - s)
    if which == MISH:
        # tanh(softplus(z)) = n / (n + 2) with n = e^z (e^z + 2)
        e = exp(TWENTY if z > TWENTY else z)
        n = e * (e + TWO)
        gate = n / (n + TWO)
        return z * gate, gate + z * (ONE - gate * gate) * (e / (e + ONE))
    if which == SOFTPLUS:
        return softplus(z), sigmoid(z)
    if which == TANH:
        t = ONE - TWO / (exp(TWO * z) + ONE)
        return t, ONE - t * t
    if which == SIGMOID:
        s = sigmoid(z)
        return s, s * (ONE - s)
    return z, ONE
