"""Decoding the codebook types (IQ1_*, IQ2_*, IQ3_*): eight or four weights an entry of a grid, signs apart.

Each kernel takes the grid as flat bytes (see `llmconv.quant.blocks.iq`).  Source of the layouts and rules: `block_iq*`
and `dequantize_row_iq*` in ggml.
"""

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from llmconv.quant.kernels.compiling.build import U8, inner, kernel
from llmconv.quant.kernels.terms.rules import FULL_SIGNS
from llmconv.quant.kernels.vectors.codegen import LANES, i32x16, pointer
from llmconv.quant.kernels.vectors.lanes import LANE, OUT_F32, f4, fill, get_f16, get_u16, get_u32, i4
from llmconv.quant.kernels.vectors.memory import load, load_i32, store
from llmconv.quant.kernels.vectors.simd import f16_value, from_bits, splat, to_float
from llmconv.quant.kernels.vectors.stack import empty

_TO_TOP = 31 - LANE
_SIGN, _ONE = i4(-(2**31)), i4(0x3F800000)


def _entries(context, builder, sig, args):
    """The bytes of the numbered grid entries, one after another, as sixteen integers."""
    table, indices = args[0], args[1:]
    width = LANES // len(indices)
    entry = ir.VectorType(ir.IntType(8), width)
    parts = []
    for index in indices:
        at = builder.mul(builder.zext(index, ir.IntType(64)), ir.Constant(ir.IntType(64), width))
        value = builder.load(pointer(context, builder, sig.args[0], table, at, entry))
        value.align = 1
        parts.append(value)
    while len(parts) > 1:
        both = [ir.Constant(ir.IntType(32), i) for i in range(2 * parts[0].type.count)]
        picks = ir.Constant(ir.VectorType(ir.IntType(32), len(both)), both)
        parts = [builder.shuffle_vector(a, b, picks) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return builder.zext(parts[0], ir.VectorType(ir.IntType(32), LANES))


@intrinsic
def two_entries(typingctx, table, i, j):
    """Entries i and j (uint32) of a uint8 grid eight wide -> i32x16."""
    return i32x16(table, types.uint32, types.uint32), _entries


@intrinsic
def four_entries(typingctx, table, i, j, k, m):
    """Entries i, j, k and m (uint32) of a uint8 grid four wide -> i32x16."""
    return i32x16(table, *[types.uint32] * 4), _entries


@inner
def signed(values, signs):
    """`values` with lane i negated where bit i of `signs` is set."""
    return values * from_bits(((splat(i4(signs)) << load_i32(_TO_TOP, 0)) & _SIGN) | _ONE)


@inner
def _signs7(word, n):
    """Fields n and n + 1 (seven bits each) of `word` as sixteen signs."""
    low = FULL_SIGNS[(word >> np.uint32(7 * n)) & np.uint32(127)]
    high = FULL_SIGNS[(word >> np.uint32(7 * n + 7)) & np.uint32(127)]
    return i4(low) | (i4(high) << i4(8))


@inner
def _quarter(d, level):
    return d * (f4(0.5) + f4(level)) * f4(0.25)


@kernel(U8, U8, OUT_F32)
def decode_iq2_xxs(blocks, grid, out):
    for block in range(blocks.size // 66):
        start, d = 66 * block, get_f16(blocks, 66 * block)
        for part in range(8):
            at = start + 2 + 8 * part
            word = get_u32(blocks, at + 4)
            scale = _quarter(d, word >> np.uint32(28))
            for n in range(0, 4, 2):
                values = to_float(two_entries(grid, blocks[at + n], blocks[at + n + 1]))
                store(out, 256 * block + 32 * part + 8 * n, signed(values * scale, _signs7(word, n)))


@kernel(U8, U8, OUT_F32)
def decode_iq2_xs(blocks, grid, out):
    for block in range(blocks.size // 74):
        start, d = 74 * block, get_f16(blocks, 74 * block)
        for part in range(16):
            scale = _quarter(d, (blocks[start + 66 + part // 2] >> (4 * (part % 2))) & 15)
            a, b = get_u16(blocks, start + 2 + 4 * part), get_u16(blocks, start + 4 + 4 * part)
            values = to_float(two_entries(grid, a & 511, b & 511))
            signs = i4(FULL_SIGNS[a >> 9]) | (i4(FULL_SIGNS[b >> 9]) << i4(8))
            store(out, 256 * block + 16 * part, signed(values * scale, signs))


@kernel(U8, U8, OUT_F32)
def decode_iq2_s(blocks, grid, out):
    for block in range(blocks.size // 82):
        start, d = 82 * block, get_f16(blocks, 82 * block)
        for part in range(16):
            scale = _quarter(d, (blocks[start + 74 + part // 2] >> (4 * (part % 2))) & 15)
            high = np.uint32(blocks[start + 66 + part // 2] >> (4 * (part % 2)))
            a = blocks[start + 2 + 2 * part] | ((high & 3) << 8)
            b = blocks[start + 3 + 2 * part] | ((high & 12) << 6)
            values = to_float(two_entries(grid, a, b))
            store(out, 256 * block + 16 * part, signed(values * scale, get_u16(blocks, start + 34 + 2 * part)))


@kernel(U8, U8, OUT_F32)
def decode_iq3_xxs(blocks, grid, out):
    for block in range(blocks.size // 98):
        start, d = 98 * block, get_f16(blocks, 98 * block)
        for part in range(8):
            word = get_u32(blocks, start + 66 + 4 * part)
            scale = d * (f4(0.5) + f4(word >> np.uint32(28))) * f4(0.5)
            for n in range(0, 4, 2):
                at = start + 2 + 8 * part + 2 * n
                values = to_float(four_entries(grid, blocks[at], blocks[at + 1], blocks[at + 2], blocks[at + 3]))
                store(out, 256 * block + 32 * part + 8 * n, signed(values * scale, _signs7(word, n)))


@kernel(U8, U8, OUT_F32)
def decode_iq3_s(blocks, grid, out):
    for block in range(blocks.size // 110):
        start, d = 110 * block, get_f16(blocks, 110 * block)
        for part in range(8):
            level = (blocks[start + 106 + part // 2] >> (4 * (part % 2))) & 15
            scale = d * f4(1 + 2 * level)
            for n in range(2):
                at = start + 2 + 8 * part + 4 * n
                high = np.uint32(blocks[start + 66 + part] >> (4 * n))
                a = blocks[at] | ((high & 1) << 8)
                b = blocks[at + 1] | ((high & 2) << 7)
                c = blocks[at + 2] | ((high & 4) << 6)
                e = blocks[at + 3] | ((high & 8) << 5)
                values = to_float(four_entries(grid, a, b, c, e))
                signs = get_u16(blocks, start + 74 + 4 * part + 2 * n)
                store(out, 256 * block + 32 * part + 16 * n, signed(values * scale, signs))


@inner
def _ternary(grid, a, b):
    """Entries of the IQ1 grid, stored plus 1."""
    return to_float(two_entries(grid, a, b) - i4(1))


@kernel(U8, U8, OUT_F32)
def decode_iq1_s(blocks, grid, out):
    for block in range(blocks.size // 50):
        start, d = 50 * block, get_f16(blocks, 50 * block)
        for part in range(8):
            high = np.uint32(get_u16(blocks, start + 34 + 2 * part))
            scale = d * f4(2 * ((high >> 12) & 7) + 1)
            delta = f4(-0.125) if high & 0x8000 else f4(0.125)
            for n in range(0, 4, 2):
                at = start + 2 + 4 * part + n
                a = blocks[at] | (((high >> np.uint32(3 * n)) & 7) << 8)
                b = blocks[at + 1] | (((high >> np.uint32(3 * n + 3)) & 7) << 8)
                store(out, 256 * block + 32 * part + 8 * n, (_ternary(grid, a, b) + delta) * scale)


@kernel(U8, U8, OUT_F32)
def decode_iq1_m(blocks, grid, out):
    deltas = empty(LANES, f4)
    for block in range(blocks.size // 56):
        start = 56 * block
        half = np.uint16(0)
        for n in range(4):
            half |= (get_u16(blocks, start + 48 + 2 * n) >> 12) << (4 * n)
        d = f16_value(np.uint16(half))
        for part in range(16):
            level = (get_u16(blocks, start + 48 + 2 * (part // 4)) >> (3 * (part % 4))) & 7
            high = np.uint32(blocks[start + 32 + part])
            a = blocks[start + 2 * part] | ((high & 7) << 8)
            b = blocks[start + 2 * part + 1] | ((high & 0x70) << 4)
            fill(deltas, 0, 8, f4(-0.125) if high & 8 else f4(0.125))
            fill(deltas, 8, 16, f4(-0.125) if high & 0x80 else f4(0.125))
            values = _ternary(grid, a, b) + load(deltas, 0)
            store(out, 256 * block + 16 * part, values * (d * f4(2 * level + 1)))
