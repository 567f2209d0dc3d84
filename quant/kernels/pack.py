"""Small pieces that the families' packing and unpacking share."""

import numpy as np

from llmconv.quant.kernels import inner
from llmconv.quant.kernels.simd import clamp, f16_bits, f16_value, load, nearest_int, splat

f4 = np.float32
i4 = np.int32


@inner
def put_f16(out, at, number):
    """The float16 nearest to `number`, into two bytes; returns its value."""
    half = f16_bits(number)
    out[at] = half & 255
    out[at + 1] = half >> 8
    return f16_value(half)


@inner
def get_f16(blocks, at):
    """The float16 in two bytes, as float32."""
    return f16_value(np.uint16(np.uint16(blocks[at]) | (np.uint16(blocks[at + 1]) << 8)))


@inner
def divide(x, at, offset, d, low, high):
    """nearest_int((x + offset) / d) of sixteen weights, clamped: the integers that a scale already stored gives."""
    return clamp(nearest_int((load(x, at) + offset) / d), i4(low), i4(high))


@inner
def multiply(x, at, offset, inverse, low, high):
    """nearest_int((x - offset) * inverse) of sixteen weights, clamped: the integers that a search settled on."""
    return clamp(nearest_int(splat(inverse) * (load(x, at) - offset)), i4(low), i4(high))
