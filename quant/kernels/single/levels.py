"""A row of blocks, 64 weights at a time: the integers of each as bytes in the weights' order, and what they stand for.

    weight = scale * (level + offset) + minimum

Four neighbouring weights are a lane of an i32x16; scales and minima are f32x16, a lane's own.  Types with blocks of 32
give two blocks at a time, `a` and `b` being where they begin; of the others, the functions of a part (0 to 3) give a
quarter of the block at `at`.  Sources of the layouts: ggml's `ggml-common.h`.
"""

import numpy as np

from llmconv.quant.kernels.compiling.build import inner
from llmconv.quant.kernels.terms.levels import E2M1, IQ4
from llmconv.quant.kernels.vectors.byte_lanes import look_up
from llmconv.quant.kernels.vectors.lanes import LANE, get_f16, i4
from llmconv.quant.kernels.vectors.memory import load_bytes, load_i32
from llmconv.quant.kernels.vectors.simd import from_bits, halves, splat, to_float
from llmconv.quant.kernels.vectors.sums import (
    float_halves,
    lanes_of_bytes,
    load_word,
    picked,
    two_f16,
    two_runs,
    two_twice,
)

_NIBBLES, _ONES, _TWOS, _SIXES = i4(0x0F0F0F0F), i4(0x01010101), i4(0x03030303), i4(0x3F3F3F3F)
_SPREAD = i4(0x00204081)
"""Times four bits: bit i comes to 7 i + i, the lowest of byte i."""
_QUADS = (LANE % 8 // 4 * 4).astype(np.int32)
_FOURS = (LANE % 8 * 4).astype(np.int32)
_IQ4, _E2M1 = (table.astype(np.int8).view(np.uint8) for table in (IQ4, E2M1))


# ---- blocks of 32


@inner
def _nibbles(blocks, a, b):
    """The nibbles of 16 bytes at a and 16 at b: the lower ones of all sixteen, then the upper ones."""
    return (two_twice(blocks, a, b) >> load_i32(_QUADS, 0)) & _NIBBLES


@inner
def _fifths(blocks, a, b):
    """Bit i of the 32 at a, and at b, as the fifth bit of byte i."""
    both = halves(load_word(blocks, a), load_word(blocks, b)) >> load_i32(_FOURS, 0)
    return (((both & i4(15)) * _SPREAD) & _ONES) << i4(4)


@inner
def scale(blocks, a, b):
    """A float16 in front of each block."""
    return two_f16(blocks, a, b)


@inner
def minimum(blocks, a, b):
    """A second float16."""
    return two_f16(blocks, a + 2, b + 2)


@inner
def q4_0(blocks, a, b):
    return _nibbles(blocks, a + 2, b + 2)


@inner
def q4_1(blocks, a, b):
    return _nibbles(blocks, a + 4, b + 4)


@inner
def q5_0(blocks, a, b):
    return _nibbles(blocks, a + 6, b + 6) | _fifths(blocks, a + 2, b + 2)


@inner
def q5_1(blocks, a, b):
    return _nibbles(blocks, a + 8, b + 8) | _fifths(blocks, a + 4, b + 4)


@inner
def q8_0(blocks, a, b):
    return two_runs(blocks, a + 2, b + 2)


@inner
def iq4_nl(blocks, a, b):
    return look_up(_IQ4, _nibbles(blocks, a + 2, b + 2))


@inner
def mxfp4(blocks, a, b):
    return look_up(_E2M1, _nibbles(blocks, a + 1, b + 1))


@inner
def _half_power(exponent):
    """2^(exponent - 128), of which the levels are multiples, as ggml makes it."""
    if exponent < 2:
        return from_bits(i4(i4(0x00200000) << i4(exponent)))
    return from_bits(i4((i4(exponent) - i4(1)) << i4(23)))


@inner
def scale_mxfp4(blocks, a, b):
    return float_halves(_half_power(blocks[a]), _half_power(blocks[b]))


# ---- blocks of 256: scales and minima of all sub-blocks, 16 of 16 weights or 8 of 32


@inner
def _six_bits(blocks, at):
    """Eight scales, then eight minima, of six bits each in 12 bytes (Q4_K and Q5_K)."""
    a, b, c = load_word(blocks, at), load_word(blocks, at + 4), load_word(blocks, at + 8)
    low, high = a & _SIXES, (c & _NIBBLES) | (((a >> i4(6)) & _TWOS) << i4(4))
    least, most = b & _SIXES, ((c >> i4(4)) & _NIBBLES) | (((b >> i4(6)) & _TWOS) << i4(4))
    return to_float(lanes_of_bytes(i4(low), i4(high), i4(least), i4(most)))


@inner
def scales_q45_k(blocks, at):
    """Lanes 0 to 7: the scales.  8 to 15: the minima."""
    return _six_bits(blocks, at + 4) * float_halves(get_f16(blocks, at), -get_f16(blocks, at + 2))


@inner
def scales_q2_k(blocks, at):
    return to_float(load_i32(blocks, at) & i4(15)) * get_f16(blocks, at + 80)


@inner
def minima_q2_k(blocks, at):
    return to_float(load_i32(blocks, at) >> i4(4)) * -get_f16(blocks, at + 82)


@inner
def scales_q3_k(blocks, at):
    a, b, high = load_word(blocks, at + 96), load_word(blocks, at + 100), load_word(blocks, at + 104)
    codes = lanes_of_bytes(
        i4((a & _NIBBLES) | ((high & _TWOS) << i4(4))),
        i4((b & _NIBBLES) | (((high >> i4(2)) & _TWOS) << i4(4))),
        i4(((a >> i4(4)) & _NIBBLES) | (((high >> i4(4)) & _TWOS) << i4(4))),
        i4(((b >> i4(4)) & _NIBBLES) | (((high >> i4(6)) & _TWOS) << i4(4))),
    )
    return to_float(codes - i4(32)) * get_f16(blocks, at + 108)


@inner
def scales_q6_k(blocks, at):
    return to_float((load_i32(blocks, at + 192) ^ i4(128)) - i4(128)) * get_f16(blocks, at + 208)


@inner
def scales_iq4_xs(blocks, at):
    """In lanes 0 to 7."""
    low = splat(load_word(blocks, at + 4)) >> load_i32(_FOURS, 0)
    high = splat(load_word(blocks, at)) >> (load_i32(_FOURS, 0) >> i4(1)) + i4(16)
    code = (low & i4(15)) | ((high & i4(3)) << i4(4))
    return to_float(code - i4(32)) * get_f16(blocks, at)


# ---- blocks of 256: a quarter's integers


def _of_parts(made):
    return [made(part) for part in range(4)]


def _q2_k(part):
    at_byte, low, high = 16 + part // 2 * 32, i4(part % 2 * 4), i4(part % 2 * 4 + 2)

    @inner
    def levels(blocks, at):
        at += at_byte
        return (two_runs(blocks, at, at) >> halves(low, high)) & _TWOS

    return levels


def _q3_k(part):
    at_byte, low, high = 32 + part // 2 * 32, i4(part % 2 * 4), i4(part % 2 * 4 + 2)
    first, second = i4(2 * part), i4(2 * part + 1)

    @inner
    def levels(blocks, at):
        thirds = ((two_runs(blocks, at, at) >> halves(first, second)) & _ONES) << i4(2)
        at += at_byte
        return ((two_runs(blocks, at, at) >> halves(low, high)) & _TWOS) | thirds

    return levels


def _q45_k(part, nibbles_at, five):
    at_byte, first, second = nibbles_at + 32 * part, i4(2 * part), i4(2 * part + 1)

    @inner
    def levels(blocks, at):
        nibbles = (two_runs(blocks, at + at_byte, at + at_byte) >> halves(i4(0), i4(4))) & _NIBBLES
        if five:
            return nibbles | (((two_runs(blocks, at + 16, at + 16) >> halves(first, second)) & _ONES) << i4(4))
        return nibbles

    return levels


def _q6_k(part):
    at_byte, top_at, shift = part // 2 * 64, 128 + part // 2 * 32, i4(part % 2 * 4)
    second = i4(part % 2 * 4 + 2)

    @inner
    def levels(blocks, at):
        top = (two_runs(blocks, at + top_at, at + top_at) >> halves(shift, second)) & _TWOS
        return ((load_bytes(blocks, at + at_byte) >> shift) & _NIBBLES) | (top << i4(4))

    return levels


def _iq4_xs(part):
    at_byte = 8 + 32 * part

    @inner
    def levels(blocks, at):
        return look_up(_IQ4, _nibbles(blocks, at + at_byte, at + at_byte + 16))

    return levels


q2_k, q3_k, q6_k, iq4_xs = (_of_parts(made) for made in (_q2_k, _q3_k, _q6_k, _iq4_xs))
q4_k = _of_parts(lambda part: _q45_k(part, 16, False))
q5_k = _of_parts(lambda part: _q45_k(part, 48, True))

of_16 = _of_parts(lambda part: picked(*(4 * part + lane // 4 for lane in range(16))))
of_32 = _of_parts(lambda part: picked(*(2 * part + lane // 8 for lane in range(16))))
of_32_minima = _of_parts(lambda part: picked(*(8 + 2 * part + lane // 8 for lane in range(16))))
"""A quarter's scales, out of those of all sub-blocks."""
