"""Kernels of rounding to a grid so that tr(E H E' F) is small: columns in order, or descent inside a tile.

E is what is rounded minus the weights; H (columns) and F (rows) say what an error costs.  Sums are float32, in plain
operations in a fixed order, so that the result is the same whatever the number of threads.
"""

import numpy as np
from numba import types

from llmconv.quant.kernels.build import F32, inner, kernel, out
from llmconv.quant.kernels.vectors.codegen import LANES
from llmconv.quant.kernels.vectors.memory import load, store
from llmconv.quant.kernels.vectors.simd import splat
from llmconv.quant.kernels.vectors.stack import empty

f4 = np.float32
OUT_F32, OUT_I32 = out(types.float32), out(types.int32)
_MAGIC = f4(12582912.0)  # 1.5 * 2^23: adding it rounds to integers
_SPLIT = f4(8193.0)  # 2^13 + 1: leaves float16's eleven bits of float32's 24 (Veltkamp 1968)
_TINY = f4(0.75)  # beside it float32 counts in float16's smallest steps, 2^-24
_LEAST_NORMAL = f4(6.103515625e-05)
_MOST = f4(65504.0)
_FAR = f4(4e6)


@inner
def _nearest(x):
    """The nearest integer, of numbers below 4 million."""
    x = min(max(x, -_FAR), _FAR)
    return np.int32((x + _MAGIC) - _MAGIC)


@inner
def _half(x):
    """The nearest number that float16 holds, of magnitudes up to its largest."""
    if abs(x) < _LEAST_NORMAL:
        return (x + _TINY) - _TINY
    c = x * _SPLIT
    return c - (c - x)


@inner
def _code(level, levels, n, uniform):
    """The number of the level nearest to `level`."""
    if uniform:
        return min(max(_nearest(level - levels[0]), np.int32(0)), np.int32(n - 1))
    best = np.int32(0)
    for i in range(1, n):
        if abs(levels[i] - level) < abs(levels[best] - level):
            best = np.int32(i)
    return best


@kernel(F32, OUT_F32, F32, F32, F32, types.boolean, types.intp, types.intp, OUT_I32, OUT_F32)
def round_in_order(factor, weights, step, low, levels, uniform, rows, columns, code, error):
    """Round columns one after the other, each error spread over those that follow (GPTQ, arXiv:2210.17323).

    factor: (columns, columns), upper triangular: Cholesky of the inverse of H.   weights: (rows, columns), changed.
    step, low: (rows, columns), of their blocks.   code, error: results; error is what columns beyond these still owe.
    """
    for r in range(rows):
        at = r * columns
        for a in range(columns):
            s, m, w = step[at + a], low[at + a], weights[at + a]
            q = np.int32(0)
            if s != f4(0):
                q = _code((w + m) / s, levels, levels.size, uniform)
            code[at + a] = q
            e = (w - (levels[q] * s - m)) / factor[a * columns + a]
            error[at + a] = e
            first = a // LANES * LANES
            part = splat(-e)
            for c in range(first, columns, LANES):
                new = load(weights, at + c) + part * load(factor, a * columns + c)
                store(weights, at + c, new)


@inner
def _spread(gradient, weights, row, rows, columns, coupled, change, direction):
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


@kernel(
    F32, F32, F32, OUT_F32, OUT_I32, OUT_F32, OUT_I32, OUT_F32, OUT_I32,
    types.boolean, types.boolean, types.intp, types.intp, types.intp, types.intp,
    types.intp, types.intp, types.intp, types.intp, OUT_I32,
)  # fmt: skip
def descend(
    h, f, levels, gradient, code, scale, factor, minimum, shift,
    uniform, coupled, rows, columns, block, span,
    factor_low, factor_high, shift_low, shift_high, changed,
):  # fmt: skip
    """One sweep of coordinate descent over a tile's factors, shifts, scales, minima and codes, row by row.

    h: (columns, columns).   f: (rows, rows) where rows are coupled, else (rows,), how much each counts.
    gradient: (rows, columns) of half the loss, F E H, kept true inside the tile.   Up to 256 columns, whole spans.
    changed: how many numbers moved.
    """
    move, direction = empty(256, f4), empty(256, f4)
    found = empty(2, f4)
    n, count = levels.size, np.int32(0)
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
                    unit, low, high, old = scale[s], factor_low, factor_high, factor[i]
                else:
                    unit, low, high, old = -minimum[s], shift_low, shift_high, shift[i]
                if low == high or unit == f4(0):
                    continue
                for j in range(b * block, (b + 1) * block):
                    move[j] = levels[code[at + j]] if which == 0 else f4(1)
                _curve(gradient, h, move, r, columns, b * block, (b + 1) * block, direction, found)
                slope, curve = found[0], found[1] * weight
                if curve <= f4(0):
                    continue
                new = np.int32(min(max(old + _nearest(-slope / curve / unit), low), high))
                change = f4(new - old) * unit
                if new == old or f4(2) * slope * change + curve * change * change >= f4(0):
                    continue
                if which == 0:
                    factor[i] = new
                else:
                    shift[i] = new
                count += 1
                _spread(gradient, f, r, rows, columns, coupled, change, direction)
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
                if not abs(wanted) <= _MOST:
                    continue
                nearest = _half(wanted)
                if which == 0 and nearest == f4(0):
                    continue
                change = nearest - old_scale
                if change == f4(0) or f4(2) * slope * change + curve * change * change >= f4(0):
                    continue
                if which == 0:
                    scale[s] = nearest
                else:
                    minimum[s] = nearest
                count += 1
                _spread(gradient, f, r, rows, columns, coupled, change, direction)
        for j in range(columns):
            step = scale[r * spans + j // span] * f4(factor[r * blocks + j // block])
            curve = h[j * columns + j] * weight
            if step == f4(0) or curve <= f4(0):
                continue
            old_code = code[at + j]
            slope = gradient[at + j]
            q = _code(levels[old_code] - slope / curve / step, levels, n, uniform)
            if q == old_code:
                continue
            change = (levels[q] - levels[old_code]) * step
            if f4(2) * slope * change + curve * change * change >= f4(0):
                continue
            code[at + j] = q
            count += 1
            for c in range(0, columns, LANES):
                store(direction, c, load(h, j * columns + c))
            _spread(gradient, f, r, rows, columns, coupled, change, direction)
    changed[0] = count
