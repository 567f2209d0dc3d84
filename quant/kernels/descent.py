"""Kernels of coordinate descent on tr(E H E' F) inside a tile: scales and what belongs to them, then codes.

E is what is rounded minus the weights; H (columns) and F (rows) say what an error costs.  Sums are float32, in plain
operations in a fixed order, so that the result is the same whatever the number of threads.  Rows come one after the
other: what a row's moves do to other rows' gradients is carried to each when its turn comes, all moves at once.
"""

import numpy as np
from numba import types

from llmconv.quant.kernels.compiling.build import F32, inner, kernel
from llmconv.quant.kernels.rounding import OUT_F32, OUT_I32, f4, nearest, nearest_code
from llmconv.quant.kernels.terms.rules import E8M0, F16
from llmconv.quant.kernels.vectors.codegen import LANES
from llmconv.quant.kernels.vectors.memory import load, store
from llmconv.quant.kernels.vectors.simd import bits, from_bits, splat
from llmconv.quant.kernels.vectors.stack import empty

_NEAR = f4(0.499)  # less than half a step away, neighbouring integers being levels, a code stays
_SPLIT = f4(8193.0)  # 2^13 + 1: leaves float16's eleven bits of float32's 24 (Veltkamp 1968)
_TINY = f4(0.75)  # beside it float32 counts in float16's smallest steps, 2^-24
_LEAST_NORMAL = f4(6.103515625e-05)
_MOST_F16, _MOST_E4M3 = f4(65504.0), f4(224.0)
_LEAST_E4M3 = f4(2.0**-7)  # the least with a full mantissa, halved
_LEAST_POWER, _MOST_POWER = f4(2.0**-126), f4(2.0**127)


@inner
def _half(x):
    """The nearest number that float16 holds, of magnitudes up to its largest."""
    if abs(x) < _LEAST_NORMAL:
        return (x + _TINY) - _TINY
    c = x * _SPLIT
    return c - (c - x)


@inner
def _power(x):
    """The greatest power of two that is not above x, a normal number."""
    return from_bits(bits(x) & np.int32(0x7F800000))


@inner
def _held(x, rule):
    """The nearest scale that a rule allows; 0 where there is none."""
    if rule == F16:
        return _half(x) if abs(x) <= _MOST_F16 else f4(0)
    if rule == E8M0:
        if not (x >= _LEAST_POWER and x < _MOST_POWER):
            return f4(0)
        low = _power(x)
        return low if x < f4(1.5) * low else f4(2) * low
    if not x > f4(0):
        return f4(0)
    unit = (_power(x) if x >= _LEAST_E4M3 else _LEAST_E4M3) * f4(0.125)
    return min(f4(nearest(x / unit)) * unit, _MOST_E4M3)


@inner
def spread(gradient, carried, f, row, rows, columns, coupled, change, direction, at):
    """Row `row`'s gradient, and what is `carried` from it, after `change` times a move that H turns to `direction`
    (from `at` on)."""
    own = splat((f[row * rows + row] if coupled else f[row]) * change)
    by = splat(change)
    for c in range(0, columns, LANES):
        x, i = load(direction, at + c), row * columns + c
        store(gradient, i, load(gradient, i) + own * x)
        if coupled:
            store(carried, i, load(carried, i) + by * x)


@inner
def _combined(factors, at, array, c, columns, start, stop):
    """The sum of factors[at + j] * array[j, c …], j in start … stop; four sums, so that none waits for another."""
    x, y, z, w = splat(f4(0)), splat(f4(0)), splat(f4(0)), splat(f4(0))
    whole = stop - (stop - start) % 4
    for j in range(start, whole, 4):
        i = j * columns + c
        x = x + splat(factors[at + j]) * load(array, i)
        y = y + splat(factors[at + j + 1]) * load(array, i + columns)
        z = z + splat(factors[at + j + 2]) * load(array, i + 2 * columns)
        w = w + splat(factors[at + j + 3]) * load(array, i + 3 * columns)
    for j in range(whole, stop):
        x = x + splat(factors[at + j]) * load(array, j * columns + c)
    return (x + y) + (z + w)


@inner
def caught_up(gradient, carried, f, row, rows, columns):
    """Row `row`'s gradient after what has been carried since from all others; then nothing is from it."""
    for c in range(0, columns, LANES):
        store(carried, row * columns + c, splat(f4(0)))
        x = load(gradient, row * columns + c)
        store(gradient, row * columns + c, x + _combined(f, row * rows, carried, c, columns, 0, rows))


@inner
def _turned(h, move, columns, start, stop, first, last, direction):
    """direction = H move in columns first … last, the move being in start … stop."""
    for c in range(first, last, LANES):
        store(direction, c, _combined(move, 0, h, c, columns, start, stop))


@inner
def _spread_move(gradient, carried, f, row, rows, columns, coupled, change, h, move, start, stop, direction):
    """`spread` of a move in columns start … stop, of whose direction `_curve` has kept those."""
    _turned(h, move, columns, start, stop, 0, start, direction)
    _turned(h, move, columns, start, stop, stop, columns, direction)
    spread(gradient, carried, f, row, rows, columns, coupled, change, direction, 0)


@inner
def _curve(gradient, h, move, row, columns, start, stop, direction, lanes, found):
    """found = (move · gradient, move · H move), over columns start … stop, where the move is; H move there is kept."""
    slope, curve = splat(f4(0)), splat(f4(0))
    _turned(h, move, columns, start, stop, start, stop, direction)
    for c in range(start, stop, LANES):
        x, y = load(direction, c), load(move, c)
        slope = slope + y * load(gradient, row * columns + c)
        curve = curve + y * x
    found[0], found[1] = _sum(slope, lanes), _sum(curve, lanes)


@inner
def _sum(x, lanes):
    store(lanes, 0, x)
    total = lanes[0]
    for i in range(1, LANES):
        total += lanes[i]
    return total


@inner
def lowers(slope, curve, change):
    """Whether half the loss's slope and curve say that a change lowers it."""
    return f4(2) * slope * change + curve * change * change < f4(0)


@kernel(
    F32, F32, F32, OUT_F32, OUT_F32, OUT_I32, OUT_F32, OUT_I32, OUT_F32, OUT_I32,
    types.boolean, types.intp, types.intp, types.intp, types.intp,
    types.intp, types.intp, types.intp, types.intp, types.intp, types.intp, OUT_I32,
)  # fmt: skip
def descend_scales(
    h, f, levels, gradient, carried, code, scale, factor, minimum, shift,
    coupled, rows, columns, block, span,
    factor_low, factor_high, apart, shift_low, shift_high, rule, changed,
):  # fmt: skip
    """One sweep of coordinate descent over a tile's factors, shifts, scales and minima, row by row.

    h: (columns, columns).   f: (rows, rows) where rows are coupled, else (rows,), how much each counts.
    gradient: (rows, columns) of half the loss, F E H.   Up to 256 columns, whole spans.   carried: (rows, columns)
    where rows are coupled: what moves have made of each row's errors times H and other rows' gradients don't know yet.
    apart: between neighbouring factors.   rule: of scales.   changed: how many numbers moved is added to it.
    """
    move, direction = empty(256, f4), empty(256, f4)
    found, lanes = empty(2, f4), empty(LANES, f4)
    count = np.int32(0)
    blocks, spans = columns // block, columns // span
    for r in range(rows):
        weight = f[r * rows + r] if coupled else f[r]
        if weight <= f4(0):
            continue
        if coupled:
            caught_up(gradient, carried, f, r, rows, columns)
        at = r * columns
        for b in range(blocks):
            s = r * spans + b * block // span
            i = r * blocks + b
            for which in range(2):
                if which == 0:
                    unit, low, high, old, by = scale[s], factor_low, factor_high, factor[i], apart
                else:
                    unit, low, high, old, by = -minimum[s], shift_low, shift_high, shift[i], 1
                if low == high or unit == f4(0):
                    continue
                for j in range(b * block, (b + 1) * block):
                    move[j] = levels[code[at + j]] if which == 0 else f4(1)
                _curve(gradient, h, move, r, columns, b * block, (b + 1) * block, direction, lanes, found)
                slope, curve = found[0], found[1] * weight
                if curve <= f4(0):
                    continue
                new = np.int32(min(max(old + by * nearest(-slope / curve / unit / f4(by)), low), high))
                change = f4(new - old) * unit
                if new == old or not lowers(slope, curve, change):
                    continue
                if which == 0:
                    factor[i] = new
                else:
                    shift[i] = new
                count += 1
                _spread_move(
                    gradient, carried, f, r, rows, columns, coupled, change,
                    h, move, b * block, (b + 1) * block, direction,
                )  # fmt: skip
        for k in range(spans):
            s = r * spans + k
            for which in range(2):
                if which == 1 and shift_high == 0:
                    continue
                for j in range(k * span, (k + 1) * span):
                    b = r * blocks + j // block
                    move[j] = f4(factor[b]) * levels[code[at + j]] if which == 0 else -f4(shift[b])
                _curve(gradient, h, move, r, columns, k * span, (k + 1) * span, direction, lanes, found)
                slope, curve = found[0], found[1] * weight
                if curve <= f4(0):
                    continue
                old_scale = scale[s] if which == 0 else minimum[s]
                wanted = old_scale - slope / curve
                new_scale = _held(wanted, rule) if which == 0 else _half(wanted)
                if not abs(wanted) <= _MOST_F16 or (which == 0 and new_scale == f4(0)):
                    continue
                change = new_scale - old_scale
                if change == f4(0) or not lowers(slope, curve, change):
                    continue
                if which == 0:
                    scale[s] = new_scale
                else:
                    minimum[s] = new_scale
                count += 1
                _spread_move(
                    gradient, carried, f, r, rows, columns, coupled, change,
                    h, move, k * span, (k + 1) * span, direction,
                )  # fmt: skip
    changed[0] += count


@kernel(
    F32, F32, F32, OUT_F32, OUT_F32, OUT_I32, F32,
    types.boolean, types.boolean, types.intp, types.intp, types.intp, OUT_I32,
)  # fmt: skip
def descend_codes(h, f, levels, gradient, carried, code, step, uniform, coupled, rows, columns, block, changed):
    """One sweep over a tile's codes, row by row; arguments as `descend_scales`'s.   step: (rows, blocks)."""
    n, count, blocks = levels.size, np.int32(0), columns // block
    for r in range(rows):
        weight = f[r * rows + r] if coupled else f[r]
        if weight <= f4(0):
            continue
        if coupled:
            caught_up(gradient, carried, f, r, rows, columns)
        at = r * columns
        for j in range(columns):
            unit = step[r * blocks + j // block]
            curve = h[j * columns + j] * weight
            if unit == f4(0) or curve <= f4(0):
                continue
            old = code[at + j]
            slope = gradient[at + j]
            if uniform and abs(slope) < _NEAR * abs(unit) * curve:
                continue
            q = nearest_code(levels[old] - slope / curve / unit, levels, n, uniform)
            if q == old:
                continue
            change = (levels[q] - levels[old]) * unit
            if not lowers(slope, curve, change):
                continue
            code[at + j] = q
            count += 1
            spread(gradient, carried, f, r, rows, columns, coupled, change, h, j * columns)
    changed[0] += count
