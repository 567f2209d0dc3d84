"""Encoding IQ1_S and IQ1_M: -1, 0 or 1, shifted by an eighth, from a codebook for eight weights.

The weights are sorted, and every way of splitting them into low, middle and high ones is weighed, with either shift
(IQ1_M: either one for each half); the best split is then rounded to codebook entries.  The splits lie in the lanes;
they are looked at one by one, in the reference's order, only where one beats the best so far.

Source of the rules: `quantize_row_iq1_s_impl`, `quantize_row_iq1_m_impl` and `iq1_find_best_neighbour2` of ggml.
"""

import numpy as np
from numba import types

from llmconv.quant.kernels.compiling.build import F32, inner, kernel
from llmconv.quant.kernels.iq_search import TABLES, nearest, widen
from llmconv.quant.kernels.vectors.codegen import LANES
from llmconv.quant.kernels.vectors.lanes import LANE, OUT_U8, f4, fill, i4, put_f16
from llmconv.quant.kernels.vectors.memory import load, load_i32, prefetch, store
from llmconv.quant.kernels.vectors.nearest import FLOAT_MAX, nearest_entry
from llmconv.quant.kernels.vectors.simd import (
    count_ones,
    f16_bits,
    fabs,
    mask_bits,
    max_,
    reduce_fmax,
    select,
    splat,
    sqrt,
    trailing_zeros,
)
from llmconv.quant.kernels.vectors.stack import empty, zeros

_spread, _costs_of, _nearest_of, _ = nearest_entry(8)
_ROW = 64  # sums in a row
PLUS, MINUS = f4(-0.875), f4(-1.125)
"""What level 0 stands for under the shift up and down; levels 1 and 2 are one and two more."""
u4 = np.uint32


@inner
def _weigh(xs, at, count, importance, wat, sigma2, w):
    """Importance of `count` weights, to `w[at:]`, and their greatest magnitude."""
    most = splat(f4(0))
    for i in range(0, count, LANES):
        x = load(xs, at + i)
        store(w, at + i, load(importance, wat + i) * sqrt(x * x + sigma2) if importance.size else x * x)
        most = max_(fabs(x), most)
    return reduce_fmax(most)


@inner
def _sort(xs, at, count, order):
    """The weights' places in ascending order, equal ones as they come: each goes after those that are before it."""
    for i in range(count):
        order[i] = i  # a NaN is before and after none
    for i in range(count):
        before = u4(0)
        for j in range(0, count, LANES):
            others = load(xs, at + j)
            equal = mask_bits(others == xs[at + i]) & ~(u4(0xFFFFFFFF) << u4(max(0, i - j)))
            before += count_ones(mask_bits(others < xs[at + i]) | equal)
        order[before] = i


@inner
def _levels(order, count, low, middle, flip, level):
    for j in range(count):
        one = i4(0) if j < low else i4(1) if j < middle else i4(2)
        level[order[j]] = i4(2) - one if flip else one


@inner
def _points(level, at, parts, points, tables):
    """The points of `parts` eights with these levels; what will be read of their neighbours is asked of memory."""
    entry, first, numbers = tables[1], tables[2], tables[3]
    for k in range(parts):
        point = i4(0)
        for i in range(8):
            point |= level[8 * k + i] << i4(2 * i)
        points[at + k] = point
        if entry[point] < 0:
            start = np.int64(first[-1 - entry[point]])
            for line in range(0, 96, 32):
                prefetch(numbers, start + line)


@inner
def _entries(xs, w, at, parts, scale, shifts, picked, tables):
    """Codebook entries in place of the points of `parts` eights from weight `at` on, and the scale that suits them."""
    levels, entry, first, numbers = tables
    on_grid = True
    for k in range(parts):
        found = np.int64(entry[picked[at // 8 + k]])
        if found < 0:
            on_grid = False
            known = _spread(xs, at + 8 * k, w, at + 8 * k)
            costs = _costs_of(scale * f4(0.5), f4(2) * shifts[k] - f4(1), known)
            listed = np.int64(first[-1 - found]), np.int64(first[-found])
            found = np.int64(entry[_nearest_of(costs, listed, numbers)])
        picked[at // 8 + k] = found
    if on_grid:
        return scale
    qx, q2 = f4(0), f4(0)
    for i in range(at, at + 8 * parts):
        q = f4(levels[picked[i // 8] * 8 + i % 8]) + shifts[(i - at) // 8]
        qx += w[i] * q * xs[i]
        q2 += w[i] * q * q
    return qx / q2 if qx > f4(0) and q2 > f4(0) else scale


@inner
def _limit(scores, total):
    """A bit less than the greatest of the scores of some splits: what scores less can't be the best (see `_settled`).

    Less than anything where float32 is not precise enough to say so; `total`: of the importances.
    """
    score = reduce_fmax(scores)
    sure = f4(1e-15) < score < f4(1e15) and f4(1e-15) < total < f4(1e15)
    return score * f4(1 - 2e-5) if sure else -FLOAT_MAX


@inner
def _settled(limit, score):
    """Whether the first split that scores more than `limit` would also be taken by a search that looks at every one.

    That search has by then a best score of `limit` at most, but for rounding; after it both are the same.
    """
    return limit < f4(0) or score > limit * f4(1 + 1e-5)


@inner
def _threshold(limit, size, total):
    """What a score's numerator squared must exceed, as a share of its denominator and less a constant, for the score to
    be above `limit`, however both are rounded: from a sum below `size` and one of importances below `total`.

    Sums of three such terms, taken in any order, differ by less than 2^-19 of them.
    """
    if not limit > f4(0):
        return f4(0), FLOAT_MAX
    share = limit * f4(1 - 2e-5)  # (a + e)^2 <= a^2 (1 + 1e-5) + e^2 (1 + 1e5)
    return share, f4(2**-18) * total * limit + f4(1e5 * 2**-38) * size * size


@inner
def _candidates(better, start, splits):
    """The lanes of splits (…, start …) that are better, as bits."""
    return mask_bits(better) & ((u4(1) << u4(min(LANES, splits - start))) - u4(1))


@inner
def _sums_s(sums, low, i):
    """Sums of IQ1_S for the splits (low, i … i + 15): of weight times value with the shift up and down, of squares."""
    x, w = sums[:_ROW], sums[_ROW : 2 * _ROW]
    below, under = x[low] - x[0], w[low] - w[0]
    middle = (load(x, i) - x[low]) * (PLUS + f4(1))
    square = (load(w, i) - w[low]) * (PLUS + f4(1)) * (PLUS + f4(1))
    qx = (middle + below * PLUS) + load(sums, 2 * _ROW + i)
    qx1 = (below * MINUS - middle) + load(sums, 3 * _ROW + i)
    q2 = (square + under * PLUS * PLUS) + load(sums, 4 * _ROW + i)
    q21 = (square + under * MINUS * MINUS) + load(sums, 5 * _ROW + i)
    return qx, qx1, q2, q21


@inner
def _search_s(sums, limit, size, found):
    """The best split of 32 weights that scores more than `limit`: its scale, and whether it is the best of all.

    size: of the sums of weights.  A sum is of three terms: one of the middle, one of the low end, a constant; so most
    splits are passed over for an addition, a square and a comparison each.
    """
    x, w = sums[:_ROW], sums[_ROW : 2 * _ROW]
    lines, at = sums[6 * _ROW : 8 * _ROW], 8 * _ROW
    share, less = _threshold(limit, size, w[32])
    for i in range(0, 33, LANES):
        store(lines, i, (w[32] * f4(1.265625) - load(w, i) * f4(1.25)) * share - less)
        store(lines, _ROW + i, (w[32] * f4(0.765625) - load(w, i) * f4(0.75)) * share - less)
    best, scale = limit, f4(0)
    found[0] = -1
    for low in range(33):
        plus, minus = x[32] * f4(1.125) - x[low], x[32] * f4(0.875) - x[low]
        under, below = w[low] * f4(0.75) * share, w[low] * f4(1.25) * share
        for start in range(low, 33, LANES):
            middle = load(x, start)
            one, two = plus - middle, minus - middle
            hits = (one * one > load(lines, start) + under) | (two * two > load(lines, _ROW + start) + below)
            if not _candidates(hits, start, 33):
                continue
            qx, qx1, q2, q21 = _sums_s(sums, low, start)
            better = _candidates((qx * qx > q2 * best) | (qx1 * qx1 > q21 * best), start, 33)
            store(sums, at, qx)
            store(sums, at + LANES, qx1)
            store(sums, at + 2 * LANES, q2)
            store(sums, at + 3 * LANES, q21)
            while better:
                lane = np.int64(trailing_zeros(better))
                better &= better - u4(1)
                for shift in range(2):
                    a, b = sums[at + LANES * shift + lane], sums[at + LANES * (2 + shift) + lane]
                    if b > f4(0) and a * a > best * b:
                        scale = a / b
                        best = scale * a
                        if found[0] < 0 and not _settled(limit, best):
                            return scale, False
                        found[0], found[1], found[2] = low, start + lane, shift
    return scale, found[0] >= 0 or limit < f4(0)


@inner
def _split_s(xs, w, at, order, sums, found):
    """The best split of 32 weights: its scale; low, middle and shift (0 or 1) in `found` (low -1: none)."""
    x, total = sums[:_ROW], sums[_ROW : 2 * _ROW]
    one, all_, size = f4(0), f4(0), f4(0)
    x[0] = total[0] = 0
    for j in range(32):
        i = at + order[j]
        term = w[i] * xs[i]
        one, all_, size = one + term, all_ + w[i], size + abs(term)
        x[j + 1], total[j + 1] = one, all_
    for i in range(0, 33, LANES):
        above, over = x[32] - load(x, i), total[32] - load(total, i)
        store(sums, 2 * _ROW + i, above * (PLUS + f4(2)))
        store(sums, 3 * _ROW + i, above * (MINUS + f4(2)))
        store(sums, 4 * _ROW + i, over * (PLUS + f4(2)) * (PLUS + f4(2)))
        store(sums, 5 * _ROW + i, over * (MINUS + f4(2)) * (MINUS + f4(2)))
    scores = splat(f4(0))
    for low in range(8, 12):  # likely ones
        qx, qx1, q2, q21 = _sums_s(sums, low, low + 4)
        scores = max_(max_(scores, qx * qx / q2), qx1 * qx1 / q21)
    scale, done = _search_s(sums, _limit(scores, total[32]), size, found)
    return scale if done else _search_s(sums, -FLOAT_MAX, size, found)[0]


@kernel(F32, F32, types.intp, *TABLES, OUT_U8)
def encode_iq1_s(rows, importance, columns, levels, entry, first, numbers, out):
    tables = levels, entry, first, numbers
    xs, w, shifts, sums = empty(256, f4), empty(256, f4), empty(4, f4), zeros(10 * _ROW, f4)
    order, level, picked, found = empty(32, np.int64), empty(32, np.int32), empty(32, np.int32), empty(3, np.int64)
    scales, down, some = empty(8, f4), empty(8, np.int64), empty(8, np.int64)
    for block in range(rows.size // 256):
        at = 50 * block
        fill(out, at, at + 50, 0)
        sigma2 = f4(2) * widen(rows, 256 * block, xs) / f4(256)
        greatest = f4(0)
        for part in range(8):
            scales[part], down[part], some[part] = 0, 0, 0
            peak = _weigh(xs, 32 * part, 32, importance, (256 * block) % columns + 32 * part, sigma2, w)
            if peak < f4(1e-12):
                continue
            _sort(xs, 32 * part, 32, order)
            scale = _split_s(xs, w, 32 * part, order, sums, found)
            if found[0] < 0:
                continue
            flip = scale < f4(0)
            _levels(order, 32, found[0], found[1], flip, level)
            scales[part], down[part], some[part] = abs(scale), found[2] ^ flip, 1
            _points(level, 4 * part, 4, picked, tables)
        for part in range(8):
            if not some[part]:
                continue
            fill(shifts, 0, 4, MINUS if down[part] else PLUS)
            scale = _entries(xs, w, 32 * part, 4, scales[part], shifts, picked, tables)
            high = 0
            for k in range(4):
                out[at + 2 + 4 * part + k] = picked[4 * part + k] & 255
                high |= (picked[4 * part + k] >> 8) << (3 * k)
            out[at + 34 + 2 * part] = high & 255
            out[at + 35 + 2 * part] = high >> 8
            scales[part] = scale
            greatest = max(greatest, scale)
        if not greatest > f4(0):
            continue
        d = greatest / f4(15)
        put_f16(out, at, d * f4(1.125))
        for part in range(8):
            step = max(i4(0), min(i4(7), nearest(f4(0.5) * (f4(1) / d * scales[part] - f4(1)))))
            out[at + 35 + 2 * part] |= (step << 4) | (down[part] << 7)


@inner
def _half_m(x, w, low, i):
    """Sums of IQ1_M for one half's part in the splits (low, i … i + 15), with the shift up and down."""
    sx = load(x, i) + x[low]
    wide = load(w, i)
    qx, qx1 = x[16] * f4(1.125) - sx, x[16] * f4(0.875) - sx
    q2 = wide * f4(-1.25) + (w[16] * f4(1.125) * f4(1.125) + w[low] * f4(0.75))
    q21 = wide * f4(-0.75) + (w[16] * f4(0.875) * f4(0.875) + w[low] * f4(1.25))
    return qx, qx1, q2, q21


@inner
def _sums_m(sums, low, start):
    """Those of both halves, with the four pairs of shifts."""
    x0, x1, w0, w1 = sums[:_ROW], sums[_ROW : 2 * _ROW], sums[2 * _ROW : 3 * _ROW], sums[3 * _ROW : 4 * _ROW]
    qx, qx1, q2, q21 = _half_m(x0, w0, low, start)
    rx, rx1, r2, r21 = _half_m(x1, w1, low, start)
    return (qx + rx, qx + rx1, qx1 + rx, qx1 + rx1), (q2 + r2, q2 + r21, q21 + r2, q21 + r21)


@inner
def _lines_m(sums, limit, size):
    """What `_search_m` compares with: the sums of both halves together, a line for each pair of shifts; its share."""
    x0, x1, w0, w1 = sums[:_ROW], sums[_ROW : 2 * _ROW], sums[2 * _ROW : 3 * _ROW], sums[3 * _ROW : 4 * _ROW]
    share, less = _threshold(limit, size, w0[16] + w1[16])
    for i in range(0, 17, LANES):
        store(sums, 8 * _ROW + i, load(x0, i) + load(x1, i))
        plus0, minus0 = w0[16] * f4(1.265625) - load(w0, i) * f4(1.25), w0[16] * f4(0.765625) - load(w0, i) * f4(0.75)
        plus1, minus1 = w1[16] * f4(1.265625) - load(w1, i) * f4(1.25), w1[16] * f4(0.765625) - load(w1, i) * f4(0.75)
        store(sums, 9 * _ROW + i, (plus0 + plus1) * share - less)
        store(sums, 10 * _ROW + i, (plus0 + minus1) * share - less)
        store(sums, 11 * _ROW + i, (minus0 + plus1) * share - less)
        store(sums, 12 * _ROW + i, (minus0 + minus1) * share - less)
    return share


@inner
def _hits_m(sums, share, low, start):
    """Which of the splits (low, start … start + 15) may score more than the limit, see `_search_s`."""
    x0, x1, w0, w1 = sums[:_ROW], sums[_ROW : 2 * _ROW], sums[2 * _ROW : 3 * _ROW], sums[3 * _ROW : 4 * _ROW]
    both = load(sums, 8 * _ROW + start) + (x0[low] + x1[low])
    plus0, minus0, plus1, minus1 = x0[16] * f4(1.125), x0[16] * f4(0.875), x1[16] * f4(1.125), x1[16] * f4(0.875)
    a, b, c, d = (plus0 + plus1) - both, (plus0 + minus1) - both, (minus0 + plus1) - both, (minus0 + minus1) - both
    p, q, r, t = (w0[low] * f4(0.75), w0[low] * f4(1.25), w1[low] * f4(0.75), w1[low] * f4(1.25))
    first = (a * a > load(sums, 9 * _ROW + start) + (p + r) * share) | (
        b * b > load(sums, 10 * _ROW + start) + (p + t) * share
    )
    second = (c * c > load(sums, 11 * _ROW + start) + (q + r) * share) | (
        d * d > load(sums, 12 * _ROW + start) + (q + t) * share
    )
    return _candidates(first | second, start, 17)


@inner
def _search_m(sums, limit, size, found):
    """The best split of 16 weights that scores more than `limit`: its scale, and whether it is the best of all."""
    qxs, q2s = sums[4 * _ROW : 6 * _ROW], sums[6 * _ROW : 8 * _ROW]
    share = _lines_m(sums, limit, size)
    best, scale = limit, f4(0)
    found[0] = -1
    for low in range(17):
        for start in range(low, 17, LANES):
            if not _hits_m(sums, share, low, start):
                continue
            a, b = _sums_m(sums, low, start)
            first = (a[0] * a[0] > b[0] * best) | (a[1] * a[1] > b[1] * best)
            second = (a[2] * a[2] > b[2] * best) | (a[3] * a[3] > b[3] * best)
            better = _candidates(first | second, start, 17)
            for k in range(4):
                store(qxs, LANES * k, a[k])
                store(q2s, LANES * k, b[k])
            while better:
                lane = np.int64(trailing_zeros(better))
                better &= better - u4(1)
                for k in range(4):
                    one, two = qxs[LANES * k + lane], q2s[LANES * k + lane]
                    if two > f4(0) and one * one > best * two:
                        scale = one / two
                        best = scale * one
                        if found[0] < 0 and not _settled(limit, best):
                            return scale, False
                        found[0], found[1], found[2] = low, start + lane, k
    return scale, found[0] >= 0 or limit < f4(0)


@inner
def _split_m(xs, w, at, order, sums, found):
    """The best split of 16 weights: its scale; low, middle and shifts (2 for the first half + 1 for the second)."""
    x0, x1, w0, w1 = sums[:_ROW], sums[_ROW : 2 * _ROW], sums[2 * _ROW : 3 * _ROW], sums[3 * _ROW : 4 * _ROW]
    a, b, c, d, size = f4(0), f4(0), f4(0), f4(0), f4(0)
    x0[0] = x1[0] = w0[0] = w1[0] = 0
    for j in range(16):
        i = order[j]
        weight, term = w[at + i], w[at + i] * xs[at + i]
        size += abs(term)
        a, b = a + (term if i < 8 else f4(0)), b + (f4(0) if i < 8 else term)
        c, d = c + (weight if i < 8 else f4(0)), d + (f4(0) if i < 8 else weight)
        x0[j + 1], x1[j + 1], w0[j + 1], w1[j + 1] = a, b, c, d
    scores = splat(f4(0))
    for low in range(4, 6):  # likely ones
        one, two = _sums_m(sums, low, low)
        for k in range(4):
            scores = max_(scores, select(load_i32(LANE, 0) < i4(17 - low), one[k] * one[k] / two[k], f4(0)))
    scale, done = _search_m(sums, _limit(scores, w0[16] + w1[16]), size, found)
    return scale if done else _search_m(sums, -FLOAT_MAX, size, found)[0]


@kernel(F32, F32, types.intp, *TABLES, OUT_U8)
def encode_iq1_m(rows, importance, columns, levels, entry, first, numbers, out):
    tables = levels, entry, first, numbers
    xs, w, shifts, sums = empty(256, f4), empty(256, f4), empty(4, f4), zeros(13 * _ROW, f4)
    order, level, found = empty(32, np.int64), empty(32, np.int32), empty(3, np.int64)
    scales, kinds, picked = empty(16, f4), empty(16, np.int64), empty(32, np.int32)
    words, some = empty(4, np.int64), empty(16, np.int64)
    for block in range(rows.size // 256):
        at = 56 * block
        fill(out, at, at + 56, 0)
        sigma2 = f4(2) * widen(rows, 256 * block, xs) / f4(256)
        greatest = f4(0)
        fill(picked, 0, 32, 0)
        for part in range(16):
            scales[part], kinds[part], some[part] = 0, 0, 0
            wat = (256 * block) % columns + 16 * part
            if _weigh(xs, 16 * part, 16, importance, wat, sigma2, w) < f4(1e-7):
                continue
            _sort(xs, 16 * part, 16, order)
            scale = _split_m(xs, w, 16 * part, order, sums, found)
            if found[0] < 0:
                continue
            flip = scale < f4(0)
            _levels(order, 16, found[0], found[1], flip, level)
            scales[part], kinds[part], some[part] = abs(scale), 3 - found[2] if flip else found[2], 1
            _points(level, 2 * part, 2, picked, tables)
        for part in range(16):
            if not some[part]:
                continue
            shifts[0] = MINUS if kinds[part] & 2 else PLUS
            shifts[1] = MINUS if kinds[part] & 1 else PLUS
            scale = _entries(xs, w, 16 * part, 2, scales[part], shifts, picked, tables)
            for k in range(2):
                out[at + 2 * part + k] = picked[2 * part + k] & 255
                out[at + 32 + part] |= (picked[2 * part + k] >> 8) << (4 * k)
            scales[part] = scale
            greatest = max(greatest, scale)
        if not greatest > f4(0):
            continue
        d = greatest / f4(15)
        inverse = f4(1) / d
        fill(words, 0, 4, 0)
        qx, q2 = f4(0), f4(0)
        for part in range(16):
            step = max(i4(0), min(i4(7), nearest(f4(0.5) * (inverse * scales[part] - f4(1)))))
            words[part // 4] |= step << (3 * (part % 4))
            out[at + 32 + part] |= ((kinds[part] & 1) << 7) | ((kinds[part] & 2) << 2)
            for i in range(16 * part, 16 * part + 16):
                shift = MINUS if kinds[part] & (2 >> (i // 8 & 1)) else PLUS
                q = (f4(levels[picked[i // 8] * 8 + i % 8]) + shift) * f4(2 * step + 1)
                qx += w[i] * q * xs[i]
                q2 += w[i] * q * q
        if q2 > f4(0):
            d = qx / q2
        half = np.int64(f16_bits(d * f4(1.1125)))
        for n in range(4):
            word = words[n] | (((half >> (4 * n)) & 15) << 12)
            out[at + 48 + 2 * n] = word & 255
            out[at + 49 + 2 * n] = word >> 8
