"""Kernels of stored integers: codes out of words, into blocks as they are, and into the floats they stand for.

A code is a byte, or an int8 where `flip` is 128.  Eight numbers of four bits stand in a word of 32, lowest bits first.
"""

import numpy as np
from numba import types

from llmconv.quant.kernels.compiling.build import F32, I32, U8, inner, kernel, out
from llmconv.quant.kernels.q32 import get_quants, put_quants
from llmconv.quant.kernels.vectors.lanes import OUT_F32, OUT_U8, i4
from llmconv.quant.kernels.vectors.memory import gather, load_i32, store, store_u16
from llmconv.quant.kernels.vectors.simd import to_float, to_u8
from llmconv.quant.kernels.vectors.stack import empty

u8 = np.uint64
_OUT_U64 = out(types.uint64)
_TILE = 8
"""Words of a tile's side: as many rows of them as a line of the cache has bytes for."""


@inner
def _spread(word):
    """The eight numbers of a word, each in a byte of a uint64."""
    x = u8(np.uint32(word))
    x = (x | (x << u8(16))) & u8(0x0000FFFF0000FFFF)
    x = (x | (x << u8(8))) & u8(0x00FF00FF00FF00FF)
    return (x | (x << u8(4))) & u8(0x0F0F0F0F0F0F0F0F)


@inner
def _less(x, offset):
    """Bytes 0 … 15 less `offset`, as int8, none borrowing from its neighbour."""
    high = u8(0x8080808080808080)
    return ((x | high) - u8(offset) * u8(0x0101010101010101)) ^ high


@kernel(I32, types.int64, _OUT_U64)
def unpack_along(words, offset, out):
    """Words one behind another."""
    for i in range(words.size):
        out[i] = _less(_spread(words[i]), offset)


@kernel(I32, types.int64, types.int64, types.int64, _OUT_U64)
def unpack_down(words, stride, first, count, out):
    """A matrix of words (rows, stride), each eight numbers of a column: columns first … first + count as rows."""
    rows = words.size // stride
    for column in range(0, count, _TILE):
        wide = min(_TILE, count - column)
        for row in range(0, rows, _TILE):
            high = min(_TILE, rows - row)
            for c in range(column, column + wide):
                for r in range(row, row + high):
                    out[c * rows + r] = _spread(words[r * stride + first + c])


@inner
def _exchange(x, step, mask):
    """One of the three steps in which eight rows of eight bytes become their columns."""
    shift = u8(8 * step)
    for i in range(8):
        if i & step == 0:
            t = ((x[i] >> shift) ^ x[i + step]) & mask
            x[i + step] ^= t
            x[i] ^= t << shift


@kernel(I32, types.int64, types.int64, types.int64, I32, _OUT_U64)
def unpack_across(words, stride, first, count, places, out):
    """A matrix of words (k, stride), each eight numbers of a row: columns of words first … first + count as rows.

    places: which of its eight rows each number of a word is in.   k is a multiple of 8.
    """
    x = empty(8, np.uint64)
    rows = words.size // stride
    each = rows // 8
    for row in range(each):
        for c in range(count):
            for i in range(8):
                x[i] = _spread(words[(8 * row + i) * stride + first + c])
            _exchange(x, 4, u8(0x00000000FFFFFFFF))
            _exchange(x, 2, u8(0x0000FFFF0000FFFF))
            _exchange(x, 1, u8(0x00FF00FF00FF00FF))
            for i in range(8):
                out[(8 * c + places[i]) * each + row] = x[i]


@inner
def _codes(codes, at, flip):
    return (load_i32(codes, at) ^ flip) - flip


@kernel(U8, types.int64, I32, I32, types.int64, OUT_U8)
def to_blocks(codes, flip, zeros, scales, width, out):
    """Codes less their zero points -> Q4_0, Q5_0, Q8_0 (width 4, 5, 8).

    zeros, scales: one for each 32 codes; scales are the bits of float16 numbers.
    """
    size = 2 + 4 * width
    half = i4(0) if width == 8 else i4(1) << i4(width - 1)
    flip = i4(flip)
    for block in range(codes.size // 32):
        at, shift = size * block, half - zeros[block]
        store_u16(out, at, scales[block])
        low, high = _codes(codes, 32 * block, flip) + shift, _codes(codes, 32 * block + 16, flip) + shift
        if width == 8:
            store(out, at + 2, to_u8(low))
            store(out, at + 18, to_u8(high))
        else:
            put_quants(out, at + 2, low, high, width)


@kernel(U8, I32, I32, types.int64, OUT_U8)
def to_affine(codes, scales, sums, width, out):
    """Codes -> Q4_1, Q5_1 (width 4, 5), under scales and sums, one for each 32 codes, bits of float16 numbers."""
    size = 4 + 4 * width
    for block in range(codes.size // 32):
        at = size * block
        store_u16(out, at, scales[block])
        store_u16(out, at + 2, sums[block])
        put_quants(out, at + 4, load_i32(codes, 32 * block), load_i32(codes, 32 * block + 16), width)


@kernel(U8, types.int64, types.int64, types.int64, OUT_U8)
def of_blocks(blocks, width, fields, offset, out):
    """Blocks of 32 -> the numbers in them, plus `offset`; fields: bytes of scale and sum before the numbers."""
    size = fields + 4 * width
    shift = i4(offset)
    for block in range(out.size // 32):
        at = size * block + fields
        if width == 8:
            low, high = load_i32(blocks, at), load_i32(blocks, at + 16)
        else:
            low, high = get_quants(blocks, at, width)
        store(out, 32 * block, to_u8(low + shift))
        store(out, 32 * block + 16, to_u8(high + shift))


@kernel(U8, OUT_U8)
def pack_along(codes, out):
    """Numbers of four bits, two in a byte, the first in its low half."""
    for i in range(out.size):
        out[i] = (codes[2 * i] & 15) | (codes[2 * i + 1] << 4)


@kernel(U8, types.int64, types.int64, F32, F32, F32, OUT_F32)
def to_floats(codes, flip, span, zeros, scales, biases, out):
    """(code - zero) * scale + bias, one of each for `span` codes (a multiple of 16); no biases: none is added."""
    flip = i4(flip)
    for group in range(codes.size // span):
        zero, scale = zeros[group], scales[group]
        if biases.size:
            bias = biases[group]
            for at in range(group * span, (group + 1) * span, 16):
                store(out, at, (to_float(_codes(codes, at, flip)) - zero) * scale + bias)
        else:
            for at in range(group * span, (group + 1) * span, 16):
                store(out, at, (to_float(_codes(codes, at, flip)) - zero) * scale)


@kernel(U8, F32, types.int64, F32, OUT_F32)
def looked_up(codes, table, span, scales, out):
    """table[code] * scale, one scale for `span` codes (a multiple of 16)."""
    for group in range(codes.size // span):
        scale = scales[group]
        for at in range(group * span, (group + 1) * span, 16):
            store(out, at, gather(table, load_i32(codes, at)) * scale)
