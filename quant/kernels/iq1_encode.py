"""Encoding IQ1_S and IQ1_M: -1, 0 or 1, shifted by an eighth, from a codebook for eight weights.

Sixteen parts of a row are worked on abreast, one a lane: IQ1_M's block, two of IQ1_S.  `splits` finds each one's best
split; the points that these are are then rounded to codebook entries, one by one.

Source of the rules: `quantize_row_iq1_s_impl`, `quantize_row_iq1_m_impl` and `iq1_find_best_neighbour2` of ggml.
"""

import numpy as np
from numba import types

from llmconv.quant.kernels.compiling.build import F32, inlined, inner, kernel
from llmconv.quant.kernels.iq_search import TABLES, nearest, widen
from llmconv.quant.kernels.vectors.codegen import LANES
from llmconv.quant.kernels.vectors.lanes import OUT_U8, f4, fill, i4, put_f16
from llmconv.quant.kernels.vectors.memory import load, load_i32, prefetch, store, transpose
from llmconv.quant.kernels.vectors.nearest import nearest_entry
from llmconv.quant.kernels.vectors.simd import any_lane, f16_bits, fabs, max_, not_, select, splat, sqrt, to_float
from llmconv.quant.kernels.vectors.splits import MINUS, PLUS, splitter
from llmconv.quant.kernels.vectors.stack import empty, zeros

_spread, _costs_of, _nearest_of, _ = nearest_entry(8)
_LIKELY_S = [(low, mid) for low in (5, 7, 9, 11) for mid in (21, 23, 25, 27)]
_LIKELY_M = [(low, mid) for low in (2, 4, 6) for mid in (10, 12, 14)]
_split_s, _FLOATS_S = splitter(32, 1, _LIKELY_S)
_split_m, _FLOATS_M = splitter(16, 2, _LIKELY_M)
u8 = np.uint64


@inlined
def _weigh(xs, at, importance, wat, sigma2, w):
    """Importance of a block's weights, to `w[at:]`."""
    for i in range(0, 256, LANES):
        x = load(xs, at + i)
        store(w, at + i, load(importance, wat + i) * sqrt(x * x + sigma2) if importance.size else x * x)


@inlined
def _tiles(xs, w, size, tiles):
    """Parts of `size` weights as columns: the weights, then the importances; each part's greatest magnitude."""
    for i in range(0, size, LANES):
        transpose(xs, i, size, tiles, LANES * i)
        transpose(w, i, size, tiles, LANES * (size + i))
    most = splat(f4(0))
    for i in range(size):
        most = max_(fabs(load(tiles, LANES * i)), most)
    return most


@inlined
def _points(rank, split, flip, size, points):
    """What the splits make of each eight weights: low ones 0, high ones 2, the other way round where flipped."""
    low, mid = split >> i4(8), (split >> i4(2)) & i4(63)
    for k in range(size // 8):
        point = splat(i4(0))
        for i in range(8):
            here = load_i32(rank, LANES * (8 * k + i))
            level = select(here >= low, splat(i4(1)), i4(0)) + select(here >= mid, splat(i4(1)), i4(0))
            point = point | (select(flip, i4(2) - level, level) << i4(2 * i))
        store(points, LANES * k, point)


@inlined
def _round(xs, w, size, some, scales, shifts, points, off, tables):
    """Entries' numbers in place of the points that are none; `off`: in which parts there were such.

    shifts: of each eight weights, a row of sixteen parts for the first ones, another for the next.
    """
    entry, first, numbers = tables[1], tables[2], tables[3]
    for i in range(size // 8 * LANES):
        found = entry[points[u8(i)]]
        if found < 0:
            start = np.int64(first[-1 - found])
            for line in range(0, 96, 32):
                prefetch(numbers, start + line)
    for part in range(LANES):
        off[part] = 0
        if not some[part]:
            continue
        for k in range(size // 8):
            found = np.int64(entry[points[LANES * k + part]])
            if found >= 0:
                continue
            off[part] = 1
            at = size * part + 8 * k
            known = _spread(xs, at, w, at)
            costs = _costs_of(scales[part] * f4(0.5), f4(2) * shifts[LANES * k + part] - f4(1), known)
            listed = np.int64(first[-1 - found]), np.int64(first[-found])
            points[LANES * k + part] = _nearest_of(costs, listed, numbers)


@inlined
def _level(points, i):
    """Of weight `i` in each part."""
    return to_float((load_i32(points, LANES * (i // 8)) >> i4(2 * (i % 8))) & i4(3))


@inlined
def _refit(tiles, size, scales, shifts, points, off):
    """The scales that suit the entries, where points were rounded to these."""
    qx, q2 = splat(f4(0)), splat(f4(0))
    for i in range(size):
        x, w = load(tiles, LANES * i), load(tiles, LANES * (size + i))
        q = _level(points, i) + load(shifts, LANES * (i // 8))
        qx = qx + w * q * x
        q2 = q2 + w * q * q
    moved = (load_i32(off, 0) != i4(0)) & (qx > f4(0)) & (q2 > f4(0))
    store(scales, 0, select(moved, qx / q2, load(scales, 0)))


@inner
def _scale_step(inverse, scale):
    return max(i4(0), min(i4(7), nearest(f4(0.5) * (inverse * scale - f4(1)))))


@inlined
def _put_s(out, at, scales, down, some, points, entry, lane):
    """A block of IQ1_S out of the eight parts from `lane` on."""
    greatest = f4(0)
    for part in range(8):
        if not some[lane + part]:
            continue
        high = 0
        for k in range(4):
            found = np.int64(entry[points[LANES * k + lane + part]])
            out[at + 2 + 4 * part + k] = found & 255
            high |= (found >> 8) << (3 * k)
        out[at + 34 + 2 * part] = high & 255
        out[at + 35 + 2 * part] = high >> 8
        greatest = max(greatest, scales[lane + part])
    if greatest > f4(0):
        d = greatest / f4(15)
        put_f16(out, at, d * f4(1.125))
        for part in range(8):
            step = _scale_step(f4(1) / d, scales[lane + part])
            out[at + 35 + 2 * part] |= (step << 4) | (down[lane + part] << 7)


@kernel(F32, F32, types.intp, *TABLES, OUT_U8)
def encode_iq1_s(rows, importance, columns, levels, entry, first, numbers, out):
    tables = levels, entry, first, numbers
    xs, w, tiles, s = zeros(512, f4), zeros(512, f4), empty(1024, f4), zeros(_FLOATS_S, f4)
    rank, points, off = empty(512, np.int32), empty(64, np.int32), empty(16, np.int32)
    splits, some, down = empty(16, np.int32), empty(16, np.int32), empty(16, np.int32)
    scales, shifts, sums = empty(16, f4), empty(64, f4), empty(16, f4)
    blocks = rows.size // 256
    fill(out, 0, 50 * blocks, 0)
    for block in range(0, blocks, 2):
        for one in range(2):
            if block + one < blocks:
                here = xs[256 * one : 256 * one + 256]
                sigma2 = f4(2) * widen(rows, block + one, here, sums, s) / f4(256)
                _weigh(here, 0, importance, (256 * (block + one)) % columns, sigma2, w[256 * one : 256 * one + 256])
            else:
                fill(xs, 256, 512, f4(0))
        asked = not_(_tiles(xs, w, 32, tiles) < f4(1e-12))
        store(scales, 0, splat(f4(0)))
        store(splits, 0, splat(i4(-1)))
        if not any_lane(asked):
            continue
        _split_s(tiles[:512], tiles[512:1024], asked, rank, s, scales, splits)
        split, scale = load_i32(splits, 0), load(scales, 0)
        found, flip = split >= i4(0), scale < f4(0)
        wrong = select(found & flip, splat(i4(1)), i4(0)) ^ (split & i4(1))
        store(some, 0, select(found, splat(i4(1)), i4(0)))
        store(down, 0, select(found, wrong, i4(0)))
        store(scales, 0, select(found, fabs(scale), f4(0)))
        _points(rank, split, flip, 32, points)
        for k in range(4):
            store(shifts, LANES * k, select(wrong == i4(1), splat(MINUS), PLUS))
        _round(xs, w, 32, some, scales, shifts, points, off, tables)
        _refit(tiles, 32, scales, shifts, points, off)
        _put_s(out, 50 * block, scales, down, some, points, entry, 0)
        if block + 1 < blocks:
            _put_s(out, 50 * block + 50, scales, down, some, points, entry, 8)


@inner
def _first_point(levels):
    """What the weights of a part without a split stand for: the first entry, which nothing points to."""
    point = i4(0)
    for i in range(8):
        point |= i4(levels[i]) << i4(2 * i)
    return point


@inlined
def _fit_m(tiles, d, scales, shifts, points, terms, steps):
    """IQ1_M's block scale for the parts' steps, which are found for `d`."""
    inverse = f4(1) / d
    for part in range(LANES):
        steps[part] = _scale_step(inverse, scales[part])
    factor = to_float((load_i32(steps, 0) << i4(1)) + i4(1))
    for i in range(16):
        x, w = load(tiles, LANES * i), load(tiles, LANES * (16 + i))
        q = (_level(points, i) + load(shifts, LANES * (i // 8))) * factor
        store(terms, LANES * i, w * q * x)
        store(terms, LANES * (16 + i), w * q * q)
    qx, q2 = f4(0), f4(0)
    for part in range(LANES):
        for i in range(16):
            qx += terms[u8(LANES * i + part)]
            q2 += terms[u8(LANES * (16 + i) + part)]
    return qx / q2 if q2 > f4(0) else d


@kernel(F32, F32, types.intp, *TABLES, OUT_U8)
def encode_iq1_m(rows, importance, columns, levels, entry, first, numbers, out):
    tables = levels, entry, first, numbers
    xs, w, tiles, s = empty(256, f4), empty(256, f4), empty(512, f4), zeros(_FLOATS_M, f4)
    rank, points, off = empty(256, np.int32), empty(32, np.int32), empty(16, np.int32)
    splits, some, kinds = empty(16, np.int32), empty(16, np.int32), empty(16, np.int32)
    scales, shifts, terms, steps = empty(16, f4), empty(32, f4), empty(512, f4), empty(16, np.int32)
    words, sums = empty(4, np.int64), empty(16, f4)
    for block in range(rows.size // 256):
        at = 56 * block
        fill(out, at, at + 56, 0)
        sigma2 = f4(2) * widen(rows, block, xs, sums, s) / f4(256)
        _weigh(xs, 0, importance, (256 * block) % columns, sigma2, w)
        asked = not_(_tiles(xs, w, 16, tiles) < f4(1e-7))
        store(scales, 0, splat(f4(0)))
        store(splits, 0, splat(i4(-1)))
        if not any_lane(asked):
            continue
        _split_m(tiles[:256], tiles[256:512], asked, rank, s, scales, splits)
        split, scale = load_i32(splits, 0), load(scales, 0)
        found, flip = split >= i4(0), scale < f4(0)
        kind = select(found & flip, splat(i4(3)), i4(0)) ^ (split & i4(3))
        kind = select(found, kind, i4(0))
        store(some, 0, select(found, splat(i4(1)), i4(0)))
        store(kinds, 0, kind)
        store(scales, 0, select(found, fabs(scale), f4(0)))
        _points(rank, split, flip, 16, points)
        for k in range(2):
            store(points, LANES * k, select(found, load_i32(points, LANES * k), splat(_first_point(levels))))
            store(shifts, LANES * k, select((kind & i4(2 >> k)) != i4(0), splat(MINUS), PLUS))
        _round(xs, w, 16, some, scales, shifts, points, off, tables)
        _refit(tiles, 16, scales, shifts, points, off)
        greatest = f4(0)
        for part in range(16):
            if some[part]:
                for k in range(2):
                    number = np.int64(entry[points[LANES * k + part]])
                    out[at + 2 * part + k] = number & 255
                    out[at + 32 + part] |= (number >> 8) << (4 * k)
                greatest = max(greatest, scales[part])
        if not greatest > f4(0):
            continue
        d = _fit_m(tiles, greatest / f4(15), scales, shifts, points, terms, steps)
        fill(words, 0, 4, 0)
        for part in range(16):
            words[part // 4] |= steps[part] << (3 * (part % 4))
            out[at + 32 + part] |= ((kinds[part] & 1) << 7) | ((kinds[part] & 2) << 2)
        half = np.int64(f16_bits(d * f4(1.1125)))
        for n in range(4):
            word = words[n] | (((half >> (4 * n)) & 15) << 12)
            out[at + 48 + 2 * n] = word & 255
            out[at + 49 + 2 * n] = word >> 8
