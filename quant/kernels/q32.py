"""Kernels of the Q types with blocks of 32 weights, one scale (Q4_0, Q5_0, Q8_0) or scale and minimum (Q4_1, Q5_1).

The plain encoders take one block at a time, its weights across the lanes: maxima don't depend on the order.
With importance, `search` finds the scales and `pack` writes them.  Layouts and rules: ggml's `ggml-common.h` and
`ggml-quants.c`.
"""

import numpy as np
from numba import types

from llmconv.quant.kernels.compiling.build import F32, ROWS, U8, inner, kernel, out
from llmconv.quant.kernels.terms.fields import INVERSE, MINIMUM, OFFSET, SCALE, SUB
from llmconv.quant.kernels.vectors.lanes import LANE, get_f16, multiply, put_f16
from llmconv.quant.kernels.vectors.memory import (
    load,
    load_i32,
    prefetch,
    rows_max,
    rows_min,
    rows_umax,
    store,
    store_u16,
)
from llmconv.quant.kernels.vectors.simd import (
    bits,
    f16_bits,
    from_bits,
    mask_bits,
    max_,
    min_,
    round_,
    select,
    splat,
    to_float,
    to_int,
    to_u8,
    trailing_zeros,
)
from llmconv.quant.kernels.vectors.stack import empty, zeros

f4 = np.float32
i4 = np.int32
_BYTES, _FLOATS = out(types.uint8), out(types.float32)
_MAGNITUDE = i4(0x7FFFFFFF)


@inner
def umax(x, y):
    """The greater of two integers without sign."""
    return select((x ^ i4(-0x80000000)) > (y ^ i4(-0x80000000)), x, y)


@inner
def both(low, high):
    """Two masks of sixteen as one uint32."""
    return mask_bits(low) | (mask_bits(high) << np.uint32(16))


@inner
def put_quants(out, at, low, high, width):
    """32 integers of 4 or 5 bits: the fifth bits first (32 of them), then nibbles, weight i beside weight i + 16."""
    if width == 5:
        fifth = both((low & i4(16)) != i4(0), (high & i4(16)) != i4(0))
        for i in range(4):
            out[at + i] = (fifth >> np.uint32(8 * i)) & np.uint32(255)
        at += 4
        low = low & i4(15)
    store(out, at, to_u8(low | (high << i4(4))))


@inner
def get_quants(blocks, at, width):
    """What `put_quants` wrote."""
    if width == 5:
        packed = load_i32(blocks, at + 4)
        fifth = np.uint32(0)
        for i in range(4):
            fifth |= np.uint32(blocks[at + i]) << np.uint32(8 * i)
        bit = splat(i4(fifth)) >> load_i32(LANE, 0)
        return (packed & i4(15)) | ((bit & i4(1)) << i4(4)), (packed >> i4(4)) | (((bit >> i4(16)) & i4(1)) << i4(4))
    packed = load_i32(blocks, at)
    return packed & i4(15), packed >> i4(4)


@inner
def reciprocals(d):
    return select(d != f4(0), f4(1) / d, f4(0))


@inner
def fetch(rows, at):
    """Ask for the 32 weights that come 64 blocks later: so little is done with each that memory would be waited for."""
    prefetch(rows, at + 2048)
    prefetch(rows, at + 2048 + 16)


@kernel(ROWS, _BYTES)
def encode_q8_0(rows, out):
    sizes, inverses, halves = zeros(256, i4), empty(16, f4), empty(16, i4)
    n = rows.size // 32
    for start in range(0, n, 16):
        count = min(16, n - start)
        for b in range(count):
            at = 32 * (start + b)
            fetch(rows, at)
            size = max_(bits(load(rows, at)) & _MAGNITUDE, bits(load(rows, at + 16)) & _MAGNITUDE)
            store(sizes, 16 * b, size)
        d = from_bits(rows_umax(sizes, 0)) / f4(127)
        store(halves, 0, f16_bits(d))
        store(inverses, 0, reciprocals(d))
        for b in range(count):
            at, to, inverse = 32 * (start + b), 34 * (start + b), inverses[b]
            store_u16(out, to, halves[b])
            store(out, to + 2, to_u8(to_int(round_(load(rows, at) * inverse))))
            store(out, to + 18, to_u8(to_int(round_(load(rows, at + 16) * inverse))))


@kernel(ROWS, types.int64, _BYTES)
def encode_signed(rows, width, out):
    """Q4_0 and Q5_0: the weight of greatest magnitude (the first of equals) becomes the least integer."""
    half = i4(1) << i4(width - 1)
    middle, top, size = f4(half) + f4(0.5), i4(2 * half - 1), 18 if width == 4 else 22
    keys, inverses, halves, greatest = zeros(256, i4), empty(16, f4), empty(16, i4), empty(16, i4)
    n = rows.size // 32
    for start in range(0, n, 16):
        count = min(16, n - start)
        for b in range(count):
            at = 32 * (start + b)
            fetch(rows, at)
            low, high = bits(load(rows, at)), bits(load(rows, at + 16))
            # Magnitude, then sign: of equal magnitudes the negative one wins, for now.
            store(keys, 16 * b, umax((low << i4(1)) | (low >> i4(31)), (high << i4(1)) | (high >> i4(31))))
        key = rows_umax(keys, 0)
        signed = from_bits(select((key >> i4(1)) == i4(0), i4(0), (key >> i4(1)) | (key << i4(31))))
        store(greatest, 0, bits(signed))
        d = signed / f4(-half)
        store(halves, 0, f16_bits(d))
        store(inverses, 0, reciprocals(d))
        for b in range(count):
            at, to, inverse, half_bits = 32 * (start + b), size * (start + b), inverses[b], halves[b]
            low, high = load(rows, at), load(rows, at + 16)
            opposite = greatest[b] ^ i4(-0x80000000)
            positive = both(bits(low) == opposite, bits(high) == opposite)
            # That one stands there at all is asked first, because it is seldom so; whether the greatest is negative, no
            # processor can foresee.
            if (
                positive != np.uint32(0)
                and greatest[b] < i4(0)
                and trailing_zeros(positive) < trailing_zeros(both(bits(low) == greatest[b], bits(high) == greatest[b]))
            ):
                inverse, half_bits = -inverse, half_bits ^ i4(0x8000)
            store_u16(out, to, half_bits)
            low = min_(to_int(low * inverse + middle), top)
            high = min_(to_int(high * inverse + middle), top)
            put_quants(out, to + 2, low, high, width)


@kernel(ROWS, types.int64, _BYTES)
def encode_affine(rows, width, out):
    """Q4_1 and Q5_1: the least weight becomes 0, the greatest 15 or 31."""
    top, size = (i4(1) << i4(width)) - i4(1), 20 if width == 4 else 24
    lows, highs = zeros(256, f4), zeros(256, f4)
    inverses, halves = empty(16, f4), empty(32, i4)
    n = rows.size // 32
    for start in range(0, n, 16):
        count = min(16, n - start)
        for b in range(count):
            at = 32 * (start + b)
            fetch(rows, at)
            low, high = load(rows, at), load(rows, at + 16)
            store(lows, 16 * b, min_(low, high))
            store(highs, 16 * b, max_(low, high))
        least, most = rows_min(lows, 0), rows_max(highs, 0)
        d = select(least == most, f4(0), most - least) / f4(top)
        store(halves, 0, f16_bits(d))
        store(halves, 16, f16_bits(least))
        store(inverses, 0, reciprocals(d))
        store(lows, 0, least)
        for b in range(count):
            at, to, inverse = 32 * (start + b), size * (start + b), inverses[b]
            low, high = load(rows, at), load(rows, at + 16)
            minimum, half_bits = lows[b], halves[16 + b]
            if minimum == f4(0):  # the first of several zeros gives its sign
                first = trailing_zeros(both(low == f4(0), high == f4(0)))
                half_bits = i4(((both(bits(low) < i4(0), bits(high) < i4(0)) >> first) & np.uint32(1)) << 15)
            store_u16(out, to, halves[b])
            store_u16(out, to + 2, half_bits)
            low = min_(to_int((low - minimum) * inverse + f4(0.5)), top)
            high = min_(to_int((high - minimum) * inverse + f4(0.5)), top)
            put_quants(out, to + 4, low, high, width)


@kernel(F32, types.int64, types.int64, types.int64, types.boolean, F32, _BYTES)
def pack(x, k, n_rows, width, affine, found, out):
    """Blocks of 32 from what a search found, for the first `n_rows` rows of `k`."""
    half = i4(1) << i4(width - 1)
    size = 2 + 2 * affine + 4 * width
    blocks = k // 32
    for row in range(n_rows):
        for column in range(blocks):
            base = ((row // 16) * blocks + column) * SUB + row % 16
            at = (row * blocks + column) * size
            x_at = row * k + 32 * column
            put_f16(out, at, found[base + SCALE])
            inverse = found[base + INVERSE]
            if affine:
                put_f16(out, at + 2, -found[base + MINIMUM])
                offset = found[base + OFFSET]
                low = multiply(x, x_at, offset, inverse, 0, 2 * half - 1)
                high = multiply(x, x_at + 16, offset, inverse, 0, 2 * half - 1)
                put_quants(out, at + 4, low, high, width)
            else:
                # An all-zero block has integers 0, not the middle.
                middle = half if inverse != f4(0) else i4(0)
                low = multiply(x, x_at, f4(0), inverse, -half, half - 1) + middle
                high = multiply(x, x_at + 16, f4(0), inverse, -half, half - 1) + middle
                put_quants(out, at + 2, low, high, width)


@kernel(U8, _FLOATS)
def decode_q8_0(blocks, out):
    for block in range(out.size // 32):
        at = 34 * block
        d = get_f16(blocks, at)
        for i in range(0, 32, 16):
            q = load_i32(blocks, at + 2 + i)
            store(out, 32 * block + i, to_float((q ^ i4(128)) - i4(128)) * d)


@kernel(U8, types.int64, types.boolean, _FLOATS)
def decode_quants(blocks, width, affine, out):
    """Q4_0, Q5_0 (integers minus the middle, times d) and Q4_1, Q5_1 (integers times d, plus m)."""
    size = 2 + 2 * affine + 4 * width
    half = i4(1) << i4(width - 1)
    for block in range(out.size // 32):
        at = size * block
        d = get_f16(blocks, at)
        if affine:
            m = get_f16(blocks, at + 2)
            low, high = get_quants(blocks, at + 4, width)
            low_value, high_value = to_float(low) * d + m, to_float(high) * d + m
        else:
            low, high = get_quants(blocks, at + 2, width)
            low_value, high_value = to_float(low - half) * d, to_float(high - half) * d
        store(out, 32 * block, low_value)
        store(out, 32 * block + 16, high_value)
