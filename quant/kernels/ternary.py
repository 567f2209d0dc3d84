"""Kernels of TQ1_0 and TQ2_0: -1, 0 or 1 a weight, one scale for 256 of them.

Source of the layouts and rules: `block_tq1_0`, `block_tq2_0` and their quantizers in ggml.
"""

import numpy as np

from llmconv.quant.kernels.compiling.build import ROWS, U8, inner, kernel
from llmconv.quant.kernels.vectors.codegen import LANES
from llmconv.quant.kernels.vectors.lanes import OUT_F32, OUT_U8, f4, get_f16, i4, inverse, largest, put_f16
from llmconv.quant.kernels.vectors.memory import load, load_i32, store
from llmconv.quant.kernels.vectors.simd import round_, splat, to_float, to_int, to_u8
from llmconv.quant.kernels.vectors.stack import empty


@inner
def _scale(rows, start):
    """The block's largest magnitude and what to multiply weights with."""
    d = f4(0)
    for i in range(0, 256, 32):
        d = max(d, largest(load(rows, start + i), load(rows, start + i + 16)))
    scale = inverse(d)
    # A subnormal d has an infinite inverse, and the reference's lroundf of infinities and NaN ends up as 0.
    return d, scale if scale < f4(np.inf) else f4(0)


@inner
def _trits(rows, start, scale):
    return to_int(round_(load(rows, start) * scale)) + i4(1)


@inner
def _packed(trits):
    """Five base-3 digits as a fraction of 256, rounded up: ceil(256 * trits / 243), the division as a product."""
    return (((trits & i4(255)) * i4(256) + i4(242)) * i4(69043)) >> i4(24)


@inner
def _digits(rows, start, stride, count, scale):
    q = _trits(rows, start, scale)
    for n in range(1, count):
        q = q * i4(3) + _trits(rows, start + n * stride, scale)
    return q


@kernel(ROWS, OUT_U8)
def encode_tq1_0(rows, out):
    place = empty(LANES, np.int32)
    for block in range(rows.size // 256):
        start, at = 256 * block, 54 * block
        d, scale = _scale(rows, start)
        for i in range(0, 32, 16):
            store(out, at + i, to_u8(_packed(_digits(rows, start + i, 32, 5, scale))))
        store(out, at + 32, to_u8(_packed(_digits(rows, start + 160, 16, 5, scale))))
        store(place, 0, _trits(rows, start + 240, scale))
        for j in range(4):
            q = (((place[j] * 3 + place[j + 4]) * 3 + place[j + 8]) * 3 + place[j + 12]) * 3
            out[at + 48 + j] = ((q & 255) * 256 + 242) // 243
        put_f16(out, at + 52, d)


@inner
def _values(q, d):
    return to_float((((q & i4(255)) * i4(3)) >> i4(8)) - i4(1)) * d


@kernel(U8, OUT_F32)
def decode_tq1_0(blocks, out):
    for block in range(blocks.size // 54):
        start, at = 256 * block, 54 * block
        d = get_f16(blocks, at + 52)
        power = i4(1)
        for n in range(5):
            for i in range(0, 32, 16):
                store(out, start + 32 * n + i, _values(load_i32(blocks, at + i) * power, d))
            store(out, start + 160 + 16 * n, _values(load_i32(blocks, at + 32) * power, d))
            power *= i4(3)
        power = i4(1)
        for n in range(4):
            for j in range(4):
                q = (i4(blocks[at + 48 + j]) * power) & i4(255)
                out[start + 240 + 4 * n + j] = f4(((q * i4(3)) >> i4(8)) - i4(1)) * d
            power *= i4(3)


@kernel(ROWS, OUT_U8)
def encode_tq2_0(rows, out):
    for block in range(rows.size // 256):
        start, at = 256 * block, 66 * block
        d, scale = _scale(rows, start)
        for half in range(2):
            for i in range(0, 32, 16):
                q = splat(i4(0))
                for n in range(4):
                    trits = _trits(rows, start + 128 * half + 32 * n + i, scale)
                    q = q | ((trits & i4(3)) << i4(2 * n))
                store(out, at + 32 * half + i, to_u8(q))
        put_f16(out, at + 64, d)


@kernel(U8, OUT_F32)
def decode_tq2_0(blocks, out):
    for block in range(blocks.size // 66):
        start, at = 256 * block, 66 * block
        d = get_f16(blocks, at + 64)
        for half in range(2):
            for i in range(0, 32, 16):
                q = load_i32(blocks, at + 32 * half + i)
                for n in range(4):
                    value = to_float(((q >> i4(2 * n)) & i4(3)) - i4(1)) * d
                    store(out, start + 128 * half + 32 * n + i, value)
