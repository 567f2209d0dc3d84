"""Sums of products over the lanes (see `simd`), where no order is prescribed: what one token is multiplied with.

A multiplication and an addition are one instruction where the processor has such; bytes are multiplied as in
`byte_lanes`.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from llmconv.quant.kernels.vectors.codegen import (
    FLOAT,
    HALF,
    I8,
    I16,
    I32,
    LANES,
    broadcast,
    call,
    const,
    converts_half,
    f32x16,
    i32x16,
    pointer,
    vec,
    widen_half,
)


@intrinsic
def fuse(typingctx, x, y, total):
    """x * y + total, rounded once or twice."""
    name = f"llvm.fmuladd.v{LANES}f32"
    return f32x16(f32x16, f32x16, f32x16), lambda context, builder, sig, args: call(builder, name, vec(FLOAT), args)


@intrinsic
def sum_lanes(typingctx, x):
    """The sum of the lanes of an f32x16, by halves."""

    def generate(context, builder, sig, args):
        (value,), count = args, LANES
        while count > 1:
            count //= 2
            parts = [
                builder.shuffle_vector(
                    value, value, ir.Constant(ir.VectorType(I32, count), list(range(at, at + count)))
                )
                for at in (0, count)
            ]
            value = builder.fadd(*parts)
        return builder.extract_element(value, ir.Constant(I32, 0))

    return types.float32(f32x16), generate


def _byte(signed):
    def made(number):
        @intrinsic
        def byte(typingctx, x):
            def generate(context, builder, sig, args):
                up = builder.shl(args[0], const(vec(I32), 24 - 8 * number))
                if signed:
                    return builder.sitofp(builder.ashr(up, const(vec(I32), 24)), vec(FLOAT))
                bytes_ = ir.VectorType(I8, 4 * LANES)
                picks = [4 * (i // 4) + number if i % 4 == 0 else 4 * LANES for i in range(4 * LANES)]
                zero = ir.Constant(bytes_, [0] * 4 * LANES)
                alone = builder.shuffle_vector(
                    builder.bitcast(args[0], bytes_), zero, ir.Constant(ir.VectorType(I32, 4 * LANES), picks)
                )
                return builder.sitofp(builder.bitcast(alone, vec(I32)), vec(FLOAT))

            return f32x16(i32x16), generate

        return byte

    return [made(number) for number in range(4)]


unsigned_bytes, signed_bytes = _byte(False), _byte(True)
"""Byte 0 to 3 of every lane as f32x16, by functions."""


def picked(*lanes):
    """A function that gives the lanes of an f32x16 in another order, or some of them several times."""
    picks = ir.Constant(vec(I32), list(lanes))

    @intrinsic
    def pick(typingctx, x):
        return f32x16(f32x16), lambda context, builder, sig, args: builder.shuffle_vector(args[0], args[0], picks)

    return pick


def _beside(builder, low, high):
    """The lower eight lanes of one vector, then those of another."""
    picks = [i if i < LANES // 2 else i + LANES - LANES // 2 for i in range(LANES)]
    return builder.shuffle_vector(low, high, ir.Constant(vec(I32), picks))


@intrinsic
def float_halves(typingctx, low, high):
    """One float32 in the lower eight lanes of an f32x16, another in the upper ones."""

    def generate(context, builder, sig, args):
        return _beside(builder, *(broadcast(builder, number) for number in args))

    return f32x16(types.float32, types.float32), generate


@intrinsic
def two_f16(typingctx, array, low, high):
    """The float16 at byte `low` of a uint8 array in the lower eight lanes of an f32x16, another in the upper ones."""

    def generate(context, builder, sig, args):
        found = [builder.load(pointer(context, builder, sig.args[0], args[0], at, I16), align=1) for at in args[1:]]
        if converts_half(context):
            both = _beside(builder, *(broadcast(builder, half) for half in found))
            return builder.fpext(builder.bitcast(both, vec(HALF)), vec(FLOAT))
        return _beside(builder, *(broadcast(builder, widen_half(context, builder, half)) for half in found))

    return f32x16(array, types.intp, types.intp), generate


def _two(size, picks, doc):
    """Two pieces of `size` bytes of a uint8 array, laid out by int32."""

    @intrinsic
    def both(typingctx, array, first, second):
        def generate(context, builder, sig, args):
            kind = ir.VectorType(I32, size // 4)
            pieces = [
                builder.load(pointer(context, builder, sig.args[0], args[0], at, kind), align=1) for at in args[1:]
            ]
            return builder.shuffle_vector(*pieces, ir.Constant(vec(I32), picks))

        return i32x16(array, types.intp, types.intp), generate

    both.__doc__ = doc
    return both


two_runs = _two(32, list(range(16)), "32 bytes from `first` on, then 32 from `second` on.")
two_twice = _two(
    16, [0, 1, 2, 3] * 2 + [4, 5, 6, 7] * 2, "16 bytes from `first` on, twice, then 16 from `second` on, twice."
)


@intrinsic
def lanes_of_bytes(typingctx, a, b, c, d):
    """The sixteen bytes of four int32, the lowest first, each in a lane."""

    def generate(context, builder, sig, args):
        words = ir.Constant(ir.VectorType(I32, 4), ir.Undefined)
        for i, word in enumerate(args):
            words = builder.insert_element(words, word, ir.Constant(I32, i))
        return builder.zext(builder.bitcast(words, vec(I8)), vec(I32))

    return i32x16(*[types.int32] * 4), generate


@intrinsic
def load_word(typingctx, array, index):
    """The four bytes of a uint8 array from `index` on, as an int32."""

    def generate(context, builder, sig, args):
        return builder.load(pointer(context, builder, sig.args[0], args[0], args[1], I32), align=1)

    return types.int32(array, types.intp), generate
