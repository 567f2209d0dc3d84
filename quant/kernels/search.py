"""The reference's searches for the best scales, sixteen blocks at a time: one block a lane, its own order kept.

Tiles are column by column: `tile[16 * i + lane]` is weight i of that lane's block.  What a search finds is kept in
`found`, FIELDS vectors for each sub-block (SCALE, MINIMUM, ...), and turned into bytes by the family's own kernels.

Follows `make_qkx2_quants`, `make_qkx3_quants`, `make_qx_quants`, `make_q3_quants` and `make_qp_quants` of
ggml's `ggml-quants.c`, of which these are rewrites: every lane does the same float32 operations in the same order.
"""

import numpy as np
from numba import types

from llmconv.quant.kernels.build import F32, ROWS, inner, kernel, out
from llmconv.quant.kernels.fields import (
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
from llmconv.quant.kernels.simd import (
    any_lane,
    clamp,
    fabs,
    load,
    load_i32,
    mask_bits,
    max_,
    min_,
    nearest_int,
    neg,
    not_,
    rint,
    select,
    splat,
    sqrt,
    store,
    to_float,
    trailing_zeros,
    transpose,
)
from llmconv.quant.kernels.stack import empty, zeros

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
def round_q3(tile, at, levels, to):
    """Plain rounding of 16 weights to -4 .. 3: (whether all are zeros, the sums of w x l and of w l²), w being x²."""
    largest, signed = splat(f4(0)), splat(f4(0))
    for i in range(0, 256, 16):
        v = load(tile, at + i)
        more = fabs(v) > largest
        largest, signed = select(more, fabs(v), largest), select(more, v, signed)
    inverse = splat(f4(-4)) / signed
    sum_xl, sum_ll = splat(f4(0)), splat(f4(0))
    for i in range(0, 256, 16):
        v = load(tile, at + i)
        level = clamp(rint(inverse * v), f4(-4), f4(3))
        store(levels, to + i, level)
        sum_xl, sum_ll = sum_xl + v * v * v * level, sum_ll + v * v * level * level
    return largest < TINY, sum_xl, sum_ll


@inner
def restless(tile, at, levels, to, sum_xl, sum_ll):
    """The lanes where the descent might change a first integer; the others are left by it as they are.

    Without divisions, so with a margin: a ratio that is almost halfway, or beyond what `rint` rounds, is left to it.
    """
    moves = fabs(sum_xl) < f4(0)
    for i in range(0, 256, 16):
        v, level = load(tile, at + i), load(levels, to + i)
        rest_xl, rest_ll = sum_xl - v * v * v * level, sum_ll - v * v * level * level
        ratio = v * rest_ll  # over rest_xl
        above = select(level == f4(-4), -EXACT, level - f4(0.4999)) * rest_xl
        below = select(level == f4(3), EXACT, level + f4(0.4999)) * rest_xl
        moves = moves | ((rest_xl > f4(0)) & not_((ratio > above) & (ratio < below)))
    return moves


@inner
def look_q3(tile, levels, i, sum_xl, sum_ll):
    """One step of the descent, at `tile[i:]`: (the lanes whose integer it changes, the sums)."""
    v, old = load(tile, i), load(levels, i)
    w = v * v
    wx = w * v
    rest_xl, rest_ll = sum_xl - wx * old, sum_ll - w * old * old
    level = to_float(clamp(nearest_int(v * rest_ll / rest_xl), i4(-4), i4(3)))
    new_xl, new_ll = rest_xl + wx * level, rest_ll + w * level * level
    better = (rest_xl > f4(0)) & (level != old) & (new_ll > f4(0))
    better = better & (new_xl * new_xl * sum_ll > sum_xl * sum_xl * new_ll)
    store(levels, i, select(better, level, old))
    return better, select(better, new_xl, sum_xl), select(better, new_ll, sum_ll)


@inner
def descend_q3(tile, levels, rounds, scales):
    """`make_q3_quants` for two times 16 weights, or its first `rounds` rounds: the lanes that may not be done.

    Coordinate descent on the integers, -4 .. 3, so they can't be had again from a scale; a round without a change
    ends it.  The two are abreast because one step waits for the other.
    """
    dead0, xl0, ll0 = round_q3(tile, 0, levels, 0)
    dead1, xl1, ll1 = round_q3(tile, 256, levels, 256)
    for _ in range(rounds):
        changed = dead0 & not_(dead0)
        for i in range(0, 256, 16):
            better0, xl0, ll0 = look_q3(tile, levels, i, xl0, ll0)
            better1, xl1, ll1 = look_q3(tile, levels, 256 + i, xl1, ll1)
            changed = changed | better0 | better1
        if not any_lane(changed):
            break
    store(scales, 0, scale_q3(dead0, xl0, ll0))
    store(scales, 16, scale_q3(dead1, xl1, ll1))
    left = mask_bits(restless(tile, 0, levels, 0, xl0, ll0))
    return left | (mask_bits(restless(tile, 256, levels, 256, xl1, ll1)) << np.uint32(16))


@inner
def scale_q3(dead, sum_xl, sum_ll):
    return select(dead | not_(sum_ll > f4(0)), f4(0), sum_xl / sum_ll)


@kernel(F32, out(types.float32))
def search_q3(x, found):
    """SCALE of `make_q3_quants` for every 16 weights of blocks of 256.

    For most of them plain rounding is what the descent ends with, for most others its first round.  So those that
    go on are gathered anew for either: sixteen abreast take as long as the slowest.
    """
    tile, levels, scales = empty(16 * 256, f4), empty(512, f4), empty(32, f4)
    waiting, count = empty(x.size // 16, np.int64), 0  # where in x
    to = 0
    for start in range(0, x.size, 16 * 256):
        for i in range(0, 256, 16):
            transpose(x, start + i, 256, tile, 16 * i)
        for j in range(0, 256, 16):
            dead, sum_xl, sum_ll = round_q3(tile, 16 * j, levels, 0)
            store(found, to + SCALE, scale_q3(dead, sum_xl, sum_ll))
            left = mask_bits(restless(tile, 16 * j, levels, 0, sum_xl, sum_ll) & not_(dead))
            while left:
                waiting[count] = start + 256 * np.int64(trailing_zeros(left)) + j
                count += 1
                left &= left - np.uint32(1)
            to += SUB
    gathered = zeros(512, f4)
    for rounds in (1, 5):
        n, count = count, 0
        for first in range(0, n, 32):
            some = min(32, n - first)
            for lane in range(some):
                store(gathered, 16 * lane, load(x, waiting[first + lane]))
            transpose(gathered, 0, 16, tile, 0)
            transpose(gathered, 256, 16, tile, 256)
            left = descend_q3(tile, levels, rounds, scales)
            for lane in range(some):
                at = waiting[first + lane]
                found[((at // 4096 * 16) + at // 16 % 16) * SUB + SCALE + at // 256 % 16] = scales[lane]
                if (left >> np.uint32(lane)) & np.uint32(1):
                    waiting[count] = at
                    count += 1


@inner
def levels_q3(x, at, tile, levels):
    """The integers (-4 .. 3) of `make_q3_quants` for a block of 256: of weight i of sub-block j, `levels[16 * i + j]`.

    tile, levels: room for 512.
    """
    transpose(x, at, 16, tile, 0)
    transpose(x, at, 16, tile, 256)
    scales = empty(32, f4)
    descend_q3(tile, levels, 5, scales)
    largest = splat(f4(0))
    for i in range(0, 256, 16):
        largest = max_(fabs(load(tile, i)), largest)
    for i in range(0, 256, 16):  # the reference's integers are 0 here, before the middle is added
        store(levels, i, select(largest < TINY, f4(-4), load(levels, i)))


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
