"""The search of IQ2 and IQ3 types: the scale and the codebook entries for 16 or 32 weights.

Tries 13 to 31 scales; each one rounds every eight (IQ3: four) weights to the nearest codebook entry; the scale that
explains the weights best wins, and they are rounded once more with it.  Here the tries lie in the lanes.  Every
number is computed in the reference's order.

Source of the rules: `quantize_row_iq2_xxs_impl` and the like, `make_qp_quants` and the `…_find_best_neighbour`
functions of ggml.
"""

import numpy as np

from llmconv.quant.kernels.build import I32, U8, inner
from llmconv.quant.kernels.vectors.codegen import LANES
from llmconv.quant.kernels.vectors.lanes import f4, fill, i4
from llmconv.quant.kernels.vectors.memory import load, load_i32, store
from llmconv.quant.kernels.vectors.simd import (
    bits,
    clamp,
    from_bits,
    mask_bits,
    nearest_int,
    reduce_umax,
    select,
    splat,
    sqrt,
    to_float,
    trailing_zeros,
)

TABLES = U8, I32, I32, I32, U8, I32
"""`llmconv.quant.iq_tables.Search`, field by field."""

_FLOAT_MAX = f4(3.4028235e38)


def _targets(middle, tries, step):
    """What a try makes of the greatest weight: `middle` and `tries` steps each way, then padding to whole vectors."""
    count = 2 * tries + 1
    targets = np.full((count + LANES - 1) // LANES * LANES, middle, np.float32)
    targets[:count] = np.arange(-tries, tries + 1, dtype=np.float32) * np.float32(step) + np.float32(middle)
    return targets


# The scratch of a search, one float32 array: the weights' magnitudes, their importance and its root, ...
_X, _W, _ROOT = 0, 32, 64
# ... and for each of up to 32 tries: its scale, the sums it gives, and what it rounds each weight to.
_SCALE, _QX, _Q2, _Q = 96, 128, 160, 192
SCRATCH = _Q + 32 * 32


@inner
def nearest(v):
    """ggml's `nearest_int` of a number."""
    return (bits(v + f4(12582912)) & i4(0x007FFFFF)) - i4(0x00400000)


@inner
def level_of(inverse, scale, top):
    """A block's scale as an integer of 0 … top: levels stand for scales 1/2, 3/2, 5/2, ... (halved)."""
    return max(i4(0), min(i4(top), nearest(f4(0.5) * (inverse * scale - f4(1)))))


def nearest_entry(size):
    """The search among the neighbours of one point, sixteen at a time, in `size` dimensions."""

    @inner
    def near_entry(point, scale, shift, x, at, w, wat, tables):
        """The neighbour of `point` for which scale * (level + shift) is nearest to `x[at:]`, weighted by `w[wat:]`."""
        entry, first, members, coordinates = tables[1], tables[2], tables[3], tables[4]
        place = -1 - entry[point]
        start = first[place]
        best, found = _FLOAT_MAX, members[LANES * start]
        for chunk in range(start, first[place + 1]):
            distance = splat(f4(0))
            for i in range(size):
                q = to_float(load_i32(coordinates, (chunk * size + i) * LANES)) + shift
                off = q * scale - x[at + i]
                distance = distance + off * w[wat + i] * off
            # Distances are positive: their bit patterns are in their order, and the least is the greatest inverted.
            least = reduce_umax(bits(distance) ^ i4(-1)) ^ i4(-1)
            if from_bits(least) < best:
                best = from_bits(least)
                found = members[LANES * chunk + np.int64(trailing_zeros(mask_bits(bits(distance) == least)))]
        return found

    return near_entry


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
    for k in range(count // 8):
        byte = 0
        flips = 0
        for i in range(8 * k, 8 * k + 8):
            x = xs[at + i]
            if x >= f4(0):
                s[_X + i] = x
            else:
                s[_X + i] = -x
                byte |= 1 << (i - 8 * k)
                flips += 1
        if even:
            if flips % 2:
                cheapest = 8 * k
                least = s[_W + cheapest] * xs[at + cheapest] * xs[at + cheapest]
                for i in range(8 * k + 1, 8 * k + 8):
                    cost = s[_W + i] * xs[at + i] * xs[at + i]
                    if cost < least:
                        least = cost
                        cheapest = i
                s[_X + cheapest] = -s[_X + cheapest]
                byte ^= 1 << (cheapest - 8 * k)
            byte &= 127
        signs[k] = byte
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
    parts, kinds = count // size, top + 1

    @inner
    def tabulate(part, s, costs):
        """`costs[32 * (kinds * i + level) + try]`: what dimension i of a part adds to the distance at that level."""
        for v in range(0, tries, LANES):
            scale = load(s, _SCALE + v)
            for i in range(size):
                x, w = s[_X + part * size + i], s[_ROOT + part * size + i]
                for level in range(kinds):
                    off = scale * f4(2 * level + 1) - x
                    store(costs, 32 * (kinds * i + level) + v, off * w * off)

    @inner
    def nearest_of(point, v, costs, tables):
        """For sixteen tries, the neighbour of `point` with the least distance, the first of equals."""
        levels, entry, first, members = tables[0], tables[1], tables[2], tables[3]
        place = -1 - entry[point]
        start = LANES * first[place]
        least, found = splat(_FLOAT_MAX), splat(members[start])
        for n in range(start, start + tables[5][place]):
            member = members[n]
            at = np.uint64(member) * np.uint64(size)
            distance = load(costs, 32 * np.int64(levels[at]) + v)
            for i in range(1, size):
                distance = distance + load(costs, 32 * (kinds * i + np.int64(levels[at + np.uint64(i)])) + v)
            closer = distance < least
            least = select(closer, distance, least)
            found = select(closer, splat(member), found)
        return found

    @inner
    def round_part(part, s, costs, points, picks, tables):
        """Entries for one part under every try; what they stand for, to the scratch."""
        levels, entry = tables[0], tables[1]
        tabulated = False
        t = 0
        while t < tries:
            point = points[32 * part + t]
            end = t + 1
            while end < tries and points[32 * part + end] == point:
                end += 1  # greater scales never lower a level, so equal points are neighbours
            if entry[point] >= 0:
                fill(picks, 32 * part + t, 32 * part + end, entry[point])
            else:
                if not tabulated:
                    tabulate(part, s, costs)
                    tabulated = True
                for v in range(t // LANES * LANES, end, LANES):
                    found = nearest_of(point, v, costs, tables)
                    store(picks, 32 * parts, found)
                    for j in range(max(t, v), min(end, v + LANES)):
                        pick = picks[32 * parts + j - v]
                        picks[32 * part + j] = pick
                        for i in range(size):
                            s[_Q + 32 * (part * size + i) + j] = f4(2 * levels[pick * size + i] + 1)
            t = end

    @inner
    def fit(peak, scale, s, costs, points, picks, picked, tables):
        """The best scale for the weights in the scratch (`scale` when no try succeeds), the entries in `picked`."""
        levels, entry = tables[0], tables[1]
        for v in range(0, tries, LANES):
            inverse = load(targets, v) / peak
            store(s, _SCALE + v, f4(1) / inverse)
            for part in range(parts):
                point = splat(i4(0))
                for i in range(size):
                    x = s[_X + part * size + i]
                    level = clamp(nearest_int((inverse * x - f4(1)) * f4(0.5)), i4(0), i4(top))
                    store(s, _Q + 32 * (part * size + i) + v, to_float(level + level + i4(1)))
                    point = point | (level << i4(step * i))
                store(points, 32 * part + v, point)
        for part in range(parts):
            round_part(part, s, costs, points, picks, tables)
        for v in range(0, tries, LANES):
            qx, q2 = splat(f4(0)), splat(f4(0))
            for i in range(count):
                w = s[_W + i]
                q = load(s, _Q + 32 * i + v)
                qx = qx + q * (w * s[_X + i])
                q2 = q2 + q * w * q
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
            picked[part] = picks[32 * part + winner] if winner >= 0 else entry[0]
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
                pick = entry[point]
                picked[part] = pick if pick >= 0 else near(point, scale, part * size, s, tables)
            qx, q2 = f4(0), f4(0)
            for i in range(count):
                w = s[_W + i]
                q = f4(2 * levels[picked[i // size] * size + i % size] + 1)
                qx += w * s[_X + i] * q
                q2 += w * q * q
            if q2 > f4(0):
                scale = qx / q2
        return scale

    near_entry = nearest_entry(size)

    @inner
    def near(point, scale, at, s, tables):
        return near_entry(point, scale * f4(2), f4(0.5), s, _X + at, s, _ROOT + at, tables)

    return fit


fit_iq2_xxs = _fitter(_targets(5, 6, 0.1), 13, 32, 8, 2, 2, 2)
fit_iq2_xs = _fitter(_targets(5, 9, 0.1), 19, 16, 8, 2, 2, 0)
fit_iq3_xxs = _fitter(_targets(15, 15, 0.2), 31, 32, 4, 3, 7, 0)
fit_iq3_s = _fitter(_targets(15, 9, 0.2), 19, 32, 4, 3, 7, 1)


@inner
def positive_scale(s, levels):
    """`make_qp_quants` on 32 magnitudes with greatest level 4: a first scale for IQ2_XXS.

    The reference keeps the levels in bytes, where the ones below zero wrap.
    """
    peak = f4(0)
    for i in range(32):
        peak = max(peak, s[_X + i])
    inverse = f4(4) / peak
    scale = f4(1) / inverse
    best = f4(0)
    for i in range(32):
        off = s[_X + i] - scale * f4(nearest(inverse * s[_X + i]) & i4(255))
        best += s[_W + i] * off * off
    for t in range(-4, 5):
        if t == 0:
            continue
        this = (f4(0.1) * f4(t) + f4(4)) / peak
        scale = f4(1) / this
        error = f4(0)
        for i in range(32):
            off = s[_X + i] - scale * f4(min(i4(4), nearest(this * s[_X + i])))
            error += s[_W + i] * off * off
        if error < best:
            best = error
            inverse = this
    lx, l2 = f4(0), f4(0)
    for i in range(32):
        level = min(i4(4), nearest(inverse * s[_X + i]))
        levels[i] = level & i4(255)
        lx += s[_W + i] * s[_X + i] * f4(level)
        l2 += s[_W + i] * f4(level) * f4(level)
    for _ in range(5):
        changed = False
        for i in range(32):
            w, x, level = s[_W + i], s[_X + i], f4(levels[i])
            lx1, l21 = lx - w * x * level, l2 - w * level * level
            if lx1 > f4(0) and l21 > f4(0):
                other = min(i4(4), nearest(x * l21 / lx1))
                if other != levels[i]:
                    lx1 += w * x * f4(other)
                    l21 += w * f4(other) * f4(other)
                    if lx1 * lx1 * l2 > lx * lx * l21:
                        levels[i] = other & i4(255)
                        lx, l2 = lx1, l21
                        changed = True
        if not changed:
            break
    return lx / l2 if l2 > f4(0) else f4(0)
