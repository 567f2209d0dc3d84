"""Sums of products over the lanes (see `simd`), where no order is prescribed: what one token is multiplied with.

A multiplication and an addition are one instruction where the processor has such; bytes are multiplied as in
`byte_lanes`.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from llmconv.quant.kernels.vectors.codegen import FLOAT, I32, LANES, call, f32x16, pointer, vec


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


@intrinsic
def load_word(typingctx, array, index):
    """The four bytes of a uint8 array from `index` on, as an int32."""

    def generate(context, builder, sig, args):
        return builder.load(pointer(context, builder, sig.args[0], args[0], args[1], I32), align=1)

    return types.int32(array, types.intp), generate
