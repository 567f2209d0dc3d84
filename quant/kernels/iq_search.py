"""The search of IQ2 and IQ3 types: the scale and the codebook entries for 16 or 32 weights.

Tries 13 to 31 scales; each one rounds every eight (IQ3: four) weights to the nearest codebook entry; the scale that
explains the weights best wins, and they are rounded once more with it.  Here the tries lie in the lanes, and in the
search among a point's neighbours those.  Every number is computed in the reference's order.

Source of the rules: `quantize_row_iq2_xxs_impl` and the like, `make_qp_quants` and the `…_find_best_neighbour`
functions of ggml.
"""

import numpy as np

from llmconv.quant.kernels.compiling.build import I32, U8, U16, inner
from llmconv.quant.kernels.vectors.choosing import choose4, choose8
from llmconv.quant.kernels.vectors.codegen import LANES
from llmconv.quant.kernels.vectors.lanes import LANE, f4, i4
from llmconv.quant.kernels.vectors.memory import load, load_halves, load_i32, prefetch, store
from llmconv.quant.kernels.vectors.simd import (
    bits,
    clamp,
    count_ones,
    halves,
    mask_bits,
    min_,
    nearest_int,
    neg,
    not_,
    reduce_fmin,
    reduce_umax,
    select,
    splat,
    sqrt,
    swap_halves,
    to_float,
    trailing_zeros,
)

TABLES = U8, I32, I32, U16
"""`llmconv.quant.blocks.iq_tables.Search`, field by field."""

u4, u8 = np.uint32, np.uint64

_FLOAT_MAX = f4(3.4028235e38)


def _targets(middle, tries, step):
    """What a try makes of the greatest weight: `middle` and `tries` steps each way, then padding to whole vectors."""
    count = 2 * tries + 1
    targets = np.full((count + LANES - 1) // LANES * LANES, middle, np.float32)
    targets[:count] = np.arange(-tries, tries + 1, dtype=np.float32) * np.float32(step) + np.float32(middle)
    return targets


# The scratch of a search, one float32 array: the weights' magnitudes, their importance and its root, ...
_X, _W, _ROOT = 0, 32, 64
# ... for each of up to 32 tries its scale and the sums it gives, and what `nearest_entry` needs.
_SCALE, _QX, _Q2, _NEAR = 96, 128, 160, 192
_COST = _NEAR  # only while signs are split
NEAR = 2 * 48
SCRATCH = _NEAR + NEAR
COSTS = 32 * 32 + LANES
"""Floats for what each of 32 levels and dimensions costs under each try."""
POINTS = 256 + LANES


@inner
def nearest(v):
    """ggml's `nearest_int` of a number."""
    return (bits(v + f4(12582912)) & i4(0x007FFFFF)) - i4(0x00400000)


@inner
def level_of(inverse, scale, top):
    """A block's scale as an integer of 0 … top: levels stand for scales 1/2, 3/2, 5/2, ... (halved)."""
    return max(i4(0), min(i4(top), nearest(f4(0.5) * (inverse * scale - f4(1)))))


_QUARTER0, _QUARTER1, _QUARTER2, _QUARTER3 = choose4
_HALF0, _HALF1 = choose8


# What the levels in `number`, a codebook's points, add to the distance: the first dimensions, and the others to those.
@inner
def _first_of_8(costs, number):
    total = _QUARTER0(costs[0], number) + _QUARTER1(costs[0], number >> i4(2))
    return (total + _QUARTER2(costs[0], number >> i4(4))) + _QUARTER3(costs[0], number >> i4(6))


@inner
def _others_of_8(total, costs, number):
    total = (total + _QUARTER0(costs[1], number >> i4(8))) + _QUARTER1(costs[1], number >> i4(10))
    return (total + _QUARTER2(costs[1], number >> i4(12))) + _QUARTER3(costs[1], number >> i4(14))


@inner
def _first_of_4(costs, number):
    return _HALF0(costs[0], number) + _HALF1(costs[0], number >> i4(3))


@inner
def _others_of_4(total, costs, number):
    return (total + _HALF0(costs[1], number >> i4(6))) + _HALF1(costs[1], number >> i4(9))


def nearest_entry(size):
    """Functions that search among the neighbours of one point, sixteen at a time, in `size` dimensions.

    They work in a scratch of `NEAR` floats from `place` on: for every dimension and level (32 in all) the weight and
    the root of its importance.
    """
    slots = 32 // size
    level_of_slot = np.arange(32, dtype=np.float32) % slots
    first_of, others_of = (_first_of_8, _others_of_8) if size == 8 else (_first_of_4, _others_of_4)

    @inner
    def spread(x, at, w, wat, s, place):
        """Prepare for the weights `x[at:]` with `w[wat:]`."""
        for i in range(size):  # each leaves the slots behind its own to the next ones
            store(s, place + slots * i, splat(x[at + i]))
            store(s, place + 48 + slots * i, splat(w[wat + i]))

    @inner
    def costs_of(scale, shift, s, place):
        """What each level in each dimension adds to the distance."""
        low = (load(level_of_slot, 0) + shift) * scale - load(s, place)
        high = (load(level_of_slot, LANES) + shift) * scale - load(s, place + LANES)
        return low * load(s, place + 48) * low, high * load(s, place + 48 + LANES) * high

    @inner
    def near(point, scale, shift, s, place, tables):
        """Where in `numbers` the neighbour of `point` is for which scale * (level + shift) is nearest, the first of
        equals."""
        first, numbers = tables[2], tables[3]
        costs = costs_of(scale, shift, s, place)
        which = -1 - tables[1][point]
        start, stop = np.int64(first[which]), np.int64(first[which + 1])
        at = load_i32(LANE, 0) + i4(LANES * start)
        best, found = splat(_FLOAT_MAX), splat(i4(LANES * start))
        for chunk in range(u8(start), u8(stop)):
            number = load_i32(numbers, np.int64(chunk) * LANES)
            distance = others_of(first_of(costs, number), costs, number)
            found = select(distance < best, at, found)
            best = min_(distance, best)
            at = at + i4(LANES)
        ties = select(best == reduce_fmin(best), found ^ i4(-1), i4(0))
        return np.int64(reduce_umax(ties) ^ i4(-1))

    return spread, near


@inner
def widen(rows, start, xs):
    """A copy of one block of weights; the sum of their squares."""
    for i in range(0, 256, LANES):
        store(xs, i, load(rows, start + i))
    total = f4(0)
    for i in range(256):
        total += xs[i] * xs[i]
    return total


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
    peak = s[_X]
    for i in range(1, count):
        if not peak > s[_X + i]:
            peak = s[_X + i]
    return peak


def _fitter(targets, tries, count, size, step, top, again):
    """A function that rounds `count` weights to a codebook of `size` dimensions, levels 0 … `top` in `step` bits.

    targets, tries: the scales to try are targets / peak, the first `tries` of them.
    again: which parts to round again with the best scale: 0, those that were off the grid; 1, all when any was
        (or when no try succeeded); 2, all.
    """
    parts, mask, slots = count // size, (1 << step) - 1, 1 << step
    wide = len(targets)
    spread, near = nearest_entry(size)
    to_qx, to_q2 = choose4[:2] if size == 8 else choose8
    stands_for = 2 * (np.arange(LANES, dtype=np.float32) % slots) + 1
    once_more = np.where(np.arange(LANES) < slots, np.float32(1), stands_for)

    @inner
    def sums_of(wx, w):
        """What each level adds to the sums of weight times value, and behind these to that of squared values."""
        factor = select(load_i32(LANE, 0) < i4(slots), splat(wx), splat(w))
        return factor * load(stands_for, 0) * load(once_more, 0)

    @inner
    def tabulate(part, s, costs):
        """What each level in each dimension adds to the distance under every try."""
        for level in range(top + 1):
            for v in range(0, wide, LANES):
                value = load(s, _SCALE + v) * f4(2 * level + 1)
                for i in range(size):
                    off = value - s[_X + part * size + i]
                    cost = s[_ROOT + part * size + i] * off * off
                    store(costs, wide * (slots * i + level) + v, cost)

    @inner
    def distances(one, other, costs, t):
        """From two entries, under the eight tries from `t` on: the one's in the lower lanes, the other's above."""
        total = load_halves(costs, wide * (one & mask) + t, wide * (other & mask) + t)
        for i in range(1, size):
            row, bits = slots * i, step * i
            here, there = row + ((one >> bits) & mask), row + ((other >> bits) & mask)
            total = total + load_halves(costs, wide * here + t, wide * there + t)
        return total

    @inner
    def near_run(which, t, end, base, costs, picks, tables):
        """Under tries t ... end - 1, which share a point: the nearest of its neighbours, the first of equals.

        Two neighbours at a time, of the first and of the second half of the list.
        """
        first, numbers = tables[2], tables[3]
        start, last = LANES * np.int64(first[which]), LANES * np.int64(first[which + 1]) - 1
        filling = mask_bits(load_i32(numbers, last - (LANES - 1)) == i4(numbers[last]))
        half = (last - (LANES - 1) + np.int64(trailing_zeros(filling)) + 2 - start) >> 1
        while t < end:
            best, found = splat(_FLOAT_MAX), splat(i4(numbers[start]))
            for j in range(u8(start), u8(start + half)):  # numba asks of a signed place whether it is from the end
                one, other = np.int64(numbers[j]), np.int64(numbers[j + u8(half)])
                distance = distances(one, other, costs, t)
                found = select(distance < best, halves(i4(one), i4(other)), found)
                best = min_(distance, best)
            found = select(swap_halves(best) < best, swap_halves(found), found)
            store(picks, base + t, found)
            t += 8

    @inner
    def list_runs(points, runs, tables):
        """Tries in a row that share a point: their part and end, and where its neighbours are; how many runs."""
        entry, first, numbers = tables[1], tables[2], tables[3]
        count = 0
        for part in range(parts):
            base = 32 * part
            ends = u8(0)  # greater scales never lower a level, so equal points are neighbours
            for v in range(0, tries, LANES):
                same = load_i32(points, base + v) == load_i32(points, base + v + 1)
                ends |= u8(mask_bits(not_(same))) << u8(v)
            ends |= u8(1) << u8(tries - 1)
            t = 0
            while t < tries:
                which = entry[points[base + t]]
                t = np.int64(trailing_zeros(u4(ends))) + 1
                ends &= ends - u8(1)
                if which < 0:
                    prefetch(numbers, LANES * np.int64(first[-1 - which]))
                runs[2 * count], runs[2 * count + 1] = base + t, which
                count += 1
        return count

    @inner
    def round_all(s, costs, points, picks, runs, tables):
        """The numbers of entries for all parts under every try."""
        ready, t = -1, 0
        for run in range(list_runs(points, runs, tables)):
            end, which = np.int64(runs[2 * run]), runs[2 * run + 1]
            part = (end - 1) >> 5
            base = 32 * part
            t = max(t, base)
            if which >= 0:
                point = splat(points[t])
                for at in range(t, end, LANES):
                    store(picks, at, point)
            else:
                if part != ready:
                    tabulate(part, s, costs)
                    ready = part
                near_run(-1 - which, t - base, end - base, base, costs, picks, tables)
            t = end

    @inner
    def fit(peak, scale, s, space, picked, tables):
        """The best scale for the weights in the scratch (`scale` when no try succeeds), the entries in `picked`."""
        costs, points, picks, runs = space
        levels, entry = tables[0], tables[1]
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
        round_all(s, costs, points, picks, runs, tables)
        for v in range(0, tries, LANES):
            qx, q2 = splat(f4(0)), splat(f4(0))
            for part in range(parts):
                number = load_i32(picks, 32 * part + v)
                for i in range(part * size, (part + 1) * size):
                    sums = sums_of(s[_W + i] * s[_X + i], s[_W + i])
                    qx = qx + to_qx(sums, number)
                    q2 = q2 + to_q2(sums, number)
                    number = number >> i4(step)
            store(s, _QX + v, qx)
            store(s, _Q2 + v, q2)
        best, winner = f4(0), -1
        for t in range(tries):
            qx, q2 = s[_QX + t], s[_Q2 + t]
            if q2 > f4(0) and qx * qx > best * q2:
                scale = qx / q2
                best = scale * qx
                winner = t
        off_grid = again == 2 or (again == 1 and winner < 0)
        for part in range(parts):
            picked[part] = entry[picks[32 * part + winner]] if winner >= 0 else entry[0]
            off_grid |= winner >= 0 and entry[points[32 * part + winner]] < 0
        if off_grid and scale > f4(0):
            inverse = f4(1) / scale
            for part in range(parts):
                if again == 0 and (winner < 0 or entry[points[32 * part + winner]] >= 0):
                    continue
                point = i4(0)
                for i in range(size):
                    level = level_of(inverse, s[_X + part * size + i], top)
                    point |= level << i4(step * i)
                if entry[point] < 0:
                    spread(s, _X + part * size, s, _ROOT + part * size, s, _NEAR)
                    point = np.int64(tables[3][near(point, scale * f4(2), f4(0.5), s, _NEAR, tables)])
                picked[part] = entry[point]
            qx, q2 = f4(0), f4(0)
            for i in range(count):
                w = s[_W + i]
                q = f4(2 * levels[picked[i // size] * size + i % size] + 1)
                qx += w * s[_X + i] * q
                q2 += w * q * q
            if q2 > f4(0):
                scale = qx / q2
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
