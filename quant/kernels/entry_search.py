"""The kernel of descent for codebook types: eight or four weights at a time become another entry of the codebook.

What several entries share (seven signs for eight weights, a shift up or down) is a side: each side is tried, the
entries chosen one after the other under it, and the best of all is taken where it lowers the loss.
"""

import numpy as np
from numba import types

from llmconv.quant.kernels.compiling.build import F32, U8, inner, kernel
from llmconv.quant.kernels.descent import caught_up, spread
from llmconv.quant.kernels.rounding import OUT_F32, OUT_I32, f4
from llmconv.quant.kernels.terms.rules import EVEN_SIGNS, SHIFTS
from llmconv.quant.kernels.vectors.codegen import LANES
from llmconv.quant.kernels.vectors.lanes import LANE, i4
from llmconv.quant.kernels.vectors.memory import load, load_i32, store
from llmconv.quant.kernels.vectors.simd import select, splat
from llmconv.quant.kernels.vectors.stack import empty

_FAR = f4(3e38)
_SWEEPS = 3


@inner
def _best(table, at, n, group, slope, curve, lanes, numbers):
    """The entry m for which m · slope + m · curve m is least; `curve` is lower triangular, ties go to the first.

    table: from `at`, `group` times n levels.   lanes, numbers: working memory.
    """
    best, where = splat(_FAR), splat(i4(0))
    for e in range(0, n, LANES):
        cost = splat(f4(0))
        for k in range(group):
            part = splat(slope[k])
            for m in range(k + 1):
                part = part + load(table, at + m * n + e) * curve[group * k + m]
            cost = cost + load(table, at + k * n + e) * part
        better = cost < best
        best = select(better, cost, best)
        where = select(better, load_i32(LANE, 0) + i4(e), where)
    store(lanes, 0, best)
    store(numbers, 0, where)
    found = 0
    for i in range(1, LANES):
        if lanes[i] < lanes[found] or (lanes[i] == lanes[found] and numbers[i] < numbers[found]):
            found = i
    return numbers[found]


@inner
def _entry(table, at, n, group, slope, curve, lanes, numbers):
    """`_best` with the length known, so that its loops are laid out."""
    if group == 8:
        return _best(table, at, n, 8, slope, curve, lanes, numbers)
    return _best(table, at, n, 4, slope, curve, lanes, numbers)


@inner
def _wanted_signs(h, columns, start, width, gradient, values, weight, even, target, signs):
    """The signs of what would cost least if weights could be anything, by descent from `values`."""
    for k in range(width):
        target[k] = values[k]
    for _ in range(_SWEEPS):
        for k in range(width):
            row = (start + k) * columns + start
            slope = gradient[k]
            for m in range(width):
                slope += weight * h[row + m] * (target[m] - values[m])
            curve = weight * h[row + k]
            if curve > f4(0):
                target[k] -= slope / curve
    odd, weakest, least = False, 0, _FAR
    for k in range(width):
        signs[k] = f4(-1) if target[k] < f4(0) else f4(1)
        odd ^= target[k] < f4(0)
        cost = h[(start + k) * columns + start + k] * target[k] * target[k]
        if cost < least:
            weakest, least = k, cost
    if even and odd:
        signs[weakest] = -signs[weakest]


@inner
def _change_in_loss(h, columns, start, width, gradient, values, new, weight):
    """By how much half the loss changes when `values` become `new`, times two."""
    total = f4(0)
    for k in range(width):
        row = (start + k) * columns + start
        by_h = f4(0)
        for m in range(width):
            by_h += h[row + m] * (new[m] - values[m])
        total += (new[k] - values[k]) * (f4(2) * gradient[k] + weight * by_h)
    return total


@kernel(
    F32, F32, F32, OUT_F32, OUT_F32, OUT_I32, F32, F32, U8,
    types.boolean, types.intp, types.intp, types.intp, types.intp, types.intp, types.intp, types.intp, OUT_I32,
)  # fmt: skip
def descend_entries(
    h, f, levels, gradient, carried, code, step, table, places,
    coupled, rows, columns, block, sides, width, group, n, changed,
):  # fmt: skip
    """One sweep over a tile's entries, row by row; arguments as `descend_scales`'s.

    step: (rows, blocks).   table: (1, or 2 where sides are shifts, group, n), the levels of entries.
    places: (n, group), their numbers without sides.   sides: what `width` weights, a multiple of `group`, share.
    Codes are, by place p: half the levels + p, or half the levels - 1 - p where negative; with shifts 2 p + the side.
    """
    old, new, best, target = empty(32, f4), empty(32, f4), empty(32, f4), empty(32, f4)
    local, signs, present = empty(32, f4), empty(32, f4), empty(32, f4)
    codes, chosen = empty(32, i4), empty(32, i4)
    slope, curve = empty(8, f4), empty(64, f4)
    lanes, numbers = empty(LANES, f4), empty(LANES, i4)
    direction = empty(256, f4)
    middle, blocks, count = levels.size // 2, columns // block, np.int32(0)
    for r in range(rows):
        weight = f[r * rows + r] if coupled else f[r]
        if weight <= f4(0):
            continue
        if coupled:
            caught_up(gradient, carried, f, r, rows, columns)
        for start in range(0, columns, width):
            unit = step[r * blocks + start // block]
            if unit == f4(0):
                continue
            at = r * columns + start
            for k in range(width):
                level = levels[code[at + k]]
                old[k], local[k] = level * unit, gradient[at + k]
                present[k] = f4(-1) if sides != SHIFTS and level < f4(0) else f4(1)
            up = code[at] & i4(1)
            lowest = f4(0)
            for trial in range(2):
                side = 0
                same = True
                if sides == SHIFTS:
                    side = up if trial == 0 else i4(1) - up
                    same = False
                    for k in range(width):
                        signs[k] = f4(1)
                        new[k] = levels[2 * (code[at + k] // 2) + side] * unit
                else:
                    if trial == 1:
                        _wanted_signs(
                            h, columns, start, width, local, old, weight, sides == EVEN_SIGNS, target, signs
                        )  # fmt: skip
                    for k in range(width):
                        if trial == 0:
                            signs[k] = present[k]
                        elif unit < f4(0):
                            signs[k] = -signs[k]
                        same &= signs[k] == present[k]
                        new[k] = old[k] * present[k] * signs[k]
                if trial == 1 and same:
                    break
                for first in range(0, width, group):
                    for k in range(group):
                        row = (start + first + k) * columns + start
                        total = local[first + k]
                        for m in range(width):
                            other = f4(0) if first <= m < first + group else new[m]
                            total += weight * h[row + m] * (other - old[m])
                        turned = signs[first + k] * unit
                        slope[k] = f4(2) * turned * total
                        for m in range(k + 1):
                            both = turned * signs[first + m] * unit * weight * h[row + first + m]
                            curve[group * k + m] = both if m == k else f4(2) * both
                    e = _entry(table, side * group * n, n, group, slope, curve, lanes, numbers)
                    for k in range(group):
                        place = i4(places[e * group + k])
                        if sides == SHIFTS:
                            codes[first + k] = 2 * place + side
                        else:
                            codes[first + k] = middle + place if signs[first + k] > f4(0) else middle - 1 - place
                        new[first + k] = levels[codes[first + k]] * unit
                change = _change_in_loss(h, columns, start, width, local, old, new, weight)
                if change < lowest:
                    lowest = change
                    for k in range(width):
                        best[k], chosen[k] = new[k], codes[k]
            if not lowest < f4(0):
                continue
            moved = np.int32(0)
            for c in range(0, columns, LANES):
                store(direction, c, splat(f4(0)))
            for k in range(width):
                if chosen[k] == code[at + k]:
                    continue
                moved += np.int32(1)
                code[at + k] = chosen[k]
                x = splat(best[k] - old[k])
                for c in range(0, columns, LANES):
                    store(direction, c, load(direction, c) + x * load(h, (start + k) * columns + c))
            if moved:
                count += moved
                spread(gradient, carried, f, r, rows, columns, coupled, f4(1), direction, 0)
    changed[0] += count
