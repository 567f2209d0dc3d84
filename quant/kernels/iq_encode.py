"""Encoding IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S: what the search finds, put into bytes.

Source of the layouts and rules: `quantize_row_iq2_xxs_impl`, `…_iq2_xs_impl`, `…_iq2_s_impl`, `…_iq3_xxs_impl` and
`…_iq3_s_impl` of ggml.
"""

import numpy as np
from numba import types

from llmconv.quant.kernels.compiling.build import F32, inner, kernel
from llmconv.quant.kernels.iq_search import (
    SCRATCH,
    SPACE,
    TABLES,
    fit_iq2_xs,
    fit_iq2_xxs,
    fit_iq3_s,
    fit_iq3_xxs,
    level_of,
    positive_scale,
    split_signs,
    weigh,
    widen,
)
from llmconv.quant.kernels.vectors.codegen import LANES
from llmconv.quant.kernels.vectors.lanes import OUT_U8, f4, fill, put_f16
from llmconv.quant.kernels.vectors.stack import empty


@inner
def _put_u32(out, at, word):
    for i in range(4):
        out[at + i] = (word >> (8 * i)) & 255


@kernel(F32, F32, types.intp, *TABLES, OUT_U8)
def encode_iq2_xxs(rows, importance, columns, levels, entry, first, numbers, out):
    tables = levels, entry, first, numbers
    xs, s, scales = empty(256, f4), empty(SCRATCH, f4), empty(8, f4)
    picked = empty(8, np.int32)
    space, sums = empty(SPACE, np.int32), empty(LANES, f4)
    signs, some = empty(4, np.int64), empty(32, np.int32)
    for block in range(rows.size // 256):
        at = 66 * block
        fill(out, at, at + 66, 0)
        sigma2 = widen(rows, block, xs, sums, s) / f4(256)
        greatest = f4(0)
        for part in range(8):
            scales[part] = 0
            weigh(xs, 32 * part, 32, importance, (256 * block) % columns + 32 * part, sigma2, f4(0), s)
            if split_signs(xs, 32 * part, 32, True, s, signs) < f4(1e-15):
                continue
            scale = positive_scale(s, some)
            if scale * f4(3) <= f4(0):
                continue
            scale = fit_iq2_xxs(scale * f4(3), scale, s, space, picked, tables)
            flip = 127 if scale < f4(0) else 0
            scale = abs(scale)
            word = 0
            for k in range(4):
                out[at + 2 + 8 * part + k] = picked[k]
                word |= (signs[k] ^ flip) << (7 * k)
            _put_u32(out, at + 6 + 8 * part, word)
            scales[part] = scale
            greatest = max(greatest, scale)
        if greatest == f4(0):
            fill(out, at, at + 66, 0)
            continue
        put_f16(out, at, greatest / f4(31))
        for part in range(8):
            out[at + 9 + 8 * part] |= level_of(f4(1) / (greatest / f4(31)), scales[part], 15) << 4


@inner
def _put_levels(out, at, scales, count, greatest):
    """Two 4-bit scales a byte."""
    inverse = f4(1) / (greatest / f4(31))
    for i in range(0, count, 2):
        out[at + i // 2] = level_of(inverse, scales[i], 15) | (level_of(inverse, scales[i + 1], 15) << 4)


@kernel(F32, F32, types.intp, *TABLES, OUT_U8)
def encode_iq2_xs(rows, importance, columns, levels, entry, first, numbers, out):
    tables = levels, entry, first, numbers
    xs, s, scales = empty(256, f4), empty(SCRATCH, f4), empty(16, f4)
    picked = empty(8, np.int32)
    space, sums = empty(SPACE, np.int32), empty(LANES, f4)
    signs = empty(4, np.int64)
    for block in range(rows.size // 256):
        at = 74 * block
        fill(out, at, at + 74, 0)
        sigma2 = widen(rows, block, xs, sums, s) / f4(256)
        greatest = f4(0)
        for part in range(16):
            scales[part] = 0
            weigh(xs, 16 * part, 16, importance, (256 * block) % columns + 16 * part, sigma2, f4(0), s)
            peak = split_signs(xs, 16 * part, 16, True, s, signs)
            if peak < f4(1e-15):
                continue
            scale = fit_iq2_xs(peak, peak / f4(5), s, space, picked, tables)
            flip = 127 if scale < f4(0) else 0
            scale = abs(scale)
            for k in range(2):
                word = picked[k] | ((signs[k] ^ flip) << 9)
                out[at + 2 + 4 * part + 2 * k] = word & 255
                out[at + 3 + 4 * part + 2 * k] = word >> 8
            scales[part] = scale
            greatest = max(greatest, scale)
        if greatest == f4(0):
            fill(out, at, at + 74, 0)
            continue
        put_f16(out, at, greatest / f4(31))
        _put_levels(out, at + 66, scales, 16, greatest)


@kernel(F32, F32, types.intp, *TABLES, OUT_U8)
def encode_iq2_s(rows, importance, columns, levels, entry, first, numbers, out):
    tables = levels, entry, first, numbers
    xs, s, scales = empty(256, f4), empty(SCRATCH, f4), empty(16, f4)
    picked = empty(8, np.int32)
    space, sums = empty(SPACE, np.int32), empty(LANES, f4)
    signs = empty(4, np.int64)
    for block in range(rows.size // 256):
        at = 82 * block
        fill(out, at, at + 82, 0)
        sigma2 = f4(2) * widen(rows, block, xs, sums, s) / f4(256)
        greatest = f4(0)
        for part in range(16):
            scales[part] = 0
            wat = (256 * block) % columns + 16 * part
            weigh(xs, 16 * part, 16, importance, wat, sigma2, f4(0.25) * sigma2, s)
            peak = split_signs(xs, 16 * part, 16, False, s, signs)
            if peak < f4(1e-8):
                continue
            scale = fit_iq2_xs(peak, peak / f4(5), s, space, picked, tables)
            flip = 255 if scale < f4(0) else 0
            scale = abs(scale)
            for k in range(2):
                i = 2 * part + k
                out[at + 2 + i] = picked[k] & 255
                out[at + 34 + i] = signs[k] ^ flip
                out[at + 66 + i // 4] |= (picked[k] >> 8) << (2 * (i % 4))
            scales[part] = scale
            greatest = max(greatest, scale)
        if greatest > f4(0):
            put_f16(out, at, greatest / f4(31) * f4(0.9875))
            _put_levels(out, at + 74, scales, 16, greatest)


@kernel(F32, F32, types.intp, *TABLES, OUT_U8)
def encode_iq3_xxs(rows, importance, columns, levels, entry, first, numbers, out):
    tables = levels, entry, first, numbers
    xs, s, scales = empty(256, f4), empty(SCRATCH, f4), empty(8, f4)
    picked = empty(8, np.int32)
    space, sums = empty(SPACE, np.int32), empty(LANES, f4)
    signs = empty(4, np.int64)
    for block in range(rows.size // 256):
        at = 98 * block
        fill(out, at, at + 98, 0)
        sigma2 = f4(2) * widen(rows, block, xs, sums, s) / f4(256)
        greatest = f4(0)
        for part in range(8):
            scales[part] = 0
            weigh(xs, 32 * part, 32, importance, (256 * block) % columns + 32 * part, sigma2, f4(0), s)
            peak = split_signs(xs, 32 * part, 32, True, s, signs)
            if peak < f4(1e-8):
                continue
            scale = fit_iq3_xxs(peak, peak / f4(15), s, space, picked, tables)
            flip = 127 if scale < f4(0) else 0
            scale = abs(scale)
            word = 0
            for k in range(8):
                out[at + 2 + 8 * part + k] = picked[k]
            for k in range(4):
                word |= (signs[k] ^ flip) << (7 * k)
            _put_u32(out, at + 66 + 4 * part, word)
            scales[part] = scale
            greatest = max(greatest, scale)
        if greatest == f4(0):
            fill(out, at, at + 98, 0)
            continue
        put_f16(out, at, greatest / f4(31) * f4(1.0125))
        for part in range(8):
            out[at + 69 + 4 * part] |= level_of(f4(1) / (greatest / f4(31)), scales[part], 15) << 4


@kernel(F32, F32, types.intp, *TABLES, OUT_U8)
def encode_iq3_s(rows, importance, columns, levels, entry, first, numbers, out):
    tables = levels, entry, first, numbers
    xs, s, scales = empty(256, f4), empty(SCRATCH, f4), empty(8, f4)
    picked = empty(8, np.int32)
    space, sums = empty(SPACE, np.int32), empty(LANES, f4)
    signs = empty(4, np.int64)
    for block in range(rows.size // 256):
        at = 110 * block
        fill(out, at, at + 110, 0)
        sigma2 = f4(2) * widen(rows, block, xs, sums, s) / f4(256)
        greatest = f4(0)
        # The reference does not step past a part of zeros, so the entries and signs of later parts move up.
        filled = 0
        for part in range(8):
            scales[part] = 0
            weigh(xs, 32 * part, 32, importance, (256 * block) % columns + 32 * part, sigma2, f4(0), s)
            peak = split_signs(xs, 32 * part, 32, False, s, signs)
            if peak == f4(0):
                continue
            scale = fit_iq3_s(peak, peak / f4(15), s, space, picked, tables)
            flip = 255 if scale < f4(0) else 0
            scale = abs(scale)
            for k in range(8):
                out[at + 2 + 8 * filled + k] = picked[k] & 255
                out[at + 66 + part] |= (picked[k] >> 8) << k
            for k in range(4):
                out[at + 74 + 4 * filled + k] = signs[k] ^ flip
            filled += 1
            scales[part] = scale
            greatest = max(greatest, scale)
        if greatest > f4(0):
            put_f16(out, at, greatest / f4(31) * f4(1.033))
            _put_levels(out, at + 106, scales, 8, greatest)
