"""The reference's searches for the best scales, sixteen blocks at a time: one block a lane, its own order kept.

Tiles are column by column: `tile[16 * i + lane]` is weight i of that lane's block.  What a search finds is kept in
`found`, FIELDS vectors for each sub-block (SCALE, MINIMUM, ...), and turned into bytes by the family's own kernels.

Follows `make_qkx2_quants`, `make_qkx3_quants`, `make_qx_quants` and `make_qp_quants` of ggml's `ggml-quants.c`,
of which these are rewrites: every lane does the same float32 operations in the same order.
"""

import numpy as np
from numba import types

from llmconv.quant.kernels.compiling.build import F32, ROWS, inner, kernel, out
from llmconv.quant.kernels.terms.fields import (
    BY_BOTH,
    BY_IMPORTANCE,
    BY_RMS,
    BY_SIZE,
    BY_SQUARE,
    INVERSE,
    MINIMUM,
    OFFSET,
    SCALE,
    SUB,
    WEIGHT,
)
from llmconv.quant.kernels.vectors.memory import load, load_i32, prefetch, store, transpose
from llmconv.quant.kernels.vectors.simd import (
    any_lane,
    clamp,
    fabs,
    max_,
    min_,
    nearest_int,
    neg,
    not_,
    rint,
    select,
    splat,
    sqrt,
    to_float,
)
from llmconv.quant.kernels.vectors.stack import empty, zeros

f4 = np.float32
i4 = np.int32

TINY = f4(1e-15)  # GROUP_MAX_EPS: blocks below it are stored as zeros
EXACT = f4(4194303.0)  # rint and nearest_int agree up to here


@kernel(ROWS, types.int64, out(types.float32))
def widen(rows, count, out):
    """The first `count` weights as float32."""
    whole = count // 16 * 16
    for i in range(0, whole, 16):
        store(out, i, load(rows, i))
    if whole < count:
        tail = zeros(16, rows.dtype)
        wide = empty(16, f4)
        for i in range(whole, count):
            tail[i - whole] = rows[i]
        store(wide, 0, load(tail, 0))
        for i in range(whole, count):
            out[i] = wide[i - whole]


@kernel(F32, types.int64, types.int64, types.float32, out(types.float32))
def mean_squares(x, k, span, factor, means):
    """factor * sum(x²) / span for every `span` columns of rows of `k`, sixteen rows abreast, added in order."""
    tile = empty(256, f4)
    at = 0
    for group in range(x.size // (16 * k)):
        for start in range(0, k, span):
            total = splat(f4(0))
            for column in range(start, start + span, 16):
                transpose(x, group * 16 * k + column, k, tile, 0)
                for i in range(0, 256, 16):
                    v = load(tile, i)
                    total = total + v * v
            store(means, at, total * factor / f4(span))
            at += 16


@inner
def weigh(mode, tile, at, n, importance, column, mean, weights):
    """The weights of `n` tile rows in the error, into `weights`."""
    if mode == BY_RMS:
        total = splat(f4(0))
        for i in range(0, 16 * n, 16):
            v = load(tile, at + i)
            total = total + v * v
        mean = sqrt(total / f4(n))
    for i in range(n):
        v = load(tile, at + 16 * i)
        if mode == BY_RMS:
            w = mean + fabs(v)
        elif mode == BY_SIZE:
            w = fabs(v)
        elif mode == BY_SQUARE:
            w = v * v
        elif mode == BY_IMPORTANCE:
            w = splat(importance[column + i])
        else:
            w = sqrt(mean + v * v) * importance[column + i]
        store(weights, 16 * i, w)


@inner
def fetch_next(x, k, block, group, start, j, n):
    """Ask for a part of the next sixteen blocks: the processor can't foresee what is a row apart."""
    at = group * 16 * k + start + block if start + block < k else (group + 1) * 16 * k
    rows = 16 * n // block
    for lane in range(j // n * rows, j // n * rows + rows):
        for i in range(0, block, 16):
            prefetch(x, at + lane * k + i)


@inner
def best_affine(tile, at, n, weights, levels, top, first, step, steps, absolute, found, to):
    """The scale and minimum (x ~ scale * l - minimum, 0 <= l <= top) of least weighted error, into `found[to:]`."""
    x = load(tile, at)
    w = load(weights, 0)
    low, high, sum_w, sum_x = x, x, w, w * x
    for i in range(16, 16 * n, 16):
        x, w = load(tile, at + i), load(weights, i)
        low, high = min_(x, low), max_(x, high)
        sum_w, sum_x = sum_w + w, sum_x + w * x
    lowest = low
    low = select(low > f4(0), f4(0), low)
    flat = high <= low
    flat_low = low
    inverse = splat(top) / (high - low)
    scale = splat(f4(1)) / inverse
    best_inverse, best_offset = inverse, low
    best = splat(f4(0))
    for trial in range(-1, steps + 1):
        # The first round only measures the plain fit; the others solve for the scale and the minimum.
        shift = first + step * f4(trial)
        if trial >= 0:
            inverse = splat(shift + top) / (high - low)
        # Where the reference's rounding trick would overflow, follow it bit by bit.
        tame = (fabs(inverse * (high - low)) < EXACT) & (fabs(inverse * (lowest - low)) < EXACT)
        sum_l, sum_ll, sum_xl = splat(f4(0)), splat(f4(0)), splat(f4(0))
        if any_lane(not_(tame | flat)):
            for i in range(0, 16 * n, 16):
                level = to_float(clamp(nearest_int(inverse * (load(tile, at + i) - low)), i4(0), i4(top)))
                store(levels, i, level)
        elif shift < f4(0.49):  # no quotient reaches top + 0.5
            for i in range(0, 16 * n, 16):
                store(levels, i, max_(rint(inverse * (load(tile, at + i) - low)), f4(0)))
        else:
            for i in range(0, 16 * n, 16):
                store(levels, i, clamp(rint(inverse * (load(tile, at + i) - low)), f4(0), top))
        for i in range(0, 16 * n, 16):
            level = load(levels, i)
            wl = load(weights, i) * level
            sum_l, sum_ll, sum_xl = sum_l + wl, sum_ll + wl * level, sum_xl + wl * load(tile, at + i)
        det = sum_w * sum_ll - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / det
        new_low = (sum_ll * sum_x - sum_l * sum_xl) / det
        positive = new_low > f4(0)
        new_low = select(positive, f4(0), new_low)
        new_scale = select(positive, sum_xl / sum_ll, new_scale)
        if trial < 0:
            new_scale, new_low = scale, low
        error = splat(f4(0))
        for i in range(0, 16 * n, 16):
            miss = new_scale * load(levels, i) + new_low - load(tile, at + i)
            miss = fabs(miss) if absolute else miss * miss
            error = error + load(weights, i) * miss
        if trial < 0:
            best = error
        else:
            better = (error < best) & (det > f4(0))
            best = select(better, error, best)
            scale = select(better, new_scale, scale)
            best_inverse, best_offset = select(better, inverse, best_inverse), select(better, low, best_offset)
            low = select(better, new_low, low)
    # A flat block has integers 0, which an inverse scale of 0 gives again.
    store(found, to + SCALE, select(flat, f4(0), scale))
    store(found, to + MINIMUM, neg(select(flat, flat_low, low)))
    store(found, to + INVERSE, select(flat, f4(0), best_inverse))
    store(found, to + OFFSET, select(flat, f4(0), best_offset))
    store(found, to + WEIGHT, sum_w)


@kernel(
    F32,
    types.int64,
    types.int64,
    types.int64,
    types.int64,
    F32,
    F32,
    types.int64,
    types.float32,
    types.float32,
    types.float32,
    types.int64,
    types.boolean,
    out(types.float32),
)
def search_affine(x, k, block, n, mode, importance, means, span, top, first, step, steps, absolute, found):
    """`best_affine` for every sub-block of `n` weights in rows of `k`, a multiple of 16 rows.

    block: weights in a block (256 or 32); importance: (k,) or empty; means: of `mean_squares` over `span`, or empty.
    """
    tile, weights, levels = empty(16 * block, f4), empty(16 * n, f4), empty(16 * n, f4)
    to = 0
    for group in range(x.size // (16 * k)):
        for start in range(0, k, block):
            for i in range(0, block, 16):
                transpose(x, group * 16 * k + start + i, k, tile, 16 * i)
            mean = splat(f4(0))
            if mode == BY_BOTH:
                mean = load(means, (group * (k // span) + start // span) * 16)
            for j in range(0, block, n):
                fetch_next(x, k, block, group, start, j, n)
                weigh(mode, tile, 16 * j, n, importance, start + j, mean, weights)
                best_affine(tile, 16 * j, n, weights, levels, top, first, step, steps, absolute, found, to)
                to += SUB


@inner
def best_symmetric(tile, at, n, weights, products, top):
    """x ~ scale * l, -top <= l < top: (scale, the inverse scale that gave the integers, 0 for an all-zero block).

    With an infinite x every integer is 0, as a NaN for the inverse scale gives.
    """
    largest, signed, nothing = splat(f4(0)), splat(f4(0)), splat(f4(0))
    for i in range(0, 16 * n, 16):
        x = load(tile, at + i)
        size = fabs(x)
        more = size > largest
        largest, signed = select(more, size, largest), select(more, x, signed)
        store(products, i, load(weights, i) * x)
        nothing = nothing + load(weights, i) * f4(0)
    dead = largest < TINY
    scale, best, best_inverse = splat(f4(0)), splat(f4(0)), splat(f4(0))
    for trial in range(-10, 10):
        if trial == 0:
            continue
        shift = f4(0) if trial == -10 else f4(0.1) * f4(trial)  # the first round has none
        inverse = splat(-(top + shift)) / signed
        sum_xl, sum_ll = splat(f4(0)), splat(f4(0))
        if trial < 5:  # no quotient is below -top - 0.5
            for i in range(0, 16 * n, 16):
                level = min_(rint(inverse * load(tile, at + i)), top - f4(1))
                sum_xl = sum_xl + load(products, i) * level
                sum_ll = sum_ll + load(weights, i) * level * level
        else:
            for i in range(0, 16 * n, 16):
                level = clamp(rint(inverse * load(tile, at + i)), -top, top - f4(1))
                sum_xl = sum_xl + load(products, i) * level
                sum_ll = sum_ll + load(weights, i) * level * level
        fit = sum_xl / sum_ll
        if trial == -10:
            scale = select(sum_ll == f4(0), f4(0), fit)
            best, best_inverse = scale * sum_xl, inverse
        else:
            better = (sum_ll > f4(0)) & (sum_xl * sum_xl > best * sum_ll)
            scale = select(better, fit, scale)
            best = select(better, fit * sum_xl, best)
            best_inverse = select(better, inverse, best_inverse)
    endless = largest == f4(np.inf)
    scale, best_inverse = select(endless, nothing, scale), select(endless, f4(np.nan), best_inverse)
    return select(dead, f4(0), scale), select(dead, f4(0), best_inverse)


@kernel(
    F32,
    types.int64,
    types.int64,
    types.int64,
    types.int64,
    F32,
    F32,
    types.int64,
    types.float32,
    out(types.float32),
)
def search_symmetric(x, k, block, n, mode, importance, means, span, top, found):
    """`best_symmetric` for every sub-block of `n` weights; arguments as of `search_affine`."""
    tile, weights, products = empty(16 * block, f4), empty(16 * n, f4), empty(16 * n, f4)
    to = 0
    for group in range(x.size // (16 * k)):
        for start in range(0, k, block):
            for i in range(0, block, 16):
                transpose(x, group * 16 * k + start + i, k, tile, 16 * i)
            mean = splat(f4(0))
            if mode == BY_BOTH:
                mean = load(means, (group * (k // span) + start // span) * 16)
            for j in range(0, block, n):
                fetch_next(x, k, block, group, start, j, n)
                weigh(mode, tile, 16 * j, n, importance, start + j, mean, weights)
                total = splat(f4(0))
                for i in range(0, 16 * n, 16):
                    total = total + load(weights, i)
                scale, inverse = best_symmetric(tile, 16 * j, n, weights, products, top)
                store(found, to + SCALE, scale)
                store(found, to + INVERSE, inverse)
                store(found, to + WEIGHT, total)
                to += SUB


@inner
def best_positive(found, at, field, n, top, levels, to):
    """`make_qp_quants`: the scale of `n` sub-blocks' `field`, weighed by WEIGHT; integers 0..top into `levels`.

    Integers wrap as the reference's uint8 ones.
    """
    largest = splat(f4(0))
    for i in range(n):
        largest = max_(largest, load(found, at + SUB * i + field))
    dead = largest < TINY
    top_i = i4(top)
    inverse = splat(top) / largest
    scale = splat(f4(1)) / inverse
    best = splat(f4(0))
    for i in range(n):
        x, w = load(found, at + SUB * i + field), load(found, at + SUB * i + WEIGHT)
        miss = x - scale * to_float(nearest_int(inverse * x) & i4(255))
        best = best + w * miss * miss
    for trial in range(-4, 5):
        if trial == 0:
            continue
        other = splat(f4(0.1) * f4(trial) + top) / largest
        scale = splat(f4(1)) / other
        error = splat(f4(0))
        for i in range(n):
            x, w = load(found, at + SUB * i + field), load(found, at + SUB * i + WEIGHT)
            miss = x - scale * to_float(min_(nearest_int(other * x), top_i))
            error = error + w * miss * miss
        better = error < best
        best, inverse = select(better, error, best), select(better, other, inverse)
    sum_xl, sum_ll = splat(f4(0)), splat(f4(0))
    for i in range(n):
        x, w = load(found, at + SUB * i + field), load(found, at + SUB * i + WEIGHT)
        level = min_(nearest_int(inverse * x), top_i)
        store(levels, to + 16 * i, level & i4(255))
        value = to_float(level)
        sum_xl, sum_ll = sum_xl + w * x * value, sum_ll + w * value * value
    for _ in range(5):
        changed = dead & not_(dead)
        for i in range(n):
            x, w = load(found, at + SUB * i + field), load(found, at + SUB * i + WEIGHT)
            old = load_i32(levels, to + 16 * i)
            value = to_float(old)
            rest_xl, rest_ll = sum_xl - w * x * value, sum_ll - w * value * value
            level = min_(nearest_int(x * rest_ll / rest_xl), top_i)
            value = to_float(level)
            new_xl, new_ll = rest_xl + w * x * value, rest_ll + w * value * value
            better = (rest_xl > f4(0)) & (rest_ll > f4(0)) & (level != old)
            better = better & (new_xl * new_xl * sum_ll > sum_xl * sum_xl * new_ll)
            store(levels, to + 16 * i, select(better, level & i4(255), old))
            sum_xl, sum_ll = select(better, new_xl, sum_xl), select(better, new_ll, sum_ll)
            changed = changed | better
        if not any_lane(changed & not_(dead)):
            break
    for i in range(n):
        store(levels, to + 16 * i, select(dead, i4(0), load_i32(levels, to + 16 * i)))
    return select(dead | not_(sum_ll > f4(0)), f4(0), sum_xl / sum_ll)
