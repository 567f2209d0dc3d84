"""Blocks of sixteen rows of weights laid abreast as small integers: what `integer_products` multiplies with.

A strip holds 256 weights of each of sixteen rows, one row a lane.  Four neighbouring levels, unsigned, are the bytes of
a lane; `run` words of levels share a scale, an integer, twice in a lane as two int16:

    weight = d * scale * level + m * offset

with float32 d and m for a block and an integer offset for 16 weights (two neighbouring ones in a lane); m is d where
the type has no scale for its offsets.  Types with blocks of 32 have one offset for all weights, which is not stored.
Bytes of more than six bits are two digits, to multiply with the same inputs under two scales.  A run is as long as its
sums, with inputs of up to 127, fit an int16.

Sources of the layouts: ggml's `ggml-common.h`.
"""

import numpy as np

from llmconv.quant.kernels.compiling.build import inner
from llmconv.quant.kernels.terms.forms import IQ4_NL, MXFP4, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0
from llmconv.quant.kernels.terms.levels import E2M1, IQ4
from llmconv.quant.kernels.vectors.byte_lanes import load_words, look_up
from llmconv.quant.kernels.vectors.codegen import LANES
from llmconv.quant.kernels.vectors.lanes import i4
from llmconv.quant.kernels.vectors.memory import store
from llmconv.quant.kernels.vectors.simd import bits, f16_value, select, splat

LEVELS, SCALES, OFFSETS, D, M, SIZE = (LANES * i for i in (0, 128, 160, 168, 176, 184))
"""Where the parts of a strip begin, in int32, and how many it has."""

_IQ4, _E2M1 = (IQ4 + 128).astype(np.uint8), (E2M1 + 12).astype(np.uint8)
"""Without sign; a form's offset takes it back."""
_NIBBLES, _ONES, _TWOS, _SIGNS = i4(0x0F0F0F0F), i4(0x01010101), i4(0x03030303), i4(-0x7F7F7F80)
_ONE = i4(0x00010001)
"""As two int16."""
_SPREAD = i4(0x00204081)
"""Times four bits: bit i comes to 7 i + i, the lowest of byte i."""


@inner
def _twice(a):
    return (a & i4(0xFFFF)) | (a << i4(16))


@inner
def _pair(a, b):
    return (a & i4(0xFFFF)) | (b << i4(16))


@inner
def _byte(word, i):
    return (word >> i4(8 * i)) & i4(255)


@inner
def _signed_byte(word, i):
    return (((word >> i4(8 * i)) & i4(255)) ^ i4(128)) - i4(128)


@inner
def _put(strip, part, i, value):
    store(strip, part + 16 * i, value)


@inner
def _low_half(word):
    """The float16 in the lower half of each lane, as the bits of a float32."""
    return bits(f16_value(word & i4(0xFFFF)))


@inner
def _high_half(word):
    return bits(f16_value(word >> i4(16)))


@inner
def _put_digits(strip, word, value):
    """Four bytes of weights, plus 128, as two digits: the run of low ones, then that of high ones."""
    at = word // 8 * 16 + word % 8
    _put(strip, LEVELS, at, value & _NIBBLES)
    _put(strip, LEVELS, at + 8, (value >> i4(4)) & _NIBBLES)


@inner
def _q45(kind, blocks, at, stride, b, strip):
    """Q4_0, Q4_1, Q5_0, Q5_1: scale, minimum, fifth bits, nibbles; weight i beside weight i + 16."""
    first = load_words(blocks, at, stride)
    five = kind in (Q5_0, Q5_1)
    affine = kind in (Q4_1, Q5_1)
    at += 4 if affine else 2
    fifths = splat(i4(0))
    if five:
        fifths = load_words(blocks, at, stride)
        at += 4
    for i in range(4):
        nibbles = load_words(blocks, at + 4 * i, stride)
        low, high = nibbles & _NIBBLES, (nibbles >> i4(4)) & _NIBBLES
        if five:
            low = low | ((_spread(fifths >> i4(4 * i))) << i4(4))
            high = high | ((_spread(fifths >> i4(4 * i + 16))) << i4(4))
        _put(strip, LEVELS, 8 * b + i, low)
        _put(strip, LEVELS, 8 * b + 4 + i, high)
    _put(strip, D, b, _low_half(first))
    if affine:
        _put(strip, M, b, _high_half(first))
    if five:
        _put(strip, SCALES, 2 * b, splat(_ONE))
        _put(strip, SCALES, 2 * b + 1, splat(_ONE))
    else:
        _put(strip, SCALES, b, splat(_ONE))


@inner
def _spread(bit4):
    """Bits 0 to 3 into the lowest bits of the four bytes."""
    return ((bit4 & i4(15)) * _SPREAD) & _ONES


@inner
def _bytes(kind, blocks, at, stride, b, strip):
    """Q8_0 and IQ4_NL: signed bytes, or indices of such."""
    _put(strip, D, b, _low_half(load_words(blocks, at, stride)))
    if kind == Q8_0:
        for i in range(8):
            _put_digits(strip, 8 * b + i, load_words(blocks, at + 2 + 4 * i, stride) ^ _SIGNS)
    else:
        _indices(blocks, at + 2, stride, 8 * b, strip)
    _put(strip, SCALES, 2 * b, splat(_ONE))
    _put(strip, SCALES, 2 * b + 1, splat(_ONE << i4(4)))


@inner
def _indices(blocks, at, stride, word, strip):
    """32 indices into IQ4's values."""
    for i in range(4):
        nibbles = load_words(blocks, at + 4 * i, stride)
        _put_digits(strip, word + i, look_up(_IQ4, nibbles & _NIBBLES))
        _put_digits(strip, word + 4 + i, look_up(_IQ4, (nibbles >> i4(4)) & _NIBBLES))


@inner
def _mxfp4(blocks, at, stride, b, strip):
    exponent = load_words(blocks, at, stride) & i4(255)
    tiny = splat(i4(0x00200000)) << (exponent & i4(1))
    _put(strip, D, b, select(exponent < i4(2), tiny, (exponent - i4(1)) << i4(23)))
    for i in range(4):
        nibbles = load_words(blocks, at + 1 + 4 * i, stride)
        _put(strip, LEVELS, 8 * b + i, look_up(_E2M1, nibbles & _NIBBLES))
        _put(strip, LEVELS, 8 * b + 4 + i, look_up(_E2M1, (nibbles >> i4(4)) & _NIBBLES))
    _put(strip, SCALES, 2 * b, splat(_ONE))
    _put(strip, SCALES, 2 * b + 1, splat(_ONE))


@inner
def _q2_k(blocks, at, stride, strip):
    for part in range(2):
        for i in range(8):
            quads = load_words(blocks, at + 16 + 32 * part + 4 * i, stride)
            for j in range(4):
                _put(strip, LEVELS, 32 * part + 8 * j + i, (quads >> i4(2 * j)) & _TWOS)
    for i in range(4):
        codes = load_words(blocks, at + 4 * i, stride)
        scales, minima = codes & _NIBBLES, (codes >> i4(4)) & _NIBBLES
        for j in range(4):
            _put(strip, SCALES, 4 * i + j, _twice(_byte(scales, j)))
        for j in range(2):
            offset = _pair(i4(0) - _byte(minima, 2 * j), i4(0) - _byte(minima, 2 * j + 1))
            _put(strip, OFFSETS, 2 * i + j, offset)
    both = load_words(blocks, at + 80, stride)
    _put(strip, D, 0, _low_half(both))
    _put(strip, M, 0, _high_half(both))


@inner
def _q3_k(blocks, at, stride, strip):
    for i in range(8):
        thirds = load_words(blocks, at + 4 * i, stride)
        for part in range(2):
            quads = load_words(blocks, at + 32 + 32 * part + 4 * i, stride)
            for j in range(4):
                third = (thirds >> i4(4 * part + j)) & _ONES
                _put(strip, LEVELS, 32 * part + 8 * j + i, ((quads >> i4(2 * j)) & _TWOS) | (third << i4(2)))
    high = load_words(blocks, at + 104, stride)
    for i in range(2):
        low = load_words(blocks, at + 96 + 4 * i, stride)
        for nibble in range(2):  # scales 4 i + 8 nibble to 4 i + 8 nibble + 3
            first = 4 * i + 8 * nibble
            codes = ((low >> i4(4 * nibble)) & _NIBBLES) | (((high >> i4(2 * (first // 4))) & _TWOS) << i4(4))
            for j in range(0, 4, 2):
                a, b = _byte(codes, j) - i4(32), _byte(codes, j + 1) - i4(32)
                _put(strip, SCALES, first + j, _twice(a))
                _put(strip, SCALES, first + j + 1, _twice(b))
                _put(strip, OFFSETS, (first + j) // 2, _pair(a * i4(-4), b * i4(-4)))
    _put(strip, D, 0, _high_half(load_words(blocks, at + 106, stride)))


@inner
def _q45_k(kind, blocks, at, stride, strip):
    both = load_words(blocks, at, stride)
    _put(strip, D, 0, _low_half(both))
    _put(strip, M, 0, _high_half(both))
    a, b, c = (
        load_words(blocks, at + 4, stride),
        load_words(blocks, at + 8, stride),
        load_words(blocks, at + 12, stride),
    )
    sixes = i4(0x3F3F3F3F)
    for half in range(2):
        if half == 0:
            scales, minima = a & sixes, b & sixes
        else:
            scales = (c & _NIBBLES) | (((a >> i4(6)) & _TWOS) << i4(4))
            minima = ((c >> i4(4)) & _NIBBLES) | (((b >> i4(6)) & _TWOS) << i4(4))
        for j in range(4):
            scale, sub = _twice(_byte(scales, j)), 4 * half + j
            if kind == Q5_K:
                _put(strip, SCALES, 2 * sub, scale)
                _put(strip, SCALES, 2 * sub + 1, scale)
            else:
                _put(strip, SCALES, sub, scale)
            _put(strip, OFFSETS, sub, _twice(i4(0) - _byte(minima, j)))
    nibbles_at = at + 48 if kind == Q5_K else at + 16
    for i in range(8):
        fifths = splat(i4(0))
        if kind == Q5_K:
            fifths = load_words(blocks, at + 16 + 4 * i, stride)
        for part in range(4):
            nibbles = load_words(blocks, nibbles_at + 32 * part + 4 * i, stride)
            low, high = nibbles & _NIBBLES, (nibbles >> i4(4)) & _NIBBLES
            if kind == Q5_K:
                low = low | (((fifths >> i4(2 * part)) & _ONES) << i4(4))
                high = high | (((fifths >> i4(2 * part + 1)) & _ONES) << i4(4))
            _put(strip, LEVELS, 16 * part + i, low)
            _put(strip, LEVELS, 16 * part + 8 + i, high)


@inner
def _q6_k(blocks, at, stride, strip):
    for part in range(2):
        for i in range(8):
            a = load_words(blocks, at + 64 * part + 4 * i, stride)
            b = load_words(blocks, at + 64 * part + 32 + 4 * i, stride)
            top = load_words(blocks, at + 128 + 32 * part + 4 * i, stride)
            word = 32 * part + i
            _put(strip, LEVELS, word, (a & _NIBBLES) | ((top & _TWOS) << i4(4)))
            _put(strip, LEVELS, word + 8, (b & _NIBBLES) | (((top >> i4(2)) & _TWOS) << i4(4)))
            _put(strip, LEVELS, word + 16, ((a >> i4(4)) & _NIBBLES) | (((top >> i4(4)) & _TWOS) << i4(4)))
            _put(strip, LEVELS, word + 24, ((b >> i4(4)) & _NIBBLES) | (((top >> i4(6)) & _TWOS) << i4(4)))
    for i in range(4):
        codes = load_words(blocks, at + 192 + 4 * i, stride)
        for j in range(0, 4, 2):
            a, b = _signed_byte(codes, j), _signed_byte(codes, j + 1)
            for run in range(2):  # a scale for 16 weights, a run of 8
                _put(strip, SCALES, 8 * i + 2 * j + run, _twice(a))
                _put(strip, SCALES, 8 * i + 2 * j + 2 + run, _twice(b))
            _put(strip, OFFSETS, 2 * i + j // 2, _pair(a * i4(-32), b * i4(-32)))
    _put(strip, D, 0, _high_half(load_words(blocks, at + 206, stride)))


@inner
def _iq4_xs(blocks, at, stride, strip):
    both = load_words(blocks, at, stride)
    _put(strip, D, 0, _low_half(both))
    low = load_words(blocks, at + 4, stride)
    for j in range(8):
        code = ((low >> i4(4 * j)) & i4(15)) | (((both >> i4(16 + 2 * j)) & i4(3)) << i4(4))
        scale = code - i4(32)
        _put(strip, SCALES, 2 * j, _twice(scale))
        _put(strip, SCALES, 2 * j + 1, _twice(scale << i4(4)))
        _put(strip, OFFSETS, j, _twice(scale * i4(-128)))
        _indices(blocks, at + 8 + 16 * j, stride, 8 * j, strip)


@inner
def unpack(kind, blocks, at, stride, b, strip):
    """One block of each of sixteen rows into its place in a strip.

    kind: the type's number in `forms`.   blocks: uint8, the first row's block at `at`, the others `stride` bytes apart.
    b: the block's number in the strip, 0 for those of 256 weights.   strip: int32[SIZE].
    """
    if kind in (Q4_0, Q4_1, Q5_0, Q5_1):
        _q45(kind, blocks, at, stride, b, strip)
    elif kind in (Q8_0, IQ4_NL):
        _bytes(kind, blocks, at, stride, b, strip)
    elif kind == MXFP4:
        _mxfp4(blocks, at, stride, b, strip)
    elif kind == Q2_K:
        _q2_k(blocks, at, stride, strip)
    elif kind == Q3_K:
        _q3_k(blocks, at, stride, strip)
    elif kind in (Q4_K, Q5_K):
        _q45_k(kind, blocks, at, stride, strip)
    elif kind == Q6_K:
        _q6_k(blocks, at, stride, strip)
    else:
        _iq4_xs(blocks, at, stride, strip)
