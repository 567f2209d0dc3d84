"""Matrix products in integers: inputs rounded to bytes against blocks of weights, as ggml multiplies on a CPU.

The inputs get a scale for as many of them as a block has weights; the products inside a block are exact.  Rounding
rules: ggml's Q8_0 (in its AVX2 code) for blocks of 32, Q8_K for those of 256.

Rounded inputs lie in chunks of 256 columns, of all rows one after another: 64 words of four bytes a row and chunk.
"""

import numpy as np
from numba import types

from llmconv.quant.kernels.compiling.build import F32, I32, U8, inner, kernel, out
from llmconv.quant.kernels.strips import LEVELS, OFFSETS, SCALES, SIZE, D, M, unpack
from llmconv.quant.kernels.terms.forms import ROWS_ABREAST
from llmconv.quant.kernels.vectors.byte_lanes import add_shorts, dot_bytes, dot_shorts, load_all
from llmconv.quant.kernels.vectors.lanes import OUT_F32, f4, i4
from llmconv.quant.kernels.vectors.memory import load, load_i32, store
from llmconv.quant.kernels.vectors.simd import (
    bits,
    f16_bits,
    f16_value,
    from_bits,
    mask_bits,
    min_,
    nearest_int,
    reduce_add,
    reduce_umax,
    rint,
    select,
    splat,
    to_float,
    to_int,
    to_u8,
    trailing_zeros,
)
from llmconv.quant.kernels.vectors.stack import empty

_INFINITE = i4(0x7F800000)
_OUT_I32 = out(types.int32)


@inner
def magnitude(x, at, n):
    """The bits of the largest magnitude among n numbers; a NaN is the largest."""
    most = splat(i4(0))
    for i in range(0, n, 16):
        size = bits(load(x, at + i)) & i4(0x7FFFFFFF)
        most = select(size > most, size, most)
    return reduce_umax(most)


@inner
def _largest(x, at, n, size):
    """The first of n numbers with that magnitude (its bits)."""
    for i in range(0, n, 16):
        found = mask_bits((bits(load(x, at + i)) & i4(0x7FFFFFFF)) == size)
        if found != 0:
            return x[at + i + trailing_zeros(found)]
    return f4(0)


@inner
def scale_of(x, at, block):
    """What 32 or 256 numbers are multiplied with to become bytes, and the bytes to become them."""
    size = magnitude(x, at, block)
    inverse, d = f4(0), f4(0)
    if size >= _INFINITE:
        d = f4(np.nan)
    elif size > i4(0):
        if block == 32:
            most = from_bits(size)
            inverse, d = f4(127) / most, f16_value(f16_bits(most / f4(127)))
            if bits(d) == _INFINITE:
                inverse, d = f4(0), f4(np.nan)
        else:
            inverse = f4(-127) / _largest(x, at, block, size)
            d = f4(1) / inverse
    if d == f4(0):  # too small for a scale: zero, and its inverse may be infinite
        inverse = f4(0)
    return inverse, d


@kernel(F32, types.int64, types.int64, types.int64, types.int64, out(types.uint8), OUT_F32, _OUT_I32)
def round_inputs(x, n, padded, k, block, rounded, scales, sums):
    """n rows of k float32 to signed bytes.

    padded: the rows that the results have room for.   block: 32 or 256 numbers under one scale; k is a multiple.
    rounded: (chunks, padded, 256).   scales: (chunks, padded, 256 // block).   sums: (chunks, padded, 8), each that of
    16 bytes and of the next 16 as two int16.  A block with infinities or NaN gets the scale NaN.
    """
    for row in range(n):
        for start in range(0, k, block):
            place = start // 256 * padded + row
            at, to = row * k + start, 256 * place + start % 256
            inverse, d = scale_of(x, at, block)
            scales[(256 // block) * place + start % 256 // block] = d
            for i in range(0, block, 32):
                low, high = bytes_of(x, at + i, inverse, block), bytes_of(x, at + i + 16, inverse, block)
                store(rounded, to + i, to_u8(low))
                store(rounded, to + i + 16, to_u8(high))
                pair = (reduce_add(low) & i4(0xFFFF)) | (reduce_add(high) << i4(16))
                sums[8 * place + (start % 256 + i) // 32] = pair


@inner
def bytes_of(x, at, inverse, block):
    if block == 32:
        return to_int(rint(load(x, at) * inverse))
    return min_(nearest_int(load(x, at) * inverse), i4(127))


@inner
def _add(results, at, sums, scale):
    """To sixteen results; they stay in memory, since the registers are all taken by sums."""
    store(results, at, load(results, at) + to_float(sums) * scale)


def _block_product(run):
    """The function that adds to four rows of results what a strip gives, for types with `run` words under a scale."""

    @inner
    def multiply(strip, n_blocks, block, digits, fixed, affine, rounded, scales, sums, row, results, to):
        words, runs, digit, per_row = block // 4, block // 4 * digits // run, digits - 1, 256 // block
        for b in range(n_blocks):
            s = 8 * row + b
            if fixed != i4(0):  # blocks of 32: one pair of sums
                i0 = dot_shorts(splat(fixed), load_all(sums, s))
                i1 = dot_shorts(splat(fixed), load_all(sums, s + 8))
                i2 = dot_shorts(splat(fixed), load_all(sums, s + 16))
                i3 = dot_shorts(splat(fixed), load_all(sums, s + 24))
            else:
                i0 = i1 = i2 = i3 = splat(i4(0))
                for i in range(8):
                    offset = load_i32(strip, OFFSETS + 16 * i)
                    i0 = i0 + dot_shorts(offset, load_all(sums, s + i))
                    i1 = i1 + dot_shorts(offset, load_all(sums, s + 8 + i))
                    i2 = i2 + dot_shorts(offset, load_all(sums, s + 16 + i))
                    i3 = i3 + dot_shorts(offset, load_all(sums, s + 24 + i))
            x = per_row * row + b
            if affine:
                m = from_bits(load_i32(strip, M + 16 * b))
                _add(results, to, i0, m * load_all(scales, x))
                _add(results, to + 16, i1, m * load_all(scales, x + per_row))
                _add(results, to + 32, i2, m * load_all(scales, x + 2 * per_row))
                _add(results, to + 48, i3, m * load_all(scales, x + 3 * per_row))
                i0 = i1 = i2 = i3 = splat(i4(0))
            for r in range(runs):
                h0 = h1 = h2 = h3 = splat(i4(0))
                at = LEVELS + 16 * (b * runs + r) * run
                word = 64 * row + b * words + (r >> digit) * run
                for g in range(run):
                    level = load_i32(strip, at + 16 * g)
                    h0 = add_shorts(h0, dot_bytes(level, load_all(rounded, word + g)))
                    h1 = add_shorts(h1, dot_bytes(level, load_all(rounded, word + 64 + g)))
                    h2 = add_shorts(h2, dot_bytes(level, load_all(rounded, word + 128 + g)))
                    h3 = add_shorts(h3, dot_bytes(level, load_all(rounded, word + 192 + g)))
                scale = load_i32(strip, SCALES + 16 * (b * runs + r))
                i0 = i0 + dot_shorts(h0, scale)
                i1 = i1 + dot_shorts(h1, scale)
                i2 = i2 + dot_shorts(h2, scale)
                i3 = i3 + dot_shorts(h3, scale)
            d = from_bits(load_i32(strip, D + 16 * b))
            _add(results, to, i0, d * load_all(scales, x))
            _add(results, to + 16, i1, d * load_all(scales, x + per_row))
            _add(results, to + 32, i2, d * load_all(scales, x + 2 * per_row))
            _add(results, to + 48, i3, d * load_all(scales, x + 3 * per_row))

    return multiply


_runs_of_2, _runs_of_4, _runs_of_8 = (_block_product(run) for run in (2, 4, 8))


@kernel(
    *(U8, types.int64, types.int64, types.int64, types.int64),
    *(types.int64, types.int64, types.int64, types.int64, types.int64, types.int64, types.boolean),
    *(I32, F32, I32, types.int64, types.int64, types.int64),
    *(OUT_F32, OUT_F32),
)
def multiply(
    blocks,
    n_out,
    row_bytes,
    first,
    stop,
    kind,
    block,
    size,
    run,
    digits,
    offset,
    affine,
    rounded,
    scales,
    sums,
    n,
    padded,
    k,
    results,
    y,
):
    """Rows first to stop of a stored weight of n_out (at least 16) rows times n rounded inputs of k numbers.

    kind, run, digits, offset, affine: of the type's form in `forms`.   block, size: weights and bytes of a block.
    rounded, scales, sums, padded: see `round_inputs`.   results: float32[16 * padded], to work in.   y: (n, n_out).
    """
    strip = empty(SIZE, np.int32)
    fixed = (i4(offset) & i4(0xFFFF)) | (i4(offset) << i4(16))
    for at in range(first, stop, 16):
        at = min(at, n_out - 16)  # the last strip reaches back: the same results once more
        for i in range(0, 16 * padded, 16):
            store(results, i, splat(f4(0)))
        for start in range(0, k, 256):
            n_blocks = min(256, k - start) // block
            for b in range(n_blocks):
                unpack(kind, blocks, at * row_bytes + (start // block + b) * size, row_bytes, b, strip)
            for row in range(0, padded, ROWS_ABREAST):
                place = start // 256 * padded + row
                if run == 2:
                    _runs_of_2(
                        strip, n_blocks, block, digits, fixed, affine, rounded, scales, sums, place, results, 16 * row
                    )
                elif run == 4:
                    _runs_of_4(
                        strip, n_blocks, block, digits, fixed, affine, rounded, scales, sums, place, results, 16 * row
                    )
                else:
                    _runs_of_8(
                        strip, n_blocks, block, digits, fixed, affine, rounded, scales, sums, place, results, 16 * row
                    )
        for row in range(n):
            store(y, row * n_out + at, load(results, 16 * row))
