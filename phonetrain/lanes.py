"""float32 arithmetic for the fused kernels, written value by value so that LLVM turns it into vectors.

numba has no bfloat16 and no float16 on CPUs: values are loaded and stored by address, as LLVM knows them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

FLOAT, BFLOAT, HALF = 0, 1, 2
"""How activations lie in memory: float32, bfloat16, float16."""
ITEM_BYTES = (4, 2, 2)

RELU, LEAKY_RELU, GELU, SILU, MISH, SOFTPLUS, TANH, SIGMOID, IDENTITY = range(9)

# Multiply-add may be contracted; nothing else may change, since NaN and infinity must come through to the guard.
EXACT = {"error_model": "numpy", "fastmath": {"contract"}}

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


@intrinsic
def _store_bfloat(typingctx, address, index, value):
    """Rounded to the nearest, ties to even; a NaN stays one (rounding its bits could carry it over to zero)."""

    def codegen(context, builder, signature, args):
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
    """uint32 hash of the place first + index (modulo 2^32) under two keys: `lowbias32` (Wellons 2018) with the
    second key between its two products, so that masks of two calls are not permutations of each other.

    Both parts of the place are cut to 32 bits before they are added: vectors of 64-bit places cost twice as much.
    """

    def codegen(context, builder, signature, args):
        def fold(bits, by):
            return builder.xor(bits, builder.lshr(bits, _word(by)))

        place = builder.add(builder.trunc(args[0], _word), builder.trunc(args[1], _word))
        bits = fold(builder.xor(place, args[2]), 16)
        bits = builder.add(fold(builder.mul(bits, _word(0x21F0AAAD)), 15), args[3])
        return fold(builder.mul(bits, _word(0x735A2D97)), 15)

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
LOG2_E, LN2_HIGH, LN2_LOW, SHIFTER = F(1.44269504088896341), F(0.693359375), F(-2.12194440e-4), F(12582912.0)
LARGEST, SMALLEST = F(88.0), F(-87.0)
E2, E3, E4 = F(5.0000001201e-1), F(1.6666665459e-1), F(4.1665795894e-2)
E5, E6, E7 = F(8.3334519073e-3), F(1.3981999507e-3), F(1.9875691500e-4)


@njit(**EXACT)
def exp(x):
    """e^x to 2e-7 relative for -87 <= x <= 88, held at both ends, NaN for NaN (Cephes' expf)."""
    x = LARGEST if x > LARGEST else x
    x = SMALLEST if x < SMALLEST else x
    shifted = x * LOG2_E + SHIFTER
    whole = shifted - SHIFTER
    rest = x - whole * LN2_HIGH - whole * LN2_LOW
    tail = ((((E7 * rest + E6) * rest + E5) * rest + E4) * rest + E3) * rest + E2
    return (tail * rest * rest + rest + ONE) * _power_of_two(shifted)


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


@njit(**EXACT)
def activate(which, z, slope):
    """The activation `which` at z; slope: of leaky ReLU below zero."""
    if which == RELU:
        return ZERO if z <= ZERO else z
    if which == LEAKY_RELU:
        return z * slope if z <= ZERO else z
    if which == GELU:
        return z * normal_below(z, exp(-HALF_ONE * z * z))
    if which == SILU:
        return z * sigmoid(z)
    if which == MISH:
        return z * mish_gate(z)
    if which == SOFTPLUS:
        return softplus(z)
    if which == TANH:
        return ONE - TWO / (exp(TWO * z) + ONE)
    if which == SIGMOID:
        return sigmoid(z)
    return z


TWENTY = F(20.0)


@njit(**EXACT)
def mish_gate(z):
    """tanh(softplus(z)) = n / (n + 2) with n = e^z (e^z + 2)."""
    e = exp(TWENTY if z > TWENTY else z)
    n = e * (e + TWO)
    return n / (n + TWO)


@njit(**EXACT)
def slope_of(which, z, slope):
    """The derivative of `activate` at z."""
    if which == RELU:
        return ZERO if z <= ZERO else ONE
    if which == LEAKY_RELU:
        return slope if z <= ZERO else ONE
    if which == GELU:
        bell = exp(-HALF_ONE * z * z)
        return normal_below(z, bell) + z * bell * ROOT_TWO_PI
    if which == SILU:
        s = sigmoid(z)
        return s + z * s * (ONE - s)
    if which == MISH:
        gate = mish_gate(z)
        return gate + z * (ONE - gate * gate) * sigmoid(z)
    if which == SOFTPLUS:
        return sigmoid(z)
    if which == TANH:
        t = ONE - TWO / (exp(TWO * z) + ONE)
        return ONE - t * t
    if which == SIGMOID:
        s = sigmoid(z)
        return s * (ONE - s)
    return ONE
