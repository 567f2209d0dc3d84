"""Sixteen rows of blocks that lie abreast (see `abreast`), a row a lane: their integers and what these stand for.

    weight = d * scale * (level + offset) + m * minimum

`at` is the address of sixteen blocks.  Word i of a part of 32 weights holds levels 4 i to 4 i + 3 as bytes; a block of
256 has eight parts, whose halves of 16 weights may have scales and minima of their own.  Sources of the layouts: ggml's
`ggml-common.h`.
"""

import numpy as np

from llmconv.quant.kernels.compiling.build import inner
from llmconv.quant.kernels.terms.levels import E2M1, IQ4
from llmconv.quant.kernels.vectors.byte_lanes import look_up
from llmconv.quant.kernels.vectors.lanes import i4
from llmconv.quant.kernels.vectors.memory import load, load_bytes, load_i32
from llmconv.quant.kernels.vectors.places import bytes_at, halves_at
from llmconv.quant.kernels.vectors.simd import from_bits, neg, select, splat, to_float

_NIBBLES, _ONES, _TWOS = i4(0x0F0F0F0F), i4(0x01010101), i4(0x03030303)
_SPREAD = i4(0x00204081)
"""Times four bits: bit i comes to 7 i + i, the lowest of byte i."""
_IQ4, _E2M1 = IQ4.astype(np.int8).view(np.uint8), (E2M1 + 12).astype(np.uint8)


@inner
def _word(at, byte):
    """The four bytes at that byte of each row's block."""
    return load_bytes(bytes_at(at + 16 * byte), 0)


def half(byte):
    """A function that gives each row's float16 there."""

    @inner
    def read(at):
        return load(halves_at(at + 16 * byte), 0)

    return read


def minus_half(byte):
    @inner
    def read(at):
        return neg(load(halves_at(at + 16 * byte), 0))

    return read


@inner
def _nibbles(at, byte, i):
    """Of 16 bytes: the lower ones of all, then the upper ones."""
    return (_word(at, byte + 4 * (i % 4)) >> i4(4 * (i // 4))) & _NIBBLES


# ---- blocks of 32


def _plain_nibbles(byte):
    @inner
    def level(at, part, i):
        return _nibbles(at, byte, i)

    return level


def _fifths(byte):
    @inner
    def level(at, part, i):
        fifths = ((_word(at, byte) >> i4(4 * i)) & i4(15)) * _SPREAD
        return _nibbles(at, byte + 4, i) | ((fifths & _ONES) << i4(4))

    return level


def _looked_up(table, byte, part_bytes):
    @inner
    def level(at, part, i):
        return look_up(table, _nibbles(at, byte + part_bytes * part, i))

    return level


@inner
def q8_0(at, part, i):
    return _word(at, 2 + 4 * i)


q4_0, q4_1, q5_0, q5_1 = _plain_nibbles(2), _plain_nibbles(4), _fifths(2), _fifths(4)
iq4_nl, mxfp4 = _looked_up(_IQ4, 2, 0), _looked_up(_E2M1, 1, 0)


@inner
def half_power(at):
    """2^(exponent - 128), of which MXFP4's levels are multiples, as ggml makes it."""
    exponent = load_i32(bytes_at(at), 0)
    tiny = splat(i4(0x00200000)) << (exponent & i4(1))
    return from_bits(select(exponent < i4(2), tiny, (exponent - i4(1)) << i4(23)))


# ---- blocks of 256


@inner
def _code(at, byte, bits):
    """Byte `byte` of each block, from bit `bits` of it on; what lies above is still there."""
    return _word(at, byte // 4 * 4) >> i4(8 * (byte % 4) + bits)


def _six_bits(first, up):
    """Scales or minima of Q4_K and Q5_K: six bits, of the last four two are beside those of the first four."""

    @inner
    def code(at, part, piece):
        if part < 4:
            return to_float(_code(at, first + part, 0) & i4(63))
        low = _code(at, 8 + part, up) & i4(15)
        return to_float(low | ((_code(at, first - 4 + part, 6) & i4(3)) << i4(4)))

    return code


scale_q45_k, minimum_q45_k = _six_bits(4, 0), _six_bits(8, 4)


@inner
def q4_k(at, part, i):
    return (_word(at, 16 + 32 * (part // 2) + 4 * i) >> i4(4 * (part % 2))) & _NIBBLES


@inner
def q5_k(at, part, i):
    nibbles = (_word(at, 48 + 32 * (part // 2) + 4 * i) >> i4(4 * (part % 2))) & _NIBBLES
    return nibbles | (((_word(at, 16 + 4 * i) >> i4(part)) & _ONES) << i4(4))


@inner
def q2_k(at, part, i):
    return (_word(at, 16 + 32 * (part // 4) + 4 * i) >> i4(2 * (part % 4))) & _TWOS


@inner
def scale_q2_k(at, part, piece):
    return to_float(_code(at, 2 * part + piece, 0) & i4(15))


@inner
def minimum_q2_k(at, part, piece):
    return to_float(_code(at, 2 * part + piece, 4) & i4(15))


@inner
def q3_k(at, part, i):
    twos = (_word(at, 32 + 32 * (part // 4) + 4 * i) >> i4(2 * (part % 4))) & _TWOS
    return twos | (((_word(at, 4 * i) >> i4(part)) & _ONES) << i4(2))


@inner
def scale_q3_k(at, part, piece):
    j = 2 * part + piece
    low = _code(at, 96 + j % 8, 4 * (j // 8)) & i4(15)
    return to_float((low | ((_code(at, 104 + j % 4, 2 * (j // 4)) & i4(3)) << i4(4))) - i4(32))


@inner
def q6_k(at, part, i):
    group, kind = part // 4, part % 4
    low = _word(at, 64 * group + 32 * (kind % 2) + 4 * i) >> i4(4 * (kind // 2))
    top = _word(at, 128 + 32 * group + 4 * i) >> i4(2 * kind)
    return (low & _NIBBLES) | ((top & _TWOS) << i4(4))


@inner
def scale_q6_k(at, part, piece):
    code = _code(at, 192 + 2 * part + piece, 0) & i4(255)
    return to_float((code ^ i4(128)) - i4(128))


iq4_xs = _looked_up(_IQ4, 8, 16)


@inner
def scale_iq4_xs(at, part, piece):
    low = _code(at, 4 + part // 2, 4 * (part % 2)) & i4(15)
    high = load_i32(halves_at(at + 32), 0) >> i4(2 * part)
    return to_float((low | ((high & i4(3)) << i4(4))) - i4(32))
