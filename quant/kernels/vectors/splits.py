"""The best split of some weights into low, middle and high ones, for IQ1: sixteen parts of a row abreast, one a lane.

The weights are sorted, and all ways of splitting them are weighed, with either shift (IQ1_M: either one for each half).
What passes over most of them is a bound: a subtraction, a square, an addition and a comparison for each shift.  Only
where a lane may beat its best so far are the reference's own sums made, in its order.

Source of the rules: `quantize_row_iq1_s_impl` and `quantize_row_iq1_m_impl` of ggml.
"""

import numpy as np

from llmconv.quant.kernels.compiling.build import inlined, inner
from llmconv.quant.kernels.vectors.codegen import LANES
from llmconv.quant.kernels.vectors.lanes import f4, i4
from llmconv.quant.kernels.vectors.memory import load, load_i32, store
from llmconv.quant.kernels.vectors.simd import any_lane, fabs, max_, select, splat

PLUS, MINUS = f4(-0.875), f4(-1.125)
"""What level 0 stands for under the shift up and down; levels 1 and 2 are one and two more."""
_UP, _DOWN = f4(1.125), f4(0.875)  # level 2
_FIRST_UP, _SECOND_UP = f4(0.75), f4(1.25)  # by how much the squares of levels 0 and 1, 1 and 2 differ
_FIRST_DOWN, _SECOND_DOWN = f4(1.25), f4(0.75)
FLOAT_MAX = f4(3.4028235e38)
u8 = np.uint64


@inner
def rank_all(x, size, rank):
    """Each weight's place in ascending order, equal ones as they come; `rank` and `x` are tiles."""
    for j in range(size):
        here, before = load(x, LANES * j), splat(i4(0))
        for i in range(j):
            before = before + select(load(x, LANES * i) <= here, splat(i4(1)), i4(0))
        for i in range(j + 1, size):
            before = before + select(load(x, LANES * i) < here, splat(i4(1)), i4(0))
        store(rank, LANES * j, before)


@inner
def running(rank, x, w, start, stop, size, sums, weights):
    """Running sums, in ascending order, of weight times value and of weights; of those from `start` to `stop` only."""
    for row in range(size + 1):
        store(sums, LANES * row, splat(f4(0)))
        store(weights, LANES * row, splat(f4(0)))
    for i in range(LANES * start, LANES * stop):
        place = u8(LANES) * u8(rank[u8(i)] + i4(1)) + u8(i & (LANES - 1))
        sums[place] = w[u8(i)] * x[u8(i)]
        weights[place] = w[u8(i)]
    a, b = splat(f4(0)), splat(f4(0))
    for row in range(1, size + 1):
        a, b = a + load(sums, LANES * row), b + load(weights, LANES * row)
        store(sums, LANES * row, a)
        store(weights, LANES * row, b)


@inlined
def _row(array, number):
    return load(array, LANES * number)


@inlined
def _sums_s(x, w, size, low, mid, qx, q2):
    """IQ1_S's sums of weight times value and of squared values in the split (low, mid), with the shift up and down."""
    below, under = _row(x, low), _row(w, low)
    middle, square = (_row(x, mid) - below) * f4(0.125), (_row(w, mid) - under) * f4(0.125) * f4(0.125)
    above, over = _row(x, size) - _row(x, mid), _row(w, size) - _row(w, mid)
    store(qx, 0, (below * PLUS + middle) + above * _UP)
    store(qx, LANES, (below * MINUS - middle) + above * _DOWN)
    store(q2, 0, (under * PLUS * PLUS + square) + over * _UP * _UP)
    store(q2, LANES, (under * MINUS * MINUS + square) + over * _DOWN * _DOWN)


@inlined
def _half(x, w, size, low, mid):
    """Sums of IQ1_M for one half, with the shift up and down."""
    both, total = _row(x, low) + _row(x, mid), _row(w, size)
    qx, qx1 = _row(x, size) * _UP - both, _row(x, size) * _DOWN - both
    q2 = (total * _UP * _UP + _row(w, low) * _FIRST_UP) + _row(w, mid) * -_SECOND_UP
    q21 = (total * _DOWN * _DOWN + _row(w, low) * _FIRST_DOWN) + _row(w, mid) * -_SECOND_DOWN
    return qx, qx1, q2, q21


@inlined
def _sums_m(x, w, size, low, mid, qx, q2):
    """Those of both halves, with the four pairs of shifts."""
    rows = LANES * (size + 1)
    a, a1, b, b1 = _half(x, w, size, low, mid)
    c, c1, d, d1 = _half(x[rows : 2 * rows], w[rows : 2 * rows], size, low, mid)
    store(qx, 0, a + c)
    store(qx, LANES, a + c1)
    store(qx, 2 * LANES, a1 + c)
    store(qx, 3 * LANES, a1 + c1)
    store(q2, 0, b + d)
    store(q2, LANES, b + d1)
    store(q2, 2 * LANES, b1 + d)
    store(q2, 3 * LANES, b1 + d1)


@inlined
def _squares(w, size, row):
    """What the splits at `row` add to the sum of one half's squared values: as the upper bound and as the lower one."""
    total, weight = _row(w, size), _row(w, row)
    up, down = total * f4(1.265625) - weight * _SECOND_UP, total * f4(0.765625) - weight * _SECOND_DOWN
    return up, down, weight * _FIRST_UP, weight * _FIRST_DOWN


@inlined
def _draw_s(x, w, size, less, tops, lines):
    """What `_over` compares with: `tops` of the shifts, and each row's `lines`, as the upper bound and as the lower."""
    store(tops, 0, _row(x, size) * _UP)
    store(tops, LANES, _row(x, size) * _DOWN)
    for row in range(size + 1):
        up, down, under, below = _squares(w, size, row)
        at = 4 * LANES * row
        store(lines, at, up - less)
        store(lines, at + LANES, down - less)
        store(lines, at + 2 * LANES, under)
        store(lines, at + 3 * LANES, below)


@inlined
def _draw_m(x, w, size, less, tops, lines):
    rows = LANES * (size + 1)
    x1, w1 = x[rows : 2 * rows], w[rows : 2 * rows]
    up, down, up1, down1 = _row(x, size) * _UP, _row(x, size) * _DOWN, _row(x1, size) * _UP, _row(x1, size) * _DOWN
    store(tops, 0, up + up1)
    store(tops, LANES, up + down1)
    store(tops, 2 * LANES, down + up1)
    store(tops, 3 * LANES, down + down1)
    for row in range(size + 1):
        up, down, under, below = _squares(w, size, row)
        up1, down1, under1, below1 = _squares(w1, size, row)
        at = 8 * LANES * row
        store(lines, at, (up + up1) - less)
        store(lines, at + LANES, (up + down1) - less)
        store(lines, at + 2 * LANES, (down + up1) - less)
        store(lines, at + 3 * LANES, (down + down1) - less)
        store(lines, at + 4 * LANES, under + under1)
        store(lines, at + 5 * LANES, under + below1)
        store(lines, at + 6 * LANES, below + under1)
        store(lines, at + 7 * LANES, below + below1)


@inlined
def _over(top, middle, reach, lines, at, under):
    """Where a split may score more than what `reach` stands for (see `_reach`)."""
    off = top - middle
    return off * off * reach > load(lines, at) + under


@inlined
def _starts_s(tops, lines, below, low):
    """What is the same for all splits (low, ...): for each shift, what is squared and what a line is compared with."""
    at = 4 * LANES * low + 2 * LANES
    return load(tops, 0) - below, load(tops, LANES) - below, load(lines, at), load(lines, at + LANES)


@inlined
def _hits_s(starts, reach, lines, middle, mid):
    at = 4 * LANES * mid
    return _over(starts[0], middle, reach, lines, at, starts[2]) | _over(
        starts[1], middle, reach, lines, at + LANES, starts[3]
    )


@inlined
def _starts_m(tops, lines, below, low):
    at = 8 * LANES * low + 4 * LANES
    a, b = load(tops, 0) - below, load(tops, LANES) - below
    c, d = load(tops, 2 * LANES) - below, load(tops, 3 * LANES) - below
    return (
        a,
        b,
        c,
        d,
        load(lines, at),
        load(lines, at + LANES),
        load(lines, at + 2 * LANES),
        load(lines, at + 3 * LANES),
    )


@inlined
def _hits_m(starts, reach, lines, middle, mid):
    at = 8 * LANES * mid
    first = _over(starts[0], middle, reach, lines, at, starts[4]) | _over(
        starts[1], middle, reach, lines, at + LANES, starts[5]
    )
    at += 2 * LANES
    return (first | _over(starts[2], middle, reach, lines, at, starts[6])) | _over(
        starts[3], middle, reach, lines, at + LANES, starts[7]
    )


@inlined
def _reach(score):
    """What a sum of weight times value, squared, is multiplied by before it is compared with that of squared values."""
    return select(score > f4(0), splat(f4(1 + 3e-5)) / score, f4(0))


@inlined
def _slack(limit, most, total):
    """By how much the latter is lowered, so that no split that scores more than `limit` or a greater score is passed
    over, however the sums are rounded: those of weight times value below `most`, of importances below `total`.

    Sums of three such terms, taken in any order, differ by less than 2^-19 of them, and (a + e)^2 is at most
    a^2 (1 + 1e-5) + e^2 (1 + 1e5).
    """
    return select(limit > f4(0), f4(2**-18) * total + f4(1e5 * 2**-37) * most * most / limit, FLOAT_MAX)


def splitter(size, halves, likely):
    """A function that finds the best split of `size` weights, whose shift may be another for each of `halves` halves.

    likely: splits among which the best often nearly is, so that their scores are a bound for the others.
    """
    rows, shifts = size + 1, 2 * halves
    sums_of, draw = (_sums_s, _draw_s) if halves == 1 else (_sums_m, _draw_m)
    starts_of, hits_of = (_starts_s, _hits_s) if halves == 1 else (_starts_m, _hits_m)
    lows, mids = (np.array(numbers) for numbers in zip(*likely, strict=True))
    many = len(likely)
    end = LANES * rows
    x_at, w_at = 0, halves * end  # in the scratch of floats
    both_at, lines_at = 2 * halves * end, (2 * halves + 1) * end
    tops_at = lines_at + 2 * shifts * end
    qx_at, q2_at = tops_at + shifts * LANES, tops_at + 2 * shifts * LANES
    best_at = q2_at + shifts * LANES
    limit_at = best_at + LANES
    floats = limit_at + LANES

    @inlined
    def limit_of(total, s):
        """A bit less than the greatest score of some splits: what scores less can't be the best (see `settled`).

        Less than anything where float32 is not precise enough to say so; `total`: of the importances.
        """
        x, w, qx, q2 = s[x_at:w_at], s[w_at:both_at], s[qx_at:q2_at], s[q2_at:best_at]
        score = splat(f4(0))
        for i in range(many):
            sums_of(x, w, size, lows[i], mids[i], qx, q2)
            for k in range(shifts):
                one = load(qx, LANES * k)
                score = max_(one * one / load(q2, LANES * k), score)
        sure = (score > f4(1e-15)) & (score < f4(1e15)) & (total > f4(1e-15)) & (total < f4(1e15))
        return select(sure, score * f4(1 - 2e-5), -FLOAT_MAX)

    @inlined
    def better(split, limit, asked, s, scales, splits):
        """Take the split where it beats the best so far; the lanes where that is the first one, and not settled.

        A search that looks at every split has by then a best score of `limit` at most, but for rounding: so it would
        take the first one that scores a bit more than `limit`, and from then on both are the same.
        """
        qx, q2 = s[qx_at:q2_at], s[q2_at:best_at]
        best, scale, before = load(s, best_at), load(scales, 0), load_i32(splits, 0)
        after = before
        for k in range(shifts):
            one, two = load(qx, LANES * k), load(q2, LANES * k)
            ratio = one / two
            beats = (two > f4(0)) & (one * one > best * two) & asked
            best, scale = select(beats, ratio * one, best), select(beats, ratio, scale)
            after = select(beats, split + i4(k), after)
        store(s, best_at, best)
        store(scales, 0, scale)
        store(splits, 0, after)
        first = (before < i4(0)) & (after >= i4(0))
        return select(first & (limit > f4(0)) & (best <= limit * f4(1 + 1e-5)), splat(i4(1)), i4(0))

    @inner
    def search(asked, limit, s, scales, splits):
        """The best splits that score more than `limit`, in the lanes `asked`; those in which it is unsettled .

        See `better`.
        """
        x, w, both = s[x_at:w_at], s[w_at:both_at], s[both_at:lines_at]
        lines, tops, qx, q2 = s[lines_at:tops_at], s[tops_at:qx_at], s[qx_at:q2_at], s[q2_at:best_at]
        every, unsettled, reach = any_lane(asked & (limit < f4(0))), splat(i4(0)), _reach(limit)
        store(s, best_at, limit)
        store(splits, 0, select(asked, i4(-1), load_i32(splits, 0)))
        for low in range(rows):
            starts = starts_of(tops, lines, load(both, LANES * low), low)
            for mid in range(low, rows):
                if every or any_lane(hits_of(starts, reach, lines, load(both, LANES * mid), mid)):
                    sums_of(x, w, size, low, mid, qx, q2)
                    split = splat(i4(4 * (64 * low + mid)))
                    unsettled = unsettled | better(split, limit, asked, s, scales, splits)
                    reach = _reach(load(s, best_at))
        return unsettled

    @inlined
    def split(xs, ws, asked, rank, s, scales, splits):
        """Of sixteen parts, `xs` and their importances `ws` in tiles: their places in order; the best splits' scales;
        256 times low, 4 times middle and the shift, -1 for none.  Only in the lanes `asked` is any of that so.
        """
        x, w, both = s[x_at:w_at], s[w_at:both_at], s[both_at:lines_at]
        lines, tops = s[lines_at:tops_at], s[tops_at:qx_at]
        rank_all(xs, size, rank)
        most = splat(f4(0))
        for i in range(size):
            most = most + fabs(load(xs, LANES * i) * load(ws, LANES * i))
        total = splat(f4(0))
        for half in range(halves):
            start, stop = size // halves * half, size // halves * (half + 1)
            running(rank, xs, ws, start, stop, size, x[end * half : end * (half + 1)], w[end * half : end * (half + 1)])
            total = total + load(w, end * half + LANES * size)
        for row in range(rows):
            middle = load(x, LANES * row)
            for half in range(1, halves):
                middle = middle + load(x, end * half + LANES * row)
            store(both, LANES * row, middle)
        limit = limit_of(total, s)
        draw(x, w, size, select(asked, _slack(limit, most, total), -FLOAT_MAX), tops, lines)
        unsettled = search(asked, limit, s, scales, splits) != i4(0)
        if any_lane(unsettled):
            search(unsettled, splat(-FLOAT_MAX), s, scales, splits)

    return split, floats
