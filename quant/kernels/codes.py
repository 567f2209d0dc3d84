"""Kernels of stored integers: codes out of words, into blocks as they are, and into the floats they stand for; and what
looks at bits alone.

A code is a byte, or an int8 where `flip` is 128.  Eight numbers of four bits stand in a word of 32, lowest bits first.
"""

import numpy as np
from numba import types

from llmconv.quant.kernels.compiling.build import F32, I32, U8, inner, kernel, out
from llmconv.quant.kernels.q32 import get_quants, put_quants
from llmconv.quant.kernels.vectors.lanes import OUT_F32, OUT_U8, i4
from llmconv.quant.kernels.vectors.memory import gather, load, load_i32, store, store_u16, transpose
from llmconv.quant.kernels.vectors.simd import (
    any_lane,
    f16_bits,
    from_bits,
    halves,
    max_,
    reduce_umax,
    splat,
    to_float,
    to_u8,
)
from llmconv.quant.kernels.vectors.stack import empty

u8 = np.uint64
_OUT_U64 = out(types.uint64)
_PLACES = np.array([0, 4, 8, 12, 16, 20, 24, 28] * 2, np.int32)
"""Bits before each number of a word, of two words."""
_SIXTEEN = np.arange(16, dtype=np.int32)


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


@kernel(F32, types.int64, types.int64, types.int64, OUT_F32)
def turn(words, width, first, across, out):
    """Rows of `width` words become columns `first` and on of rows of `across` words.

    Words are handed in as float32 and only moved.
    """
    rows, tile, near = words.size // width, empty(256, np.float32), empty(256, np.float32)
    for column in range(0, width, 16):
        for row in range(0, rows, 16):
            if column + 16 <= width and row + 16 <= rows:
                for i in range(16):  # rows that lie a power of two apart push each other out of the cache
                    store(near, 16 * i, load(words, (row + i) * width + column))
                transpose(near, 0, 16, tile, 0)
                for i in range(16):
                    store(out, (column + i) * across + first + row, load(tile, 16 * i))
            else:
                for i in range(column, min(column + 16, width)):
                    for j in range(row, min(row + 16, rows)):
                        out[i * across + first + j] = words[j * width + i]


@inner
def _exchange(a, b, shift, mask):
    """Numbers of `shift` bits, of one vector's high halves and another's low ones, change places."""
    t = ((a >> i4(shift)) ^ b) & i4(mask)
    return a ^ (t << i4(shift)), b ^ t


@inner
def _exchanged(words, at, stride, x, to):
    """Eight rows of sixteen words of eight numbers: those that were first in their words, then the second, ..."""
    a, b, c, d = (load_i32(words, at), load_i32(words, at + stride), load_i32(words, at + 2 * stride),
                  load_i32(words, at + 3 * stride))  # fmt: skip
    at += 4 * stride
    e, f, g, h = (load_i32(words, at), load_i32(words, at + stride), load_i32(words, at + 2 * stride),
                  load_i32(words, at + 3 * stride))  # fmt: skip
    a, e = _exchange(a, e, 16, 0x0000FFFF)
    b, f = _exchange(b, f, 16, 0x0000FFFF)
    c, g = _exchange(c, g, 16, 0x0000FFFF)
    d, h = _exchange(d, h, 16, 0x0000FFFF)
    a, c = _exchange(a, c, 8, 0x00FF00FF)
    b, d = _exchange(b, d, 8, 0x00FF00FF)
    e, g = _exchange(e, g, 8, 0x00FF00FF)
    f, h = _exchange(f, h, 8, 0x00FF00FF)
    a, b = _exchange(a, b, 4, 0x0F0F0F0F)
    c, d = _exchange(c, d, 4, 0x0F0F0F0F)
    e, f = _exchange(e, f, 4, 0x0F0F0F0F)
    g, h = _exchange(g, h, 4, 0x0F0F0F0F)
    store(x, to, from_bits(a))
    store(x, to + 256, from_bits(b))
    store(x, to + 512, from_bits(c))
    store(x, to + 768, from_bits(d))
    store(x, to + 1024, from_bits(e))
    store(x, to + 1280, from_bits(f))
    store(x, to + 1536, from_bits(g))
    store(x, to + 1792, from_bits(h))


@kernel(I32, types.int64, types.int64, types.int64, I32, OUT_F32)
def turn_numbers(words, width, first, across, places, out):
    """Rows of `width` words, eight numbers of four bits in each, become columns of numbers, in words as well.

    Eight rows make one word of each new row.   places: which of its eight new rows each number of a word goes to.
    first, across: as of `turn`, in words.   out: words, as float32.   There are a multiple of eight rows.
    """
    x, y, edge = empty(2048, np.float32), empty(256, np.float32), empty(128, np.int32)
    groups = words.size // width // 8
    for group in range(0, groups, 16):
        deep = min(16, groups - group)
        for column in range(0, width, 16):
            wide = min(16, width - column)
            for g in range(deep):
                at = 8 * (group + g) * width + column
                if wide == 16:
                    _exchanged(words, at, width, x, 16 * g)
                else:
                    for i in range(8):
                        for c in range(wide):
                            edge[16 * i + c] = words[at + i * width + c]
                    _exchanged(edge, 0, 16, x, 16 * g)
            for p in range(8):
                transpose(x, 256 * p, 16, y, 0)
                for c in range(wide):
                    to = (8 * (column + c) + places[p]) * across + first + group
                    if deep == 16:
                        store(out, to, load(y, 16 * c))
                    else:
                        for g in range(deep):
                            out[to + g] = y[16 * c + g]


@inner
def _sixteen(words, at):
    """The numbers of four bits in two words."""
    return (halves(words[at], words[at + 1]) >> load_i32(_PLACES, 0)) & i4(15)


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


@kernel(I32, types.int64, I32, I32, I32, types.int64, OUT_U8)
def words_to_blocks(words, span, zeros, scales, sums, width, out):
    """As `to_blocks`, of numbers of four bits; with sums, as `to_affine`, and without zero points.

    span: columns that share a scale, and a zero point or a sum, a multiple of 32.
    """
    fields = 4 if sums.size else 2
    size = fields + 4 * width
    half = i4(0) if width == 8 else i4(1) << i4(width - 1)
    for group in range(scales.size):
        shift = i4(0) if sums.size else half - zeros[group]
        for block in range(group * span // 32, (group + 1) * span // 32):
            at = size * block
            store_u16(out, at, scales[group])
            if sums.size:
                store_u16(out, at + 2, sums[group])
            low, high = _sixteen(words, 4 * block) + shift, _sixteen(words, 4 * block + 2) + shift
            if width == 8:
                store(out, at + fields, to_u8(low))
                store(out, at + fields + 16, to_u8(high))
            else:
                put_quants(out, at + fields, low, high, width)


@kernel(U8, types.int64, I32, types.int64, I32, I32, I32, OUT_U8)
def blocks_differ(blocks, width, words, span, zeros, scales, sums, out):
    """out[0]: whether blocks hold other numbers, scales or sums than `words_to_blocks` is given."""
    out[0] = 0
    fields = 4 if sums.size else 2
    size = fields + 4 * width
    half = i4(0) if width == 8 else i4(1) << i4(width - 1)
    for group in range(scales.size):
        shift = i4(0) if sums.size else half - zeros[group]
        beside = scales[group] & 0xFFFF
        wrong, odd = splat(i4(0)), i4(0)
        for block in range(group * span // 32, (group + 1) * span // 32):
            at = size * block
            odd |= (i4(blocks[at]) | (i4(blocks[at + 1]) << 8)) ^ beside
            if sums.size:
                odd |= (i4(blocks[at + 2]) | (i4(blocks[at + 3]) << 8)) ^ (sums[group] & 0xFFFF)
            if width == 8:
                low, high = _codes(blocks, at + fields, i4(128)), _codes(blocks, at + fields + 16, i4(128))
            else:
                low, high = get_quants(blocks, at + fields, width)
            low, high = low - _sixteen(words, 4 * block) - shift, high - _sixteen(words, 4 * block + 2) - shift
            wrong = wrong | low | high
        if odd != 0 or any_lane(wrong != i4(0)):
            out[0] = 1
            return


@kernel(U8, types.int64, U8, types.int64, I32, I32, I32, OUT_U8)
def blocks_differ_from_codes(blocks, width, codes, flip, zeros, scales, sums, out):
    """As `blocks_differ`, of codes, with a zero point, a scale and a sum for each 32 of them (`to_blocks`)."""
    out[0] = 0
    fields = 4 if sums.size else 2
    size, flip = fields + 4 * width, i4(flip)
    half = i4(0) if width == 8 else i4(1) << i4(width - 1)
    for block in range(scales.size):
        at = size * block
        odd = (i4(blocks[at]) | (i4(blocks[at + 1]) << 8)) ^ (scales[block] & 0xFFFF)
        if sums.size:
            odd |= (i4(blocks[at + 2]) | (i4(blocks[at + 3]) << 8)) ^ (sums[block] & 0xFFFF)
            shift = i4(0)
        else:
            shift = half - zeros[block]
        if width == 8:
            low, high = _codes(blocks, at + fields, i4(128)), _codes(blocks, at + fields + 16, i4(128))
        else:
            low, high = get_quants(blocks, at + fields, width)
        low = low - _codes(codes, 32 * block, flip) - shift
        high = high - _codes(codes, 32 * block + 16, flip) - shift
        if odd != 0 or any_lane((low | high) != i4(0)):
            out[0] = 1
            return


@kernel(F32, out(types.int32))
def half_bits(numbers, out):
    """The bits of float32 numbers as float16."""
    whole = numbers.size // 16 * 16
    for at in range(0, whole, 16):
        store(out, at, f16_bits(load(numbers, at)))
    for at in range(whole, numbers.size):
        out[at] = f16_bits(numbers[at])


@kernel(U8, I32, I32, types.int64, OUT_U8)
def to_affine(codes, scales, sums, width, out):
    """Codes -> Q4_1, Q5_1 (width 4, 5), under scales and sums, one for each 32 codes, bits of float16 numbers."""
    size = 4 + 4 * width
    for block in range(codes.size // 32):
        at = size * block
        store_u16(out, at, scales[block])
        store_u16(out, at + 2, sums[block])
        put_quants(out, at + 4, load_i32(codes, 32 * block), load_i32(codes, 32 * block + 16), width)


@kernel(U8, types.int64, types.int64, types.int64, types.int64, types.int64, OUT_U8)
def of_blocks(blocks, width, fields, offset, columns, stride, out):
    """Blocks of 32 -> the numbers in them, plus `offset`; fields: bytes of scale and sum before the numbers.

    columns, stride: numbers of a row, and bytes from one row of them to the next.
    """
    size = fields + 4 * width
    shift = i4(offset)
    at = fields
    for row in range(out.size // stride):
        for to in range(row * stride, row * stride + columns, 32):
            if width == 8:
                low, high = load_i32(blocks, at), load_i32(blocks, at + 16)
            else:
                low, high = get_quants(blocks, at, width)
            store(out, to, to_u8(low + shift))
            store(out, to + 16, to_u8(high + shift))
            at += size


@kernel(I32, types.int64, I32, types.int64, types.int64, OUT_U8)
def of_words(words, span, zeros, columns, stride, out):
    """Numbers of four bits, each less the zero point of its `span` (a multiple of 16); rows as of `of_blocks`."""
    group, at = 0, 0
    for row in range(out.size // stride):
        for first in range(row * stride, row * stride + columns, span):
            zero = zeros[group]
            for to in range(first, first + span, 16):
                store(out, to, to_u8(_sixteen(words, at) - zero))
                at += 2
            group += 1


@kernel(I32, I32, OUT_U8)
def differ(one, other, out):
    """out[0]: whether two arrays of so many numbers differ."""
    out[0] = 0
    whole = one.size // 16 * 16
    for at in range(0, whole, 16):
        if any_lane(load_i32(one, at) != load_i32(other, at)):
            out[0] = 1
            return
    for at in range(whole, one.size):
        if one[at] != other[at]:
            out[0] = 1


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


@kernel(U8, types.int64, I32, types.int64, F32, F32, OUT_F32)
def to_floats_in_order(codes, flip, order, groups, zeros, scales, out):
    """As `to_floats`, column i of each row in the group order[i] of its `groups`; rows of a multiple of 16 columns."""
    flip, k = i4(flip), order.size
    for row in range(codes.size // k):
        first = i4(row * groups)
        for column in range(0, k, 16):
            at, group = row * k + column, load_i32(order, column) + first
            store(out, at, (to_float(_codes(codes, at, flip)) - gather(zeros, group)) * gather(scales, group))


@kernel(I32, I32, types.int64, F32, F32, OUT_F32, OUT_F32)
def words_to_floats_in_order(words, order, groups, zeros, scales, table, out):
    """The same of numbers of four bits.   table: room for what each of the sixteen is in each group of a row.

    One number is looked up for a weight then, not a zero point and a scale.
    """
    k, numbers = order.size, to_float(load_i32(_SIXTEEN, 0))
    for row in range(8 * words.size // k):
        for group in range(groups):
            store(table, 16 * group, (numbers - zeros[row * groups + group]) * scales[row * groups + group])
        for at in range(row * k, (row + 1) * k, 16):
            place = load_i32(order, at - row * k) << i4(4)
            store(out, at, gather(table, place + _sixteen(words, at >> 3)))


@kernel(I32, types.int64, F32, F32, F32, OUT_F32)
def words_to_floats(words, span, zeros, scales, biases, out):
    """As `to_floats`, of numbers of four bits."""
    for group in range(8 * words.size // span):
        zero, scale = zeros[group], scales[group]
        if biases.size:
            bias = biases[group]
            for at in range(group * span, (group + 1) * span, 16):
                store(out, at, (to_float(_sixteen(words, at >> 3)) - zero) * scale + bias)
        else:
            for at in range(group * span, (group + 1) * span, 16):
                store(out, at, (to_float(_sixteen(words, at >> 3)) - zero) * scale)


@kernel(U8, F32, types.int64, F32, OUT_F32)
def looked_up(codes, table, span, scales, out):
    """table[code] * scale, one scale for `span` codes (a multiple of 16)."""
    for group in range(codes.size // span):
        scale = scales[group]
        for at in range(group * span, (group + 1) * span, 16):
            store(out, at, gather(table, load_i32(codes, at)) * scale)


@inner
def _size(bits, at):
    return load_i32(bits, at) & i4(0x7FFFFFFF)


@kernel(I32, out(types.int32))
def largest(bits, found):
    """found[0]: the largest magnitude of float32 numbers, as its bits: those are ordered as the numbers are."""
    a = b = splat(i4(0))
    whole = bits.size // 32 * 32
    for at in range(0, whole, 32):
        a, b = max_(a, _size(bits, at)), max_(b, _size(bits, at + 16))
    most = np.int32(reduce_umax(max_(a, b)))
    for at in range(whole, bits.size):
        most = max(most, np.int32(bits[at] & 0x7FFFFFFF))
    found[0] = most
