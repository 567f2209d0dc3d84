"""Kernels of coordinate descent on tr(E H E' F) inside a tile: scales and what belongs to them, then codes.

E is what is rounded minus the weights; H (columns) and F (rows) say what an error costs.  Sums are float32, in plain
operations in a fixed order, so that the result is the same whatever the number of threads.
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
def spread(gradient, weights, row, rows, columns, coupled, change, direction):
    """The gradient after row `row` moved by `change` times `direction`, which is H times the move (columns,)."""
    first, last = (0, rows) if coupled else (row, row + 1)
    for a in range(first, last):
        x = splat(weights[row * rows + a if coupled else row] * change)
        for c in range(0, columns, LANES):
            store(gradient, a * columns + c, load(gradient, a * columns + c) + x * load(direction, c))


@inner
def _curve(gradient, h, move, row, columns, start, stop, direction, found):
    """`direction` = H move; found = (move · gradient, move · H move), over columns start … stop, where the move is."""
    for c in range(0, columns, LANES):
        store(direction, c, splat(f4(0)))
    for j in range(start, stop):
        x = splat(move[j])
        for c in range(0, columns, LANES):
            store(direction, c, load(direction, c) + x * load(h, j * columns + c))
    slope, curve = f4(0), f4(0)
    for j in range(start, stop):
        slope += move[j] * gradient[row * columns + j]
        curve += move[j] * direction[j]
    found[0], found[1] = slope, curve


@inner
def lowers(slope, curve, change):
    """Whether half the loss's slope and curve say that a change lowers it."""
    return f4(2) * slope * change + curve * change * change < f4(0)


@kernel(
    F32, F32, F32, OUT_F32, OUT_I32, OUT_F32, OUT_I32, OUT_F32, OUT_I32,
    types.boolean, types.intp, types.intp, types.intp, types.intp,
    types.intp, types.intp, types.intp, types.intp, types.intp, types.intp, OUT_I32,
)  # fmt: skip
def descend_scales(
    h, f, levels, gradient, code, scale, factor, minimum, shift,
    coupled, rows, columns, block, span,
    factor_low, factor_high, apart, shift_low, shift_high, rule, changed,
):  # fmt: skip
    """One sweep of coordinate descent over a tile's factors, shifts, scales and minima, row by row.

    h: (columns, columns).   f: (rows, rows) where rows are coupled, else (rows,), how much each counts.
    gradient: (rows, columns) of half the loss, F E H, kept true inside the tile.   Up to 256 columns, whole spans.
    apart: between neighbouring factors.   rule: of scales.   changed: how many numbers moved is added to it.
    """
    move, direction = empty(256, f4), empty(256, f4)
    found = empty(2, f4)
    count = np.int32(0)
    blocks, spans = columns // block, columns // span
    for r in range(rows):
        weight = f[r * rows + r] if coupled else f[r]
        if weight <= f4(0):
            continue
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
                _curve(gradient, h, move, r, columns, b * block, (b + 1) * block, direction, found)
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
                spread(gradient, f, r, rows, columns, coupled, change, direction)
        for k in range(spans):
            s = r * spans + k
            for which in range(2):
                if which == 1 and shift_high == 0:
                    continue
                for j in range(k * span, (k + 1) * span):
                    b = r * blocks + j // block
                    move[j] = f4(factor[b]) * levels[code[at + j]] if which == 0 else -f4(shift[b])
                _curve(gradient, h, move, r, columns, k * span, (k + 1) * span, direction, found)
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
                spread(gradient, f, r, rows, columns, coupled, change, direction)
    changed[0] += count


@kernel(
    F32, F32, F32, OUT_F32, OUT_I32, F32,
    types.boolean, types.boolean, types.intp, types.intp, types.intp, OUT_I32,
)  # fmt: skip
def descend_codes(h, f, levels, gradient, code, step, uniform, coupled, rows, columns, block, changed):
    """One sweep over a tile's codes, row by row; arguments as `descend_scales`'s.   step: (rows, blocks)."""
    direction = empty(256, f4)
    n, count, blocks = levels.size, np.int32(0), columns // block
    for r in range(rows):
        weight = f[r * rows + r] if coupled else f[r]
        if weight <= f4(0):
            continue
        at = r * columns
        for j in range(columns):
            unit = step[r * blocks + j // block]
            curve = h[j * columns + j] * weight
            if unit == f4(0) or curve <= f4(0):
                continue
            old = code[at + j]
            slope = gradient[at + j]
            q = nearest_code(levels[old] - slope / curve / unit, levels, n, uniform)
            if q == old:
                continue
            change = (levels[q] - levels[old]) * unit
            if not lowers(slope, curve, change):
                continue
            code[at + j] = q
            count += 1
            for c in range(0, columns, LANES):
                store(direction, c, load(h, j * columns + c))
            spread(gradient, f, r, rows, columns, coupled, change, direction)
    changed[0] += count
