"""float16 <-> float32 as LLVM vectors: by the processor's instructions, by integer arithmetic where it has none.

Without an instruction LLVM calls a library function that is not there, and the process ends. The magic numbers are
those of Fabian Giesen's half_to_float_fast4 and float_to_half_fast3_rtne; bits are those of F16C, NaNs included, and no
step takes or makes a subnormal float32, so that flushing those to zero changes nothing.
"""

import platform

from llvmlite import ir

HALF, FLOAT = ir.HalfType(), ir.FloatType()
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")


def has_instructions(context) -> bool:
    """Whether code for numba's target `context` may convert by instruction: all of ARM64 can, of x86 what has F16C."""
    if IS_X86:
        return "+f16c" in context.codegen().magic_tuple()[2].split(",")
    return platform.machine().lower() in ("aarch64", "arm64")


def widen(context, builder, halves):
    """<n x half> -> <n x float>, exact."""
    count = halves.type.count
    if has_instructions(context):
        return builder.fpext(halves, ir.VectorType(FLOAT, count))
    short, word, real = (ir.VectorType(kind, count) for kind in (ir.IntType(16), ir.IntType(32), FLOAT))
    bits = builder.zext(builder.bitcast(halves, short), word)
    sign = builder.shl(builder.and_(bits, _all(word, 0x8000)), _all(word, 16))
    shifted = builder.shl(builder.and_(bits, _all(word, 0x7FFF)), _all(word, 13))
    normal = builder.add(shifted, _all(word, 112 << 23))
    # The exponent of a subnormal is that of the smallest normal: take its hidden bit away again.
    hidden = _all(word, 113 << 23)
    small = builder.fsub(builder.bitcast(builder.add(shifted, hidden), real), builder.bitcast(hidden, real))
    special = builder.add(normal, _all(word, 112 << 23))
    quiet = builder.or_(special, _all(word, 1 << 22))
    above = builder.icmp_unsigned(">", shifted, _all(word, 0x7C00 << 13))
    special = builder.select(above, quiet, special)
    found = builder.select(builder.icmp_unsigned("<", shifted, _all(word, 0x7C00 << 13)), normal, special)
    below = builder.icmp_unsigned("<", shifted, _all(word, 0x0400 << 13))
    found = builder.select(below, builder.bitcast(small, word), found)
    return builder.bitcast(builder.or_(found, sign), real)


def narrow(context, builder, floats):
    """<n x float> -> <n x half>, rounded to nearest even."""
    count = floats.type.count
    if has_instructions(context):
        return builder.fptrunc(floats, ir.VectorType(HALF, count))
    short, word, real = (ir.VectorType(kind, count) for kind in (ir.IntType(16), ir.IntType(32), FLOAT))
    bits = builder.bitcast(floats, word)
    sign = builder.and_(builder.lshr(bits, _all(word, 16)), _all(word, 0x8000))
    magnitude = builder.and_(bits, _all(word, 0x7FFFFFFF))
    cut = builder.lshr(magnitude, _all(word, 13))
    odd = builder.and_(cut, _all(word, 1))
    rounded = builder.add(builder.add(magnitude, _all(word, 0xC8000FFF)), odd)
    normal = builder.lshr(rounded, _all(word, 13))
    # Adding 0.5 aligns what becomes subnormal: the adder rounds at the last bit of the result.
    half = _all(word, 126 << 23)
    small = builder.bitcast(builder.fadd(builder.bitcast(magnitude, real), builder.bitcast(half, real)), word)
    small = builder.sub(small, half)
    nan = builder.or_(builder.and_(cut, _all(word, 0x3FF)), _all(word, 0x7E00))
    is_nan = builder.icmp_unsigned(">", magnitude, _all(word, 0x7F800000))
    special = builder.select(is_nan, nan, _all(word, 0x7C00))
    found = builder.select(builder.icmp_unsigned("<", magnitude, _all(word, 113 << 23)), small, normal)
    found = builder.select(builder.icmp_unsigned("<", magnitude, _all(word, 143 << 23)), found, special)
    return builder.bitcast(builder.trunc(builder.or_(found, sign), short), ir.VectorType(HALF, count))


def _all(kind: ir.VectorType, value: int) -> ir.Constant:
    return ir.Constant(kind, [ir.Constant(kind.element, value)] * kind.count)
