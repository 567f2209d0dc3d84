"""Sums of products over the lanes (see `simd`), where no order is prescribed: what one token is multiplied with.

A multiplication and an addition are one instruction where the processor has such; bytes are multiplied as in
`byte_lanes`.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from llmconv.quant.kernels.vectors.byte_lanes import by_halves, dot_parts, has_avx2
from llmconv.quant.kernels.vectors.codegen import FLOAT, I8, I16, I32, LANES, call, const, f32x16, i32x16, pointer, vec


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
                shifted = (builder.ashr if signed else builder.lshr)(up, const(vec(I32), 24))
                return builder.sitofp(shifted, vec(FLOAT))

            return f32x16(i32x16), generate

        return byte

    return [made(number) for number in range(4)]


unsigned_bytes, signed_bytes = _byte(False), _byte(True)
"""Byte 0 to 3 of every lane as f32x16, by functions."""


@intrinsic
def dot_signed(typingctx, x, y):
    """Signed bytes of x times signed bytes of y that are not -128, neighbours added: two int16 a lane."""

    def generate(context, builder, sig, args):
        x, y = args
        if not has_avx2(context):
            return dot_parts(builder, x, y, I16, True)
        bytes_ = ir.VectorType(I8, 4 * LANES)
        wide, zero = builder.bitcast(x, bytes_), ir.Constant(bytes_, [0] * 4 * LANES)
        size = builder.select(builder.icmp_signed("<", wide, zero), builder.sub(zero, wide), wide)
        turned = by_halves(builder, "llvm.x86.avx2.psign.b", I8, I8, y, x)
        return by_halves(builder, "llvm.x86.avx2.pmadd.ub.sw", I8, I16, builder.bitcast(size, x.type), turned)

    return i32x16(i32x16, i32x16), generate


def picked(*lanes):
    """A function that gives the lanes of an f32x16 in another order, or some of them several times."""
    picks = ir.Constant(vec(I32), list(lanes))

    @intrinsic
    def pick(typingctx, x):
        return f32x16(f32x16), lambda context, builder, sig, args: builder.shuffle_vector(args[0], args[0], picks)

    return pick


@intrinsic
def float_halves(typingctx, low, high):
    """One float32 in the lower eight lanes of an f32x16, another in the upper ones."""

    def generate(context, builder, sig, args):
        eight = []
        for number in args:
            undefined = ir.Constant(ir.VectorType(FLOAT, 8), ir.Undefined)
            first = builder.insert_element(undefined, number, ir.Constant(I32, 0))
            eight.append(builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, 8), [0] * 8)))
        return builder.shuffle_vector(*eight, ir.Constant(vec(I32), list(range(LANES))))

    return f32x16(types.float32, types.float32), generate


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
