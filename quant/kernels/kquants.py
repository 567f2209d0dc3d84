"""Kernels of the K types: super-blocks of 256 weights, whose sub-blocks' scales are themselves integers.

Encoding: `search` finds every sub-block's scale; `scales_*` turns sixteen super-blocks' scales into integers, one
super-block a lane; then each super-block is written, its weights across the lanes.  The integers come from the
scales as stored; a sub-block whose stored scale is zero keeps those of the search.  Layouts: ggml's `ggml-common.h`.
"""

import numpy as np
from numba import types

from llmconv.quant.kernels.compiling.build import F32, U8, inner, kernel, out
from llmconv.quant.kernels.search import TINY, best_positive
from llmconv.quant.kernels.terms.fields import INVERSE, MINIMUM, OFFSET, SCALE, SUB
from llmconv.quant.kernels.vectors.lanes import divide, get_f16, multiply, put_f16
from llmconv.quant.kernels.vectors.memory import load, load_i32, store
from llmconv.quant.kernels.vectors.simd import fabs, max_, min_, nearest_int, select, splat, to_float, to_u8
from llmconv.quant.kernels.vectors.stack import empty

f4 = np.float32
i4 = np.int32
_BYTES, _FLOATS, _INTS = out(types.uint8), out(types.float32), out(types.int32)


# ---- the scales of a super-block


@inner
def scales_affine(found, at, n, top, weighted, limit, codes, halves):
    """Integers for `n` scales and `n` minima (`codes`: scales, then minima), and the float16 they multiply.

    A negative scale wraps as in the reference's uint8; `limit` is what the bytes are then limited to.
    """
    if weighted:
        d = best_positive(found, at, SCALE, n, top, codes, 0)
        m = best_positive(found, at, MINIMUM, n, top, codes, 16 * n)
    else:
        d, m = splat(f4(0)), splat(f4(0))
        for i in range(n):
            d, m = max_(load(found, at + SUB * i + SCALE), d), max_(load(found, at + SUB * i + MINIMUM), m)
        per_d, per_m = select(d > f4(0), top / d, f4(0)), select(m > f4(0), top / m, f4(0))
        d, m = d / top, m / top
        for i in range(n):
            for field, per, to in ((SCALE, per_d, i), (MINIMUM, per_m, n + i)):
                store(codes, 16 * to, nearest_int(per * load(found, at + SUB * i + field)) & i4(255))
    for i in range(0, 32 * n, 16):
        store(codes, i, min_(load_i32(codes, i), limit))
    store(halves, 0, d)
    store(halves, 16, m)


@inner
def get_scale_6bit(blocks, at, j):
    """The j-th (scale, minimum) of `put_scales_6bit`."""
    if j < 4:
        return blocks[at + j] & 63, blocks[at + 4 + j] & 63
    low = blocks[at + 4 + j]
    return (low & 15) | ((blocks[at + j - 4] >> 6) << 4), (low >> 4) | ((blocks[at + j] >> 6) << 4)


@inner
def put_scales_6bit(codes, lane, out, at):
    """Eight scales and eight minima of 6 bits in twelve bytes (Q4_K, Q5_K); `codes` become what is read back."""
    for j in range(4):
        scale, minimum = codes[16 * j + lane], codes[16 * (8 + j) + lane]
        scale4, minimum4 = codes[16 * (4 + j) + lane], codes[16 * (12 + j) + lane]
        out[at + j] = scale | ((scale4 >> 4) << 6)
        out[at + 4 + j] = minimum | ((minimum4 >> 4) << 6)
        out[at + 8 + j] = (scale4 & 15) | ((minimum4 & 15) << 4)
    for j in range(8):
        scale, minimum = get_scale_6bit(out, at, j)
        codes[16 * j + lane], codes[16 * (8 + j) + lane] = scale, minimum


@inner
def get_scale_3bit(blocks, at, j):
    low = (blocks[at + j % 8] >> (4 * (j // 8))) & 15
    return np.int32(low | (((blocks[at + 8 + j % 4] >> (2 * (j // 4))) & 3) << 4)) - np.int32(32)


# ---- scale and minimum: Q2_K, Q4_K, Q5_K


@inner
def affine_levels(x, x_at, n, top, d, m, codes, lane, found, base, levels):
    """The 256 integers of a super-block."""
    count = 256 // n
    for j in range(count):
        scale = d * f4(codes[16 * j + lane])
        offset = m * f4(codes[16 * (count + j) + lane])
        for i in range(n * j, n * j + n, 16):
            if scale != f4(0):
                level = divide(x, x_at + i, offset, scale, 0, top)
            else:
                at = base + SUB * j
                level = multiply(x, x_at + i, found[at + OFFSET], found[at + INVERSE], 0, top)
            store(levels, i, level)


@inner
def put_crumbs(levels, out, at):
    """256 integers of 2 bits: in each half, byte i holds weights i, i + 32, i + 64 and i + 96."""
    for i in (0, 16, 128, 144):
        quad = load_i32(levels, i) & i4(3)
        for part in (1, 2, 3):
            quad = quad | ((load_i32(levels, i + 32 * part) & i4(3)) << i4(2 * part))
        store(out, at + i % 128 + i // 128 * 32, to_u8(quad))


@inner
def put_bit(levels, bit, out, at):
    """One bit of 256 integers: bit j of byte i is that of weight 32 * j + i."""
    for i in (0, 16):
        byte = splat(i4(0))
        for j in range(8):
            byte = byte | (((load_i32(levels, 32 * j + i) >> i4(bit)) & i4(1)) << i4(j))
        store(out, at + i, to_u8(byte))


@kernel(F32, types.int64, types.int64, F32, types.boolean, _BYTES)
def pack_q2_k(x, k, n_rows, found, weighted, out):
    codes, halves, levels = empty(512, i4), empty(32, f4), empty(256, i4)
    for group in range((n_rows + 15) // 16):
        for column in range(k // 256):
            base = (group * (k // 256) + column) * 16 * SUB
            scales_affine(found, base, 16, f4(15), weighted, i4(255), codes, halves)
            for lane in range(min(16, n_rows - 16 * group)):
                row = 16 * group + lane
                at = (row * (k // 256) + column) * 84
                d = put_f16(out, at + 80, halves[lane])
                m = put_f16(out, at + 82, halves[16 + lane])
                for j in range(16):
                    byte = codes[16 * j + lane] | (codes[16 * (16 + j) + lane] << 4)
                    out[at + j] = byte
                    codes[16 * j + lane], codes[16 * (16 + j) + lane] = byte & 15, (byte & 255) >> 4
                affine_levels(x, row * k + 256 * column, 16, 3, d, m, codes, lane, found, base + lane, levels)
                put_crumbs(levels, out, at + 16)


@kernel(F32, types.int64, types.int64, F32, types.boolean, types.int64, _BYTES)
def pack_q45_k(x, k, n_rows, found, weighted, width, out):
    """Q4_K and Q5_K: d, dmin, the twelve bytes of scales, (Q5_K) the fifth bits, the nibbles."""
    codes, halves, levels = empty(256, i4), empty(32, f4), empty(256, i4)
    size, top = (144, 15) if width == 4 else (176, 31)
    limit = i4(255) if weighted and width == 4 else i4(63)
    for group in range((n_rows + 15) // 16):
        for column in range(k // 256):
            base = (group * (k // 256) + column) * 8 * SUB
            scales_affine(found, base, 8, f4(63), weighted, limit, codes, halves)
            for lane in range(min(16, n_rows - 16 * group)):
                row = 16 * group + lane
                at = (row * (k // 256) + column) * size
                d = put_f16(out, at, halves[lane])
                m = put_f16(out, at + 2, halves[16 + lane])
                put_scales_6bit(codes, lane, out, at + 4)
                affine_levels(x, row * k + 256 * column, 32, top, d, m, codes, lane, found, base + lane, levels)
                at += 16
                if width == 5:
                    put_bit(levels, 4, out, at)
                    at += 32
                for j in range(0, 256, 64):
                    for i in (0, 16):
                        low, high = load_i32(levels, j + i), load_i32(levels, j + 32 + i)
                        store(out, at + j // 2 + i, to_u8((low & i4(15)) | (high << i4(4))))


# ---- scale alone: Q3_K, Q6_K


@inner
def symmetric_levels(x, x_at, half, d, code, inverse, levels, to):
    """Sixteen integers, 0 .. 2 * half - 1; an all-zero block's are 0."""
    scale = d * f4(code)
    if scale != f4(0):
        store(levels, to, divide(x, x_at, f4(0), scale, -half, half - 1) + i4(half))
    elif inverse != f4(0):
        store(levels, to, multiply(x, x_at, f4(0), inverse, -half, half - 1) + i4(half))
    else:
        store(levels, to, splat(i4(0)))


@kernel(F32, types.int64, types.int64, F32, _BYTES)
def pack_q6_k(x, k, n_rows, found, out):
    """Q6_K: low nibbles, high two bits, sixteen signed scales, d."""
    codes, d, levels = empty(256, i4), empty(32, f4), empty(256, i4)
    for group in range((n_rows + 15) // 16):
        for column in range(k // 256):
            base = (group * (k // 256) + column) * 16 * SUB
            largest, signed = splat(f4(0)), splat(f4(0))
            for j in range(16):
                scale = load(found, base + SUB * j + SCALE)
                more = fabs(scale) > largest
                largest, signed = select(more, fabs(scale), largest), select(more, scale, signed)
            inverse = f4(-128) / signed
            store(d, 0, f4(1) / inverse)
            store(d, 16, largest)
            for j in range(16):
                store(codes, 16 * j, min_(nearest_int(inverse * load(found, base + SUB * j + SCALE)), i4(127)))
            for lane in range(min(16, n_rows - 16 * group)):
                row = 16 * group + lane
                at = (row * (k // 256) + column) * 210
                if d[16 + lane] < TINY:
                    for i in range(at, at + 210):
                        out[i] = 0
                    continue
                stored = put_f16(out, at + 208, d[lane])
                for j in range(16):
                    code = np.int8(codes[16 * j + lane])
                    out[at + 192 + j] = np.uint8(code)
                    x_at = row * k + 256 * column + 16 * j
                    symmetric_levels(x, x_at, 32, stored, code, found[base + SUB * j + INVERSE + lane], levels, 16 * j)
                for half in (0, 128):
                    for i in (0, 16):
                        to = at + half // 2 + i
                        a, b = load_i32(levels, half + i), load_i32(levels, half + 32 + i)
                        c, e = load_i32(levels, half + 64 + i), load_i32(levels, half + 96 + i)
                        store(out, to, to_u8((a & i4(15)) | ((c & i4(15)) << i4(4))))
                        store(out, to + 32, to_u8((b & i4(15)) | ((e & i4(15)) << i4(4))))
                        high = ((b >> i4(4)) << i4(2)) | ((c >> i4(4)) << i4(4)) | ((e >> i4(4)) << i4(6))
                        store(out, at + 128 + half // 4 + i, to_u8((a >> i4(4)) | high))


# ---- decoding


@kernel(U8, _FLOATS)
def decode_q2_k(blocks, out):
    for block in range(out.size // 256):
        at, to = 84 * block, 256 * block
        d, m = get_f16(blocks, at + 80), get_f16(blocks, at + 82)
        for j in range(16):
            code = blocks[at + j]
            scale, minimum = d * f4(code & 15), m * f4(code >> 4)
            quads = load_i32(blocks, at + 16 + 32 * (j // 8) + 16 * (j % 2))
            level = to_float((quads >> i4(j // 2 % 4 * 2)) & i4(3))
            store(out, to + 16 * j, level * scale - minimum)


@kernel(U8, _FLOATS)
def decode_q3_k(blocks, out):
    for block in range(out.size // 256):
        at, to = 110 * block, 256 * block
        d = get_f16(blocks, at + 108)
        for j in range(16):
            scale = d * f4(get_scale_3bit(blocks, at + 96, j))
            quads = load_i32(blocks, at + 32 + 32 * (j // 8) + 16 * (j % 2))
            high = (load_i32(blocks, at + 16 * (j % 2)) >> i4(j // 2)) & i4(1)
            level = ((quads >> i4(j // 2 % 4 * 2)) & i4(3)) + (high << i4(2)) - i4(4)
            store(out, to + 16 * j, to_float(level) * scale)


@kernel(U8, types.int64, _FLOATS)
def decode_q45_k(blocks, width, out):
    size = 144 if width == 4 else 176
    for block in range(out.size // 256):
        at, to = size * block, 256 * block
        d, m = get_f16(blocks, at), get_f16(blocks, at + 2)
        nibbles = at + 16 if width == 4 else at + 48
        for j in range(8):
            code, code_m = get_scale_6bit(blocks, at + 4, j)
            scale, minimum = d * f4(code), m * f4(code_m)
            for i in (0, 16):
                level = (load_i32(blocks, nibbles + 32 * (j // 2) + i) >> i4(4 * (j % 2))) & i4(15)
                if width == 5:
                    level = level | (((load_i32(blocks, at + 16 + i) >> i4(j)) & i4(1)) << i4(4))
                store(out, to + 32 * j + i, to_float(level) * scale - minimum)


@kernel(U8, _FLOATS)
def decode_q6_k(blocks, out):
    for block in range(out.size // 256):
        at, to = 210 * block, 256 * block
        d = get_f16(blocks, at + 208)
        for j in range(16):
            half, quarter, i = j // 8, j // 2 % 4, 16 * (j % 2)
            scale = d * f4(np.int8(blocks[at + 192 + j]))
            low = load_i32(blocks, at + 64 * half + 32 * (quarter % 2) + i) >> i4(4 * (quarter // 2))
            high = load_i32(blocks, at + 128 + 32 * half + i) >> i4(2 * quarter)
            level = ((low & i4(15)) | ((high & i4(3)) << i4(4))) - i4(32)
            store(out, to + 16 * j, to_float(level) * scale)
