"""Kernels of the legacy types: blocks of 32 weights, one scale (Q4_0, Q5_0, Q8_0) or scale and minimum (Q4_1, Q5_1).

The plain encoders work on one block at a time, its weights across the lanes: maxima don't depend on the order.
Sources of the layouts and rules: `ggml-common.h` and `ggml-quants.c` of ggml.
"""

import numpy as np
from numba import types

from llmconv.quant.kernels import ROWS, inner, kernel, out
from llmconv.quant.kernels.simd import (
    bits,
    f16_bits,
    f16_value,
    from_bits,
    load,
    max_,
    reduce_umax,
    round_,
    store,
    to_int,
    to_u8,
)

f4 = np.float32
i4 = np.int32
_OUT_U8, _OUT_F32 = out(types.uint8), out(types.float32)
_MAGNITUDE = i4(0x7FFFFFFF)


@inner
def put_f16(out, at, number):
    """The float16 nearest to `number` into two bytes."""
    half = f16_bits(number)
    out[at] = half & 255
    out[at + 1] = half >> 8


@inner
def get_f16(blocks, at):
    return f16_value(np.uint16(blocks[at] | (np.uint16(blocks[at + 1]) << 8)))


@inner
def inverse(d):
    return f4(1) / d if d != f4(0) else f4(0)


@kernel(ROWS, _OUT_U8)
def encode_q8_0(rows, out):
    for block in range(rows.size // 32):
        low, high = load(rows, 32 * block), load(rows, 32 * block + 16)
        largest = from_bits(reduce_umax(max_(bits(low) & _MAGNITUDE, bits(high) & _MAGNITUDE)))
        d = largest / f4(127)
        scale = inverse(d)
        at = 34 * block
        put_f16(out, at, d)
        store(out, at + 2, to_u8(to_int(round_(low * scale))))
        store(out, at + 18, to_u8(to_int(round_(high * scale))))
