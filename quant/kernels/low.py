"""Kernels of Q1_0 (a sign a weight, blocks of 128) and Q2_0 (-1, 0, 1 or 2, blocks of 64).

Source of the layouts and rules: `block_q1_0`, `block_q2_0` and their quantizers in ggml.
"""

import numpy as np
from numba import types

from llmconv.quant.kernels.compiling.build import F32, ROWS, U8, kernel
from llmconv.quant.kernels.vectors.codegen import LANES
from llmconv.quant.kernels.vectors.lanes import (
    LANE,
    OUT_F32,
    OUT_U8,
    f4,
    get_f16,
    get_u16,
    get_u32,
    i4,
    inverse,
    largest,
    put_f16,
    tile,
)
from llmconv.quant.kernels.vectors.memory import load, load_i32, store
from llmconv.quant.kernels.vectors.simd import clamp, fabs, mask_bits, round_, select, splat, to_float, to_int
from llmconv.quant.kernels.vectors.stack import empty


@kernel(F32, types.intp, OUT_U8)
def encode_q1_0(rows, blocks, out):
    """The first `blocks` blocks of `rows`, a multiple of sixteen."""
    column = empty(128 * LANES, f4)
    sums = empty(LANES, f4)
    for first in range(0, blocks, LANES):
        lanes = min(LANES, blocks - first)
        tile(rows, first, 1, 128, column)
        total = splat(f4(0))
        for i in range(128):
            total = total + fabs(load(column, LANES * i))
        store(sums, 0, total)
        for lane in range(lanes):
            at = 18 * (first + lane)
            put_f16(out, at, sums[lane] / f4(128))
            for i in range(8):
                signs = mask_bits(load(rows, 128 * (first + lane) + 16 * i) >= f4(0))
                out[at + 2 + 2 * i] = signs & 255
                out[at + 3 + 2 * i] = signs >> 8


@kernel(U8, OUT_F32)
def decode_q1_0(blocks, out):
    lane = load_i32(LANE, 0)
    for block in range(blocks.size // 18):
        at = 18 * block
        d = get_f16(blocks, at)
        for i in range(8):
            signs = splat(i4(get_u16(blocks, at + 2 + 2 * i)))
            store(out, 128 * block + 16 * i, select(((signs >> lane) & i4(1)) == i4(1), splat(d), splat(-d)))


@kernel(ROWS, OUT_U8)
def encode_q2_0(rows, out):
    place = empty(LANES, np.int32)
    for block in range(rows.size // 64):
        x0, x1, x2, x3 = (
            load(rows, 64 * block),
            load(rows, 64 * block + 16),
            load(rows, 64 * block + 32),
            load(rows, 64 * block + 48),
        )
        d = max(largest(x0, x1), largest(x2, x3))
        scale = inverse(d)
        at = 18 * block
        put_f16(out, at, d)
        for i in range(4):
            # A subnormal d has an infinite inverse, and the reference's conversion of infinities gives 0.
            q = splat(i4(0))
            if scale < f4(np.inf):
                q = clamp(to_int(round_(load(rows, 64 * block + 16 * i) * scale)) + i4(1), i4(0), i4(3))
            store(place, 0, q)
            for j in range(4):
                out[at + 2 + 4 * i + j] = (
                    place[4 * j] | (place[4 * j + 1] << 2) | (place[4 * j + 2] << 4) | (place[4 * j + 3] << 6)
                )


@kernel(U8, OUT_F32)
def decode_q2_0(blocks, out):
    shift = load_i32(LANE, 0) * i4(2)
    for block in range(blocks.size // 18):
        at = 18 * block
        d = get_f16(blocks, at)
        for i in range(4):
            word = splat(i4(get_u32(blocks, at + 2 + 4 * i)))
            store(out, 64 * block + 16 * i, to_float(((word >> shift) & i4(3)) - i4(1)) * d)
