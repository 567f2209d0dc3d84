"""The search of IQ2 and IQ3 types: the scale and the codebook entries for 16 or 32 weights.

Tries 13 to 31 scales; each one rounds every eight (IQ3: four) weights to the nearest codebook entry; the scale that
explains the weights best wins, and they are rounded once more with it.  Here the tries lie in the lanes.  Those in a
row that round to the same point share its neighbours; tries with the same entries everywhere are one.  Every number is
computed in the reference's order, or by a shorter way that says as surely which is the least.

Source of the rules: `quantize_row_iq2_xxs_impl` and the like, and `make_qp_quants` of ggml.
"""

import numpy as np

from llmconv.quant.kernels.compiling.build import I32, U8, U16, inlined, inner
from llmconv.quant.kernels.vectors.choosing import choose4, choose8, repeat4, repeat8
from llmconv.quant.kernels.vectors.codegen import LANES
from llmconv.quant.kernels.vectors.lanes import LANE, f4, i4
from llmconv.quant.kernels.vectors.memory import load, load_halves, load_i32, prefetch, store, transpose
from llmconv.quant.kernels.vectors.nearest import nearest_entry
from llmconv.quant.kernels.vectors.simd import (
    bits,
    clamp,
    count_ones,
    fabs,
    mask_bits,
    max_,
    min_,
    nearest_int,
    neg,
    not_,
    reduce_fmax,
    select,
    splat,
    sqrt,
    to_float,
    trailing_zeros,
)

TABLES = U8, I32, I32, U16
"""`llmconv.quant.blocks.iq_tables.Search`, field by field."""

u4, u8 = np.uint32, np.uint64


def _targets(middle, tries, step):
    """What a try makes of the greatest weight: `middle` and `tries` steps each way, then padding to whole vectors."""
    count = 2 * tries + 1
    targets = np.full((count + LANES - 1) // LANES * LANES, middle, np.float32)
    targets[:count] = np.arange(-tries, tries + 1, dtype=np.float32) * np.float32(step) + np.float32(middle)
    return targets


# The scratch of a search, one float32 array: the weights' magnitudes, their importance and its root; for each of up to
# 32 tries its scale and the sums it gives.
_X, _W, _ROOT, _SCALE, _QX, _Q2 = range(0, 192, 32)
_COST = 192  # only while signs are split
_LISTED = 320  # a point's neighbours: IQ2_XS has up to 292
_SCORE = 192  # when the search is over
_SQUARES, _PRODUCTS = 192, 192 + _LISTED
SCRATCH = 192 + 2 * _LISTED
_PLACES = 256 + LANES  # for each try of each part
_SOME = 6 * _PLACES + 32
SPACE = _SOME + _LISTED + LANES
"""Integers in which a search works."""
NOTHING = f4(np.nan)
_NONE = 255
_BIT = (1 << np.arange(2 * LANES, dtype=np.int64)).astype(np.uint32).view(np.int32)


@inner
def nearest(v):
    """ggml's `nearest_int` of a number."""
    return (bits(v + f4(12582912)) & i4(0x007FFFFF)) - i4(0x00400000)


@inner
def level_of(inverse, scale, top):
    """A block's scale as an integer of 0 … top: levels stand for scales 1/2, 3/2, 5/2, ... (halved)."""
    return max(i4(0), min(i4(top), nearest(f4(0.5) * (inverse * scale - f4(1)))))


@inner
def _sums_of_squares(rows, first, sums, tile):
    """Of sixteen blocks from `first` on, or fewer, each in its own order: abreast where there are as many."""
    if 256 * (first + LANES) <= rows.size:
        total = splat(f4(0))
        for i in range(0, 256, LANES):
            transpose(rows, 256 * first + i, 256, tile, 0)
            for k in range(LANES):
                x = load(tile, LANES * k)
                total = total + x * x
        store(sums, 0, total)
        return
    for block in range(first, rows.size // 256):
        one = f4(0)
        for i in range(256 * block, 256 * block + 256):
            one += rows[i] * rows[i]
        sums[block - first] = one


@inner
def widen(rows, block, xs, sums, tile):
    """A copy of one block of weights; the sum of their squares.

    sums: those of sixteen blocks, made when the first of them is asked for.   tile: room for 256 numbers.
    """
    for i in range(0, 256, LANES):
        store(xs, i, load(rows, 256 * block + i))
    if block % LANES == 0:
        _sums_of_squares(rows, block, sums, tile)
    return sums[block % LANES]


@inner
def weigh(xs, at, count, importance, wat, sigma2, floor, s):
    """Importance and its root: the one given times sqrt(sigma2 + square), else the square plus `floor`."""
    for i in range(0, count, LANES):
        x = load(xs, at + i)
        w = load(importance, wat + i) * sqrt(x * x + sigma2) if importance.size else x * x + floor
        store(s, _W + i, w)
        store(s, _ROOT + i, sqrt(w))


@inner
def split_signs(xs, at, count, even, s, signs):
    """Magnitudes to the scratch, a byte of signs for eight; the greatest magnitude.

    even: where an odd number of eight weights is negative, the least costly one keeps the wrong sign (its
    magnitude turns negative), and the eighth sign is not kept.
    """
    for i in range(0, count, LANES):
        x = load(xs, at + i)
        positive = x >= f4(0)
        store(s, _X + i, select(positive, x, neg(x)))
        store(s, _COST + i, load(s, _W + i) * x * x)
        sixteen = np.int64(mask_bits(not_(positive)))
        signs[i // 8], signs[i // 8 + 1] = sixteen & 255, sixteen >> 8
    if even:
        for k in range(count // 8):
            if count_ones(u4(signs[k])) & u4(1):
                cheapest = 8 * k
                least = s[_COST + cheapest]
                for i in range(8 * k + 1, 8 * k + 8):
                    cost = s[_COST + i]
                    cheapest = i if cost < least else cheapest
                    least = cost if cost < least else least
                s[_X + cheapest] = -s[_X + cheapest]
                signs[k] ^= 1 << (cheapest - 8 * k)
            signs[k] &= 127
    return _greatest(s, count, False)


@inner
def _greatest(s, count, negative):
    """Of the first `count` weights in the scratch, which has 16 or 32 of them; negative: whatever their signs."""
    most = load(s, _X)
    most = fabs(most) if negative else most
    for i in range(LANES, count, LANES):
        more = load(s, _X + i)
        most = max_(most, fabs(more) if negative else more)
    return reduce_fmax(most)


@inner
def _reach(s, at, size, most, furthest):
    """By how much distances of `size` weights from `at` on must differ to differ surely, but for a factor that
    `_slack` has: this, and this times the scale's square.

    A distance's terms add up to R * (m^2 + (v * scale)^2) at most, for the importances' sum R, the greatest magnitude
    m and value v; rounding changes it by less than 25 * 2^-24 of that as the reference computes it, and by less than 20
    by way of squares and products; twice both is less than 96 * 2^-24.
    """
    total = f4(0)
    for i in range(size):
        total += s[_ROOT + at + i]
    total = total * f4(2**-24)
    precise = total > f4(1e-27) and most > f4(1e-15)
    return total * (most * most) if precise else NOTHING, total * furthest


def _fitter(targets, tries, count, size, step, top, again):
    """A function that rounds `count` weights to a codebook of `size` dimensions, levels 0 … `top` in `step` bits.

    targets, tries: the scales to try are targets / peak, the first `tries` of them.
    again: which parts to round again with the best scale: 0, those that were off the grid; 1, all when any was
        (or when no try succeeded); 2, all.
    """
    parts, slots = count // size, 1 << step
    spread, costs_of, nearest_of, (lines_of, draw, nearest_under) = nearest_entry(size)
    to_qx, to_q2 = choose4[:2] if size == 8 else choose8
    repeat = repeat8[0] if size == 8 else repeat4[0]
    few = parts == 2 and tries > LANES  # otherwise tries that differ fill as many vectors
    every_part = u4((1 << parts) - 1)
    stands_for = 2 * (np.arange(LANES, dtype=np.float32) % slots) + 1
    once_more = np.where(np.arange(LANES) < slots, np.float32(1), stands_for)
    places = (step * (np.arange(LANES) % size)).astype(np.int32)
    furthest = f4((2 * top + 1) ** 2)

    @inlined
    def sums_of(wx, w):
        """What each level adds to the sums of weight times value, and behind these to that of squared values."""
        factor = select(load_i32(LANE, 0) < i4(slots), splat(wx), splat(w))
        return factor * load(stands_for, 0) * load(once_more, 0)

    @inlined
    def round_to_points(peak, s, points):
        """The scales, and the points that they round the weights to."""
        for v in range(0, tries, LANES):
            inverse = load(targets, v) / peak
            store(s, _SCALE + v, f4(1) / inverse)
            for part in range(parts):
                point = splat(i4(0))
                for i in range(size):
                    x = s[_X + part * size + i]
                    level = clamp(nearest_int((inverse * x - f4(1)) * f4(0.5)), i4(0), i4(top))
                    point = point | (level << i4(step * i))
                store(points, 32 * part + v, point)

    @inlined
    def changes(points, part, v):
        """Where, under the tries from `v` on, a part's points change before the next try: lanes that are not zero."""
        return load_i32(points, 32 * part + v) ^ load_i32(points, 32 * part + v + 1)

    @inlined
    def list_runs(points, on_grid, runs, tables):
        """Tries in a row that share a point off the grid: their part and start, their part and end, and where the
        point's neighbours are; how many runs.   on_grid: of each part, the other tries as bits."""
        entry, first, numbers = tables[1], tables[2], tables[3]
        count = u8(0)
        for part in range(parts):
            base, start, on = u4(32 * part), u4(0), u4(0)
            ends = u4(0)  # greater scales never lower a level, so equal points are neighbours
            for v in range(0, tries, LANES):
                ends |= mask_bits(changes(points, part, v) != i4(0)) << u4(v)
            ends = (ends & u4((1 << (tries - 1)) - 1)) | u4(1 << (tries - 1))
            while ends:
                last = trailing_zeros(ends)
                ends &= ends - u4(1)
                which = entry[u8(points[u8(base + last)])]
                off = which >> i4(31)
                prefetch(numbers, np.int64(first[u8(off & ~which)]))
                runs[count], runs[count + u8(1)], runs[count + u8(2)] = base + start, base + last, which
                count += u8(off & i4(3))
                on |= ((u4(2) << last) - (u4(1) << start)) & ~u4(off)
                start = last + u4(1)
            on_grid[part] = on
        return count

    @inlined
    def near_run(run, base, listed, known, reach, s, picks, lists):
        """Under the tries in `run`, which share a point: the nearest of `listed`.

        reach: what the weights, and what the scale's square bring to how much nearer it must be to be so surely.
        """
        numbers, squares, products, points = lists
        t, last = run
        half = (listed[1] - listed[0] + 1) >> 1
        while t <= last:
            scales = load_halves(s, _SCALE + t, _SCALE + t)
            found, nearer = nearest_under(scales, half, squares, products, points)
            slack = (reach[0] + reach[1] * (scales * scales)) * f4(128)
            sure = (nearer > slack) & (slack > f4(1e-36)) & (slack < f4(1e30))
            store(picks, base + t, found)
            doubtful = mask_bits(not_(sure)) & ((u4(2) << u4(min(7, last - t))) - u4(1))
            while doubtful:
                at = t + np.int64(trailing_zeros(doubtful))
                doubtful &= doubtful - u4(1)
                picks[base + at] = nearest_of(costs_of(s[_SCALE + at], f4(0), known), listed, numbers)
            t += 8

    @inlined
    def round_all(s, points, picks, runs, some, tables):
        """The numbers of entries for all parts under every try."""
        first, numbers = tables[2], tables[3]
        squares, products = s[_SQUARES : _SQUARES + _LISTED], s[_PRODUCTS : _PRODUCTS + _LISTED]
        lists, on_grid = (numbers, squares, products, some), some[_LISTED:]
        most = _greatest(s, parts * size, True)
        known = spread(s, _X, s, _ROOT)
        lines, reach = lines_of(known), (f4(0), f4(0))
        ready = -1
        for run in range(u8(0), list_runs(points, on_grid, runs, tables), u8(3)):
            t, last, which = np.int64(runs[run]), np.int64(runs[run + u8(1)]), np.int64(runs[run + u8(2)])
            part = t >> 5
            base = 32 * part
            if part != ready:
                known = spread(s, _X + part * size, s, _ROOT + part * size)
                lines = lines_of(known)
                reach = _reach(s, part * size, size, most, furthest)
                ready = part
            listed = np.int64(first[u8(-1 - which)]), np.int64(first[u8(-which)])
            draw(lines, listed, numbers, squares, products, some)
            near_run((t - base, last - base), base, listed, known, reach, s, picks, lists)
        for part in range(parts):
            for v in range(0, tries, LANES):
                at = 32 * part + v
                on = (load_i32(_BIT, v) & i4(on_grid[part])) != i4(0)
                store(picks, at, select(on, load_i32(points, at), load_i32(picks, at)))

    @inlined
    def line_up(points, picks, lined, order):
        """The tries that differ from the one before into neighbouring lanes: which, and their numbers; how many.

        What points there were counts too: they decide whether one is rounded again, and of equals the last may win.
        """
        count, fresh = 0, u4(0)
        for v in range(0, tries, LANES):
            found = changes(points, 0, v) | changes(picks, 0, v)
            for part in range(1, parts):
                found = found | changes(points, part, v) | changes(picks, part, v)
            fresh |= mask_bits(found != i4(0)) << u4(v)
        fresh = ((fresh << u4(1)) & u4((1 << tries) - 1)) | u4(1)
        while fresh:
            t = np.int64(trailing_zeros(fresh))
            fresh &= fresh - u4(1)
            for part in range(parts):
                lined[32 * part + count] = picks[32 * part + t]
            order[count] = t
            count += 1
        return count

    @inlined
    def add_up(lined, s, both):
        """The sums of sixteen tries, or (`both`) of thirty-two."""
        qx, q2, other_qx, other_q2 = splat(f4(0)), splat(f4(0)), splat(f4(0)), splat(f4(0))
        for part in range(parts):
            number, other = load_i32(lined, 32 * part), load_i32(lined, 32 * part + LANES)
            for i in range(part * size, (part + 1) * size):
                sums = sums_of(s[_W + i] * s[_X + i], s[_W + i])
                qx, q2 = qx + to_qx(sums, number), q2 + to_q2(sums, number)
                number = number >> i4(step)
                if both:
                    other_qx, other_q2 = other_qx + to_qx(sums, other), other_q2 + to_q2(sums, other)
                    other = other >> i4(step)
        store(s, _QX, qx)
        store(s, _Q2, q2)
        store(s, _QX + LANES, other_qx)
        store(s, _Q2 + LANES, other_q2)

    @inlined
    def sum_up(count, lined, s):
        """What each try's entries give: weight times value, and squared values.  Which may be the best, as bits."""
        add_up(lined, s, count > LANES)
        least, faint = splat(f4(0)), u4(0)
        for v in range(0, count, LANES):
            qx, q2 = load(s, _QX + v), load(s, _Q2 + v)
            counts, square = (q2 > f4(0)) & (load_i32(LANE, 0) < i4(count - v)), qx * qx
            faint |= mask_bits(counts & (square < f4(1e-30)))  # too near the least float32 to be precise
            score = select(counts, square / q2, f4(0))
            store(s, _SCORE + v, score)
            least = max_(score, least)
        most = reduce_fmax(least)
        near, sure = u4(0), u4(0)
        for v in range(0, count, LANES):
            score = load(s, _SCORE + v)
            near |= mask_bits(score > most * f4(1 - 2e-5)) << u4(v)
            sure |= mask_bits(score > most * f4(1 - 1e-5)) << u4(v)
        # The first of those near must beat all before it, whatever the rounding.
        precise = not faint and f4(1e-30) < most < f4(1e30) and (near & (u4(0) - near)) & sure
        return near if precise else u4((u8(1) << u8(count)) - u8(1))

    @inlined
    def round_again(scale, skip, s, some, chosen, tables):
        """The parts' points under `scale` in place of the chosen ones, but for those in `skip` (bits); the scale that
        suits them."""
        entry, first, numbers = tables[1], tables[2], tables[3]
        inverse = f4(1) / scale
        for v in range(0, count, LANES):
            level = clamp(nearest_int((inverse * load(s, _X + v) - f4(1)) * f4(0.5)), i4(0), i4(top))
            store(some, v, level << load_i32(places, 0))
        for part in range(parts):
            if skip >> u4(part) & u4(1):
                continue
            point = i4(0)
            for i in range(part * size, (part + 1) * size):
                point |= some[i]
            which = entry[u8(point)]
            if which < 0:
                known = spread(s, _X + part * size, s, _ROOT + part * size)
                listed = np.int64(first[u8(-1 - which)]), np.int64(first[u8(-which)])
                point = np.int32(nearest_of(costs_of(scale, f4(0), known), listed, numbers))
            chosen[part] = point
        for v in range(0, count, LANES):
            level = (repeat(load_i32(chosen, v // size)) >> load_i32(places, 0)) & i4(slots - 1)
            q, w = to_float((level << i4(1)) | i4(1)), load(s, _W + v)
            store(s, _QX + v, w * load(s, _X + v) * q)
            store(s, _Q2 + v, w * q * q)
        qx, q2 = f4(0), f4(0)
        for i in range(count):
            qx += s[_QX + i]
            q2 += s[_Q2 + i]
        return qx / q2 if q2 > f4(0) else scale

    @inlined
    def fit(peak, scale, s, space, picked, tables):
        """The best scale for the weights in the scratch (`scale` when no try succeeds), the entries in `picked`."""
        points, picks, lined = space[:_PLACES], space[_PLACES : 2 * _PLACES], space[2 * _PLACES : 3 * _PLACES]
        runs, order, some = space[3 * _PLACES : 6 * _PLACES], space[6 * _PLACES : _SOME], space[_SOME:]
        entry, chosen = tables[1], some[_LISTED:]
        round_to_points(peak, s, points)
        round_all(s, points, picks, runs, some, tables)
        if few:
            likely = sum_up(line_up(points, picks, lined, order), lined, s)
        else:
            likely = sum_up(tries, picks, s)
        best, winner = f4(0), u8(_NONE)
        while likely:
            t = u8(trailing_zeros(likely))
            likely &= likely - u4(1)
            qx, q2 = s[u8(_QX) + t], s[u8(_Q2) + t]
            if q2 > f4(0) and qx * qx > best * q2:
                scale = qx / q2
                best = scale * qx
                winner = u8(order[t]) if few else t
        on_grid = u4(0)
        for part in range(parts):
            chosen[part] = i4(0)
            if winner != u8(_NONE):
                at = u8(32 * part) + winner
                chosen[part] = picks[at]
                on_grid |= u4(entry[u8(points[at])] >= 0) << u4(part)
        if again == 0 and winner == u8(_NONE):
            on_grid = every_part  # none is rounded again
        if (on_grid != every_part or again == 2) and scale > f4(0):
            scale = round_again(scale, on_grid if again == 0 else u4(0), s, some, chosen, tables)
        for part in range(parts):
            picked[part] = entry[u8(chosen[part])]
        return scale

    return fit


fit_iq2_xxs = _fitter(_targets(5, 6, 0.1), 13, 32, 8, 2, 2, 2)
fit_iq2_xs = _fitter(_targets(5, 9, 0.1), 19, 16, 8, 2, 2, 0)
fit_iq3_xxs = _fitter(_targets(15, 15, 0.2), 31, 32, 4, 3, 7, 0)
fit_iq3_s = _fitter(_targets(15, 9, 0.2), 19, 32, 4, 3, 7, 1)


_POSITIVE = np.float32(0.1) * np.arange(-4, LANES - 4, dtype=np.float32) + np.float32(4)


@inner
def _movers(s, levels, v, lx, l2):
    """Which of sixteen weights would explain more at another level, as bits."""
    w, x, now = load(s, _W + v), load(s, _X + v), load_i32(levels, v)
    level = to_float(now)
    lx1, l21 = lx - w * x * level, l2 - w * level * level
    other = min_(nearest_int(x * l21 / lx1), i4(4))
    level = to_float(other)
    lx2, l22 = lx1 + w * x * level, l21 + w * level * level
    better = (lx1 > f4(0)) & (l21 > f4(0)) & (lx2 * lx2 * l2 > lx * lx * l22)
    return mask_bits(better & (other != now))


@inner
def positive_scale(s, levels):
    """`make_qp_quants` on 32 magnitudes with greatest level 4: a first scale for IQ2_XXS.

    The reference keeps the levels in bytes, where the ones below zero wrap.
    """
    peak = f4(0)
    for i in range(32):
        peak = max(peak, s[_X + i])
    these = load(_POSITIVE, 0) / peak
    scale, error = f4(1) / these, splat(f4(0))
    plain = load_i32(LANE, 0) == i4(4)  # the middle try, which alone keeps levels in bytes
    for i in range(32):
        level = nearest_int(these * s[_X + i])
        level = select(plain, level & i4(255), min_(level, i4(4)))
        off = s[_X + i] - scale * to_float(level)
        error = error + s[_W + i] * off * off
    store(s, _SCALE, these)
    store(s, _QX, error)
    inverse, best = s[_SCALE + 4], s[_QX + 4]
    for t in range(9):
        if s[_QX + t] < best:
            inverse, best = s[_SCALE + t], s[_QX + t]
    lx, l2 = f4(0), f4(0)
    for i in range(32):
        level = min(i4(4), nearest(inverse * s[_X + i]))
        levels[i] = level & i4(255)
        lx += s[_W + i] * s[_X + i] * f4(level)
        l2 += s[_W + i] * f4(level) * f4(level)
    for _ in range(5):
        changed = False
        for v in range(0, 32, LANES):
            after = u4(0xFFFF)  # lanes whose turn is still to come
            while after:
                lane = np.int64(trailing_zeros(_movers(s, levels, v, lx, l2) & after))
                if lane == 32:
                    break
                i = v + lane
                w, x, level = s[_W + i], s[_X + i], f4(levels[i])
                lx1, l21 = lx - w * x * level, l2 - w * level * level
                other = min(i4(4), nearest(x * l21 / lx1))
                lx = lx1 + w * x * f4(other)
                l2 = l21 + w * f4(other) * f4(other)
                levels[i] = other & i4(255)
                changed = True
                after &= u4(0xFFFE) << u4(lane)
        if not changed:
            break
    return lx / l2 if l2 > f4(0) else f4(0)
