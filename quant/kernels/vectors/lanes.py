"""What the kernels of several families share: fields of a block's bytes, rounding, and one block a lane.

`tile` lays sixteen blocks side by side, one a lane, so that a search runs on all of them at once and every lane
keeps the reference's order of operations.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from llmconv.quant.kernels.compiling.build import inner, out
from llmconv.quant.kernels.vectors.codegen import LANES, i32x16, pointer
from llmconv.quant.kernels.vectors.memory import load, transpose
from llmconv.quant.kernels.vectors.simd import (
    bits as bits_of,
    clamp,
    f16_bits,
    f16_value,
    fabs,
    from_bits,
    max_,
    nearest_int,
    reduce_umax,
    splat,
)

OUT_U8, OUT_F32 = out(types.uint8), out(types.float32)
LANE = np.arange(LANES, dtype=np.int32)

f4 = np.float32
i4 = np.int32


@inner
def fill(array, start, stop, value):
    """`array[start:stop] = value`, which takes numba a second to compile."""
    for i in range(start, stop):
        array[i] = value


@inner
def put_f16(out, at, number):
    """The float16 nearest to `number`, into two bytes; returns its value."""
    half = f16_bits(number)
    out[at] = half & 255
    out[at + 1] = half >> 8
    return f16_value(half)


@inner
def get_u16(blocks, at):
    return np.uint16(blocks[at] | (np.uint16(blocks[at + 1]) << 8))


@inner
def get_u32(blocks, at):
    return np.uint32(get_u16(blocks, at)) | (np.uint32(get_u16(blocks, at + 2)) << np.uint32(16))


@inner
def get_f16(blocks, at):
    """The float16 in two bytes, as float32."""
    return f16_value(get_u16(blocks, at))


@inner
def inverse(d):
    return f4(1) / d if d != f4(0) else f4(0)


@inner
def largest(a, b):
    """The largest magnitude in two vectors without NaN."""
    return from_bits(reduce_umax(max_(bits_of(fabs(a)), bits_of(fabs(b)))))


@inner
def divide(x, at, offset, d, low, high):
    """nearest_int((x + offset) / d) of sixteen weights, clamped: the integers that a scale already stored gives."""
    return clamp(nearest_int((load(x, at) + offset) / d), i4(low), i4(high))


@inner
def multiply(x, at, offset, inverse, low, high):
    """nearest_int((x - offset) * inverse) of sixteen weights, clamped: the integers that a search settled on."""
    return clamp(nearest_int(splat(inverse) * (load(x, at) - offset)), i4(low), i4(high))


@inner
def tile(x, first, step, size, out):
    """Weight i of block `first + lane * step` (blocks of `size` weights, a multiple of 16) to `out[16 * i + lane]`."""
    for i in range(0, size, LANES):
        transpose(x, first * size + i, step * size, out, LANES * i)


@intrinsic
def load_twice(typingctx, array, index):
    """`array[index : index + 8]` of a uint8 array, and the same again in the upper eight lanes -> i32x16."""

    def generate(context, builder, sig, args):
        byte, i32 = ir.IntType(8), ir.IntType(32)
        value = builder.load(pointer(context, builder, sig.args[0], args[0], args[1], ir.VectorType(byte, 8)))
        value.align = 1
        picks = ir.Constant(ir.VectorType(i32, LANES), [i % 8 for i in range(LANES)])
        return builder.zext(builder.shuffle_vector(value, value, picks), ir.VectorType(i32, LANES))

    return i32x16(array, types.intp), generate
