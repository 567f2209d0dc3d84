"""Sixteen-lane vector values inside numba: explicit LLVM vector types, through `@intrinsic`.

A value of type `f32x16`, `i32x16`, `mask16` or `u8x16` lives in registers (one AVX-512 register, two AVX2, four
SSE2 ones) and is used like a number: `+ - * / & | ^ << >>` and comparisons work lane by lane, and a plain number
on either side is broadcast.  Every operation is the IEEE one: nothing is fused, reordered or approximated, so a
lane computes exactly what the same C expression would on a baseline x86-64.

Why not plain loops: numba cannot prove that arrays do not overlap, so accumulators go through memory, and LLVM
may not reorder float sums to vectorize them.  With one block a lane, every lane keeps its own order.

`>>` is logical (zero-filling).  `min_`, `max_` and `clamp` follow C's `a < b ? a : b`, so a NaN on the left
yields the right operand.  `memory` loads and stores them.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin

from llmconv.quant.kernels.vectors.codegen import (
    ELEMENT,
    FLOAT,
    I1,
    I8,
    I16,
    I32,
    LANES,
    VecType,
    call,
    const,
    f32x16,
    i32x16,
    lift,
    mask16,
    narrow_half,
    u8x16,
    vec,
    widen_half,
)

# ---- operators


def _common(args):
    """The vector type two operands meet in, or None when they don't."""
    vectors = [a for a in args if isinstance(a, VecType)]
    if len(args) != 2 or not vectors or len(set(vectors)) != 1:
        return None
    if not all(isinstance(a, (VecType, types.Number, types.Boolean)) for a in args):
        return None
    return vectors[0]


def _operator(op, kinds, generate, result=None):
    """Teach numba `op` on vectors of `kinds`; `generate(builder, kind, x, y)` emits it."""

    @infer_global(op)
    class _Template(AbstractTemplate):
        def generic(self, args, kws):
            vector = _common(args)
            if vector is not None and vector.kind in kinds:
                return signature(result or vector, *(types.unliteral(a) for a in args))

    def lower(context, builder, sig, args):
        kind = _common(sig.args).kind
        return generate(
            builder, kind, *(lift(context, builder, kind, t, a) for t, a in zip(sig.args, args, strict=True))
        )

    for pair in ((VecType, VecType), (VecType, types.Number), (types.Number, VecType)):
        lower_builtin(op, *pair)(lower)


def _arithmetic(on_float, on_int):
    return lambda builder, kind, x, y: getattr(builder, on_float if kind == "f32" else on_int)(x, y)


def _comparison(sign):
    def generate(builder, kind, x, y):
        if kind != "f32":
            return builder.icmp_signed(sign, x, y)
        return (builder.fcmp_unordered if sign == "!=" else builder.fcmp_ordered)(sign, x, y)

    return generate


_operator(operator.add, ("f32", "i32"), _arithmetic("fadd", "add"))
_operator(operator.sub, ("f32", "i32"), _arithmetic("fsub", "sub"))
_operator(operator.mul, ("f32", "i32"), _arithmetic("fmul", "mul"))
_operator(operator.truediv, ("f32",), _arithmetic("fdiv", "sdiv"))
_operator(operator.and_, ("i32", "mask", "u8"), _arithmetic("", "and_"))
_operator(operator.or_, ("i32", "mask", "u8"), _arithmetic("", "or_"))
_operator(operator.xor, ("i32", "mask", "u8"), _arithmetic("", "xor"))
_operator(operator.lshift, ("i32",), _arithmetic("", "shl"))
_operator(operator.rshift, ("i32",), _arithmetic("", "lshr"))
for _op, _sign in (
    (operator.lt, "<"),
    (operator.gt, ">"),
    (operator.le, "<="),
    (operator.ge, ">="),
    (operator.eq, "=="),
    (operator.ne, "!="),
):
    _operator(_op, ("f32", "i32"), _comparison(_sign), mask16)


# ---- values


@intrinsic
def splat(typingctx, number):
    """A number in every lane: float -> f32x16, integer -> i32x16."""
    number = types.unliteral(number)
    result = f32x16 if isinstance(number, types.Float) else i32x16

    def generate(context, builder, sig, args):
        return lift(context, builder, result.kind, sig.args[0], args[0])

    return result(number), generate


def _ternary_types(*args):
    """The vector type of the vectors among `args`, which may also be numbers."""
    return next(a for a in args if isinstance(a, VecType))


@intrinsic
def select(typingctx, mask, yes, no):
    """Lane by lane: `yes` where the mask is set, else `no` (either may be a plain number)."""
    result = _ternary_types(yes, no)
    yes, no = types.unliteral(yes), types.unliteral(no)

    def generate(context, builder, sig, args):
        x, y = (lift(context, builder, result.kind, t, a) for t, a in zip(sig.args[1:], args[1:], strict=True))
        return builder.select(args[0], x, y)

    return result(mask, yes, no), generate


def _choose(sign):
    """C's `x < y ? x : y` and `x > y ? x : y`."""

    def generate(builder, kind, x, y):
        return builder.select(_comparison(sign)(builder, kind, x, y), x, y)

    @intrinsic
    def choose(typingctx, x, y):
        result = _ternary_types(x, y)

        def emit(context, builder, sig, args):
            lifted = (lift(context, builder, result.kind, t, a) for t, a in zip(sig.args, args, strict=True))
            return generate(builder, result.kind, *lifted)

        return result(types.unliteral(x), types.unliteral(y)), emit

    return choose


min_ = _choose("<")
max_ = _choose(">")


@intrinsic
def clamp(typingctx, value, low, high):
    """`max_(value, low)`, then `min_(that, high)`; a NaN becomes `low`."""

    def generate(context, builder, sig, args):
        kind = sig.args[0].kind
        x, lo, hi = (lift(context, builder, kind, t, a) for t, a in zip(sig.args, args, strict=True))
        x = builder.select(_comparison(">")(builder, kind, x, lo), x, lo)
        return builder.select(_comparison("<")(builder, kind, x, hi), x, hi)

    return value(value, types.unliteral(low), types.unliteral(high)), generate


def _float_function(name, doc):
    @intrinsic
    def function(typingctx, x):
        return f32x16(x), lambda context, builder, sig, args: call(
            builder, f"llvm.{name}.v{LANES}f32", args[0].type, args
        )

    function.__doc__ = doc
    return function


rint = _float_function("rint", "To the nearest integer, ties to even.")
round_ = _float_function("round", "To the nearest integer, ties away from zero (C's roundf).")
floor = _float_function("floor", "To the integer below.")
sqrt = _float_function("sqrt", "Correctly rounded square root.")
fabs = _float_function("fabs", "Absolute value; clears the sign bit.")


@intrinsic
def neg(typingctx, x):
    """Flip the sign of every float32 lane (also of zero)."""
    return x(x), lambda context, builder, sig, args: builder.fneg(args[0])


@intrinsic
def not_(typingctx, mask):
    return mask(mask), lambda context, builder, sig, args: builder.not_(args[0])


@intrinsic
def to_int(typingctx, x):
    """f32x16 -> i32x16, truncating; lanes outside int32 are unspecified."""
    return i32x16(x), lambda context, builder, sig, args: builder.fptosi(args[0], vec(I32))


@intrinsic
def to_float(typingctx, x):
    """i32x16 -> f32x16, nearest."""
    return f32x16(x), lambda context, builder, sig, args: builder.sitofp(args[0], vec(FLOAT))


@intrinsic
def to_u8(typingctx, x):
    """The low byte of every i32 lane."""
    return u8x16(x), lambda context, builder, sig, args: builder.trunc(args[0], vec(I8))


@intrinsic
def bits(typingctx, x):
    """The bit pattern of a float32, vector or scalar, as int32."""
    if isinstance(x, VecType):
        return i32x16(x), lambda context, builder, sig, args: builder.bitcast(args[0], vec(I32))
    return types.int32(types.float32), lambda context, builder, sig, args: builder.bitcast(args[0], I32)


@intrinsic
def from_bits(typingctx, x):
    """The float32, vector or scalar, with that int32 bit pattern."""
    if isinstance(x, VecType):
        return f32x16(x), lambda context, builder, sig, args: builder.bitcast(args[0], vec(FLOAT))
    return types.float32(types.int32), lambda context, builder, sig, args: builder.bitcast(args[0], FLOAT)


@intrinsic
def nearest_int(typingctx, x):
    """ggml's `nearest_int`, f32x16 -> i32x16: rint for |x| < 2^22, and the reference's wrapped result beyond."""

    def generate(context, builder, sig, args):
        magic = builder.fadd(args[0], const(vec(FLOAT), 12582912.0))
        low = builder.and_(builder.bitcast(magic, vec(I32)), const(vec(I32), 0x007FFFFF))
        return builder.sub(low, const(vec(I32), 0x00400000))

    return i32x16(x), generate


# ---- across lanes


@intrinsic
def any_lane(typingctx, mask):
    """True when at least one lane of the mask is set."""

    def generate(context, builder, sig, args):
        return builder.icmp_unsigned("!=", builder.bitcast(args[0], I16), ir.Constant(I16, 0))

    return types.boolean(mask), generate


@intrinsic
def halves(typingctx, low, high):
    """One number in the lower eight lanes, another in the upper ones: integers -> i32x16, floats -> f32x16."""
    result = f32x16 if isinstance(low, types.Float) else i32x16

    def generate(context, builder, sig, args):
        pair = (lift(context, builder, result.kind, t, a) for t, a in zip(sig.args, args, strict=True))
        return builder.shuffle_vector(*pair, ir.Constant(vec(I32), [*range(8), *range(LANES + 8, 2 * LANES)]))

    return result(types.unliteral(low), types.unliteral(high)), generate


@intrinsic
def swap_halves(typingctx, x):
    """The upper eight lanes, then the lower ones."""

    def generate(context, builder, sig, args):
        return builder.shuffle_vector(args[0], args[0], ir.Constant(vec(I32), [*range(8, LANES), *range(8)]))

    return x(x), generate


@intrinsic
def mask_bits(typingctx, mask):
    """The mask as an integer: bit i is lane i."""

    def generate(context, builder, sig, args):
        return builder.zext(builder.bitcast(args[0], I16), I32)

    return types.uint32(mask), generate


@intrinsic
def trailing_zeros(typingctx, number):
    """How many zero bits a uint32 ends in (32 for zero)."""
    return types.uint32(types.uint32), lambda context, builder, sig, args: builder.cttz(args[0], ir.Constant(I1, 0))


@intrinsic
def trailing_zeros64(typingctx, number):
    """How many zero bits a uint64 ends in (64 for zero)."""
    return types.uint64(types.uint64), lambda context, builder, sig, args: builder.cttz(args[0], ir.Constant(I1, 0))


@intrinsic
def count_ones(typingctx, number):
    """How many bits of a uint32 are set."""
    return types.uint32(types.uint32), lambda context, builder, sig, args: builder.ctpop(args[0])


def _reduction(name, vector, scalar, doc):
    @intrinsic
    def reduce(typingctx, x):
        suffix = f"v{LANES}{vector.kind}"
        return scalar(x), lambda context, builder, sig, args: call(
            builder, f"llvm.vector.reduce.{name}.{suffix}", ELEMENT[vector.kind], args
        )

    reduce.__doc__ = doc
    return reduce


reduce_umax = _reduction("umax", i32x16, types.int32, "The greatest lane of an i32x16, compared as unsigned.")
reduce_add = _reduction("add", i32x16, types.int32, "The sum of the lanes of an i32x16.")


def _float_reduction(sign, doc):
    @intrinsic
    def reduce(typingctx, x):
        def generate(context, builder, sig, args):
            found = args[0]
            for half in (8, 4, 2, 1):  # LLVM's own reductions look for NaN at every step
                low, high = (
                    builder.shuffle_vector(
                        found, found, ir.Constant(ir.VectorType(I32, half), list(range(at, at + half)))
                    )
                    for at in (0, half)
                )
                found = builder.select(builder.fcmp_ordered(sign, low, high), low, high)
            return builder.extract_element(found, ir.Constant(I32, 0))

        return types.float32(x), generate

    reduce.__doc__ = doc
    return reduce


reduce_fmax = _float_reduction(">", "The greatest lane of an f32x16 without NaN.")
reduce_fmin = _float_reduction("<", "The least lane of an f32x16 without NaN.")


# ---- float16


@intrinsic
def f16_bits(typingctx, x):
    """float32 -> the bits of the nearest float16, ties to even: scalar -> uint16, f32x16 -> i32x16."""
    if isinstance(x, VecType):
        return i32x16(x), lambda context, builder, sig, args: builder.zext(
            narrow_half(context, builder, args[0]), vec(I32)
        )
    return types.uint16(types.float32), lambda context, builder, sig, args: narrow_half(context, builder, args[0])


@intrinsic
def f16_value(typingctx, x):
    """The bits of a float16 -> float32: uint16 -> scalar, i32x16 -> f32x16."""
    if isinstance(x, VecType):
        return f32x16(x), lambda context, builder, sig, args: widen_half(
            context, builder, builder.trunc(args[0], vec(I16))
        )
    return types.float32(types.uint16), lambda context, builder, sig, args: widen_half(context, builder, args[0])
