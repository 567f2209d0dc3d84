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
    max_of_blocks,
    min_of_blocks,
    note_max,
    note_min,
    note_umax,
    prefetch,
    store,
    store_u16,
    umax_of_blocks,
)
from llmconv.quant.kernels.vectors.packing import store_32, store_fives, store_fours
from llmconv.quant.kernels.vectors.simd import (
    bits,
    f16_bits,
    from_bits,
    mask_bits,
    max_,
    min_,
    select,
    splat,
    to_float,
    to_int,
    trailing_zeros,
)
from llmconv.quant.kernels.vectors.stack import empty

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
    """32 integers of 4 or 5 bits, clamped: see `packing`."""
    if width == 5:
        store_fives(out, at, low, high)
    else:
        store_fours(out, at, low, high)


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


@inner
def rounded(x):
    """To the nearest integer, ties away from zero, of numbers below 2^22: C's roundf as LLVM has it, truncated once."""
    return to_int(x + from_bits((bits(x) & i4(-0x80000000)) | i4(0x3EFFFFFF)))


@kernel(ROWS, _BYTES)
def encode_q8_0(rows, out):
    sizes, inverses, halves = empty(128, i4), empty(16, f4), empty(16, i4)
    n = rows.size // 32
    for start in range(0, n, 16):
        for b in range(16):  # the last block again, where there are no sixteen
            at = 32 * min(start + b, n - 1)
            fetch(rows, at)
            note_umax(sizes, b, max_(bits(load(rows, at)) & _MAGNITUDE, bits(load(rows, at + 16)) & _MAGNITUDE))
        d = from_bits(umax_of_blocks(sizes)) / f4(127)
        store(halves, 0, f16_bits(d))
        store(inverses, 0, reciprocals(d))
        for b in range(min(16, n - start)):
            at, to, inverse = 32 * (start + b), 34 * (start + b), inverses[b]
            store_u16(out, to, halves[b])
            store_32(out, to + 2, rounded(load(rows, at) * inverse), rounded(load(rows, at + 16) * inverse))


def _signed(width):
    """Q4_0 and Q5_0: the weight of greatest magnitude (the first of equals) becomes the least integer."""
    half = 1 << (width - 1)
    middle, size, put = f4(half + 0.5), 2 + 4 * width, store_fours if width == 4 else store_fives

    @inner
    def encode(rows, out):
        keys, inverses, halves, greatest = empty(128, i4), empty(16, f4), empty(16, i4), empty(16, i4)
        n = rows.size // 32
        for start in range(0, n, 16):
            for b in range(16):
                at = 32 * min(start + b, n - 1)
                fetch(rows, at)
                low, high = bits(load(rows, at)), bits(load(rows, at + 16))
                # Magnitude, then sign: of equal magnitudes the negative one wins, for now.
                note_umax(keys, b, umax((low << i4(1)) | (low >> i4(31)), (high << i4(1)) | (high >> i4(31))))
            key = umax_of_blocks(keys)
            signed = from_bits(select((key >> i4(1)) == i4(0), i4(0), (key >> i4(1)) | (key << i4(31))))
            store(greatest, 0, bits(signed))
            d = signed / f4(-half)
            store(halves, 0, f16_bits(d))
            store(inverses, 0, reciprocals(d))
            for b in range(min(16, n - start)):
                at, to, inverse, half_bits = 32 * (start + b), size * (start + b), inverses[b], halves[b]
                low, high = load(rows, at), load(rows, at + 16)
                opposite = greatest[b] ^ i4(-0x80000000)
                positive = both(bits(low) == opposite, bits(high) == opposite)
                # That one stands there at all is asked first, because it is seldom so; whether the greatest is
                # negative, no processor can foresee.
                if (
                    positive != np.uint32(0)
                    and greatest[b] < i4(0)
                    and trailing_zeros(positive)
                    < trailing_zeros(both(bits(low) == greatest[b], bits(high) == greatest[b]))
                ):
                    inverse, half_bits = -inverse, half_bits ^ i4(0x8000)
                store_u16(out, to, half_bits)
                put(out, to + 2, to_int(low * inverse + middle), to_int(high * inverse + middle))

    return encode


def _affine(width):
    """Q4_1 and Q5_1: the least weight becomes 0, the greatest 15 or 31."""
    top, size, put = f4((1 << width) - 1), 4 + 4 * width, store_fours if width == 4 else store_fives

    @inner
    def encode(rows, out):
        lows, highs = empty(128, f4), empty(128, f4)
        inverses, halves, minima = empty(16, f4), empty(32, i4), empty(16, f4)
        n = rows.size // 32
        for start in range(0, n, 16):
            for b in range(16):
                at = 32 * min(start + b, n - 1)
                fetch(rows, at)
                low, high = load(rows, at), load(rows, at + 16)
                note_min(lows, b, min_(low, high))
                note_max(highs, b, max_(low, high))
            least, most = min_of_blocks(lows), max_of_blocks(highs)
            d = select(least == most, f4(0), most - least) / top
            store(halves, 0, f16_bits(d))
            store(halves, 16, f16_bits(least))
            store(inverses, 0, reciprocals(d))
            store(minima, 0, least)
            for b in range(min(16, n - start)):
                at, to, inverse = 32 * (start + b), size * (start + b), inverses[b]
                low, high = load(rows, at), load(rows, at + 16)
                minimum, half_bits = minima[b], halves[np.uint64(b) + np.uint64(16)]
                if minimum == f4(0):  # the first of several zeros gives its sign
                    first = trailing_zeros(both(low == f4(0), high == f4(0)))
                    half_bits = i4(((both(bits(low) < i4(0), bits(high) < i4(0)) >> first) & np.uint32(1)) << 15)
                store_u16(out, to, halves[b])
                store_u16(out, to + 2, half_bits)
                low, high = (low - minimum) * inverse + f4(0.5), (high - minimum) * inverse + f4(0.5)
                put(out, to + 4, to_int(low), to_int(high))

    return encode


_q4_0, _q5_0, _q4_1, _q5_1 = _signed(4), _signed(5), _affine(4), _affine(5)


@kernel(ROWS, _BYTES)
def encode_q4_0(rows, out):
    _q4_0(rows, out)


@kernel(ROWS, _BYTES)
def encode_q5_0(rows, out):
    _q5_0(rows, out)


@kernel(ROWS, _BYTES)
def encode_q4_1(rows, out):
    _q4_1(rows, out)


@kernel(ROWS, _BYTES)
def encode_q5_1(rows, out):
    _q5_1(rows, out)


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
