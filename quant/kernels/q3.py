"""Q3_K's kernels: the reference's descent for the scales (`make_q3_quants`), and what is then stored.

The descent rounds sixteen weights by the scale that takes the largest to -4, then asks them in turn for an integer
that would fit better, given the others', until none of them has one, five rounds at most.  Most sub-blocks rest as
they were rounded.  So rounding goes sixteen sub-blocks abreast, one a lane; those that may not rest are then kept
with their integers, and all their weights are asked at once: only the first that moves counts, as it changes the
question for the others.  Every sum is the reference's, in its order.  Layout: ggml's `ggml-common.h`.
"""

import numpy as np
from numba import types

from llmconv.quant.kernels.build import F32, inner, kernel, out
from llmconv.quant.kernels.fields import INVERSE, SCALE, SUB, WEIGHT
from llmconv.quant.kernels.lanes import LANE, divide, multiply
from llmconv.quant.kernels.search import TINY, best_symmetric
from llmconv.quant.kernels.simd import (
    any_lane,
    bits,
    clamp,
    f16_bits,
    f16_value,
    fabs,
    load,
    load_i32,
    load_words,
    mask_bits,
    max_,
    min_,
    nearest_int,
    neg,
    prefetch,
    rint,
    select,
    splat,
    store,
    store_u16,
    store_words,
    to_float,
    to_int,
    to_u8,
    trailing_zeros,
    transpose,
)
from llmconv.quant.kernels.stack import empty

f4, i4, u4 = np.float32, np.int32, np.uint32
u8 = np.uint64  # an index that numba need not look at for a minus sign

KEPT = 24
"""Floats kept of a sub-block that may not rest: its sixteen integers, the two sums, and room to keep them aligned."""
SUM_XL, SUM_LL = u8(16), u8(17)
LOOKS = u8(80)  # sixteen weights, five rounds
GROUPS = 2
"""Sixteen blocks each; their descents go together, so that one needn't wait for another's outcome."""


# ---- the search


@inner
def round_q3(tile, at, sums):
    """Plain rounding of 16 weights to -4 .. 3; returns the largest magnitude.

    Into `sums`, four vectors: the sums of w x l and of w l² (w being x²), the inverse scale, and how far `rests_q3`
    must doubt its own arithmetic.
    """
    high, low = splat(f4(0)), splat(f4(0))
    for i in range(0, 256, 16):
        v = load(tile, at + i)
        high, low = max_(v, high), min_(v, low)
    size = neg(low)
    largest, signed = max_(high, size), select(high > size, high, low)
    if any_lane((high == size) & (high > f4(0))):  # the first of the two counts
        largest = splat(f4(0))
        for i in range(0, 256, 16):
            v = load(tile, at + i)
            more = fabs(v) > largest
            largest, signed = select(more, fabs(v), largest), select(more, v, signed)
    inverse = f4(-4) / signed
    sum_xl, sum_ll = splat(f4(0)), splat(f4(0))
    for i in range(0, 256, 16):
        v = load(tile, at + i)
        level = min_(rint(inverse * v), f4(3))
        w = v * v
        sum_xl, sum_ll = sum_xl + w * v * level, sum_ll + w * level * level
    store(sums, 0, sum_xl)
    store(sums, 16, sum_ll)
    store(sums, 32, inverse)
    # Where products are subnormal their errors have no bound in proportion.
    store(sums, 48, select(sum_xl > f4(1e-30), f4(1e-5) * largest, f4(np.inf)))
    return largest


@inner
def rests_q3(v, level, sum_xl, sum_ll, doubt):
    """Whether certainly none of sixteen weights moves: |x L / X - l| < 1/2, L and X being the sums of the others.

    That is |x sum_ll - l sum_xl| < X / 2, where the weight's own part cancels; 3 also stands for what is above it.
    The rounding errors on either side are below 2e-6 times the largest weight times sum_ll.
    """
    away = fabs(min_(v * sum_ll, f4(3) * sum_xl) - level * sum_xl)
    near = f4(0.4999) * sum_xl - doubt * sum_ll - v * v * v * (level * f4(0.5))
    return mask_bits(away < near) == u4(0xFFFF)


@inner
def move_q3(x, at, kept, to, step, trial):
    """Let the first of sixteen weights that wants another integer, from `step` on, have it.

    kept: the state at `to` (see KEPT); trial: room for 32.  Returns the next step, and whether there was such a weight.
    """
    v, old = load(x, np.int64(at)), load(kept, np.int64(to))
    sum_xl, sum_ll = kept[to + SUM_XL], kept[to + SUM_LL]
    w = v * v
    wx = w * v
    rest_xl, rest_ll = sum_xl - wx * old, sum_ll - w * old * old
    level = to_float(clamp(nearest_int(v * rest_ll / rest_xl), i4(-4), i4(3)))
    new_xl, new_ll = rest_xl + wx * level, rest_ll + w * level * level
    gain = new_xl * new_xl * sum_ll - sum_xl * sum_xl * new_ll
    # All of them positive: the least is.  (A NaN in any makes `gain` one, and the last.)
    wants = mask_bits(min_(min_(min_(fabs(level - old), rest_xl), new_ll), gain) > f4(0))
    store(trial, 0, new_xl)
    store(trial, 16, new_ll)
    step += u8(trailing_zeros((wants | (wants << u4(16))) >> u4(step & u8(15))))
    moves = (wants != u4(0)) & (step < LOOKS)
    first = step & u8(15)
    kept[to + SUM_XL] = trial[first] if moves else sum_xl
    kept[to + SUM_LL] = trial[u8(16) + first] if moves else sum_ll
    store(kept, np.int64(to), select(load_i32(LANE, 0) == (i4(first) if moves else i4(-1)), level, old))
    return step + u8(1), moves


@kernel(F32, out(types.float32))
def search_q3(x, found):
    """SCALE of `make_q3_quants` for every 16 weights of blocks of 256."""
    most = 256 * GROUPS + 1  # one is written before it is known to be needed
    tile, trial, sums = empty(16 * 256, f4), empty(32, f4), empty(64, f4)
    kept, places, states = empty(most * KEPT, f4), empty(most, np.int64), empty(most, np.uint64)
    for chunk in range(0, x.size, 4096 * GROUPS):
        n = 0
        for start in range(chunk, min(chunk + 4096 * GROUPS, x.size), 4096):
            for i in range(0, 256, 16):
                transpose(x, start + i, 256, tile, 16 * i)
            for j in range(0, 256, 16):
                for i in range(0, 256, 16):
                    prefetch(x, start + 4096 + 16 * j + i)
                dead = round_q3(tile, 16 * j, sums) < TINY
                sum_xl, sum_ll = load(sums, 0), load(sums, 16)
                scale = select(sum_ll > f4(0), select(dead, f4(0), sum_xl / sum_ll), f4(0))
                store(found, (start // 16 + j) // 16 * SUB + SCALE, scale)
                # After a positive largest weight, integers have the other sign: nothing in sum_xl is positive.
                left = mask_bits(select(dead, f4(0), sum_xl) > f4(0))
                while left:
                    lane = np.int64(trailing_zeros(left))
                    left &= left - u4(1)
                    at, to = start + 256 * lane + j, n * KEPT
                    places[n], states[n] = at, at << 21 | to << 7
                    v, xl, ll = load(x, at), sums[lane], sums[16 + lane]
                    level = min_(rint(sums[32 + lane] * v), f4(3))
                    store(kept, to, level)
                    kept[to + 16], kept[to + 17] = xl, ll
                    n += not rests_q3(v, level, xl, ll, sums[48 + lane])
        count = n
        while count:
            some, count = count, 0
            for i in range(some):
                state = states[i]
                at, to, step = state >> u8(21), (state >> u8(7)) & u8(0x3FFF), state & u8(0x7F)
                step, moved = move_q3(x, at, kept, to, step, trial)
                states[count] = (state ^ (state & u8(0x7F))) | step
                count += moved
        for i in range(n):
            at, xl, ll = places[i], kept[KEPT * i + 16], kept[KEPT * i + 17]
            to = (at // 4096 * 16 + at // 16 % 16) * SUB + SCALE + at // 256 % 16
            found[to] = xl / ll if ll > f4(0) else f4(0)


# ---- the bytes


@inner
def settle_q3(x, at, kept, trial):
    """The integers of `make_q3_quants`, plus 4, for 16 weights; all of them 0 where it gives up."""
    largest, signed = f4(0), f4(0)
    for i in range(at, at + 16):
        if abs(x[i]) > largest:
            largest, signed = abs(x[i]), x[i]
    if largest < TINY:
        return splat(i4(0))
    level = clamp(nearest_int(splat(f4(-4) / signed) * load(x, at)), i4(-4), i4(3))
    store(kept, 0, to_float(level))
    sum_xl, sum_ll = f4(0), f4(0)
    for i in range(16):
        v, w = x[at + i], x[at + i] * x[at + i]
        sum_xl, sum_ll = sum_xl + w * v * kept[i], sum_ll + w * kept[i] * kept[i]
    kept[SUM_XL], kept[SUM_LL] = sum_xl, sum_ll
    step, moved = u8(0), True
    while moved:
        step, moved = move_q3(x, u8(at), kept, u8(0), step, trial)
    return to_int(load(kept, 0)) + i4(4)


@inner
def place_q3(j):
    """Where the bytes of sub-block `j` go, so that what shares a byte of the low bits is 64 bytes apart."""
    return 64 * (j // 2 % 4) + 32 * (j // 8) + 16 * (j % 2)


@inner
def quick_levels(x, at, inverses, lane, levels):
    """The integers of a block, 0 .. 7, by multiplying: whether they are surely those that dividing gives.

    The two quotients differ by less than 1e-6.  Both are far below 2^22, where the reference's rounding wraps: without
    importance, a sub-block's scale is at least a 128th of its largest weight, and stored as at least a third of that,
    or as zero, whose inverse is given as NaN.
    """
    worst = splat(i4(0))
    for j in range(16):
        near = max_(f4(-4), min_(f4(3), load(x, at + 16 * j) * inverses[16 * j + lane]))
        level = near + f4(12582916)  # 1.5 * 2^23 + 4: its last byte is the integer
        # Compared as integers, where a NaN is the greatest.
        worst = max_(bits(fabs(near - (level - f4(12582916)))), worst)
        store(levels, place_q3(j), to_u8(bits(level)))
    return not any_lane(worst > bits(f4(0.499998)))


@inner
def put_levels(levels, out, at):
    """The high bits (bit j of byte i is that of weight 32 * j + i), and the low two as in `put_crumbs`."""
    a, b = load_words(levels, 0), load_words(levels, 64)
    c, d = load_words(levels, 128), load_words(levels, 192)
    one, three = i4(0x01010101), i4(0x03030303)
    high = ((a >> i4(2)) & one) | (((b >> i4(2)) & one) << i4(1))
    high = high | (((c >> i4(2)) & one) << i4(2)) | (((d >> i4(2)) & one) << i4(3))
    store_words(levels, 256, high)
    store_words(out, at, load_words(levels, 256) | (load_words(levels, 288) << i4(4)))  # 32 bytes of it count
    low = (a & three) | ((b & three) << i4(2)) | ((c & three) << i4(4)) | ((d & three) << i4(6))
    store_words(out, at + 32, low)


@inner
def scales_q3(found, at, weighted, tile, weights, products, codes, d):
    """The sixteen scales of each lane's block as integers 0 .. 63, into `codes`, and the scale of those into `d`."""
    if weighted:
        for j in range(0, 256, 16):
            store(tile, j, load(found, at + SUB * (j // 16) + SCALE))
            store(weights, j, load(found, at + SUB * (j // 16) + WEIGHT))
        scale, inverse = best_symmetric(tile, 0, 16, weights, products, f4(32))
        store(d, 0, scale)
        for j in range(0, 256, 16):
            code = clamp(nearest_int(inverse * load(tile, j)), i4(-32), i4(31)) + i4(32)
            store(codes, j, select(inverse == f4(0), i4(0), code))
    else:
        largest, signed = splat(f4(0)), splat(f4(0))
        for j in range(16):
            scale = load(found, at + SUB * j + SCALE)
            more = fabs(scale) > largest
            largest, signed = select(more, fabs(scale), largest), select(more, scale, signed)
        inverse = f4(-32) / signed
        none = signed == f4(0)
        store(d, 0, select(none, f4(0), f4(1) / inverse))
        for j in range(16):
            # The reference keeps the rounded scale in a signed byte before it clamps.
            code = nearest_int(inverse * load(found, at + SUB * j + SCALE))
            code = clamp(((code & i4(255)) ^ i4(128)) - i4(128), i4(-32), i4(31)) + i4(32)
            store(codes, 16 * j, select(none, i4(0), code))


@inner
def scale_bytes(codes, packed):
    """Sixteen scales of 6 bits in twelve bytes: byte i of every lane to `packed[16 * i:]`."""
    for j in range(8):
        low, high = load_i32(codes, 16 * j), load_i32(codes, 16 * (8 + j))
        store(packed, 16 * j, to_u8((low & i4(15)) | ((high & i4(15)) << i4(4))))
    for j in range(4):
        byte = load_i32(codes, 16 * j) >> i4(4)
        for i in (1, 2, 3):
            byte = byte | ((load_i32(codes, 16 * (j + 4 * i)) >> i4(4)) << i4(2 * i))
        store(packed, 16 * (8 + j), to_u8(byte))


@kernel(F32, types.int64, types.int64, F32, types.boolean, out(types.uint8))
def pack_q3_k(x, k, n_rows, found, weighted, out):
    """Q3_K: the high bits, the low two bits, the twelve bytes of scales, d."""
    codes, halves, d = empty(256, i4), empty(16, i4), empty(16, f4)
    tile, weights, products = empty(256, f4), empty(256, f4), empty(256, f4)
    scales, inverses = empty(256, f4), empty(256, f4)
    packed, levels = empty(192, np.uint8), empty(352, np.uint8)
    kept, trial = empty(KEPT, f4), empty(32, f4)
    for group in range((n_rows + 15) // 16):
        for column in range(k // 256):
            base = (group * (k // 256) + column) * 16 * SUB
            scales_q3(found, base, weighted, tile, weights, products, codes, d)
            half = f16_bits(load(d, 0))
            store(halves, 0, half)
            stored = f16_value(half)
            for j in range(0, 256, 16):
                scale = stored * to_float(load_i32(codes, j) - i4(32))
                store(scales, j, scale)
                store(inverses, j, select(scale == f4(0), f4(np.nan), f4(1) / scale))
            scale_bytes(codes, packed)
            for lane in range(min(16, n_rows - 16 * group)):
                row = 16 * group + lane
                at, x_at = (row * (k // 256) + column) * 110, row * k + 256 * column
                if weighted or not quick_levels(x, x_at, inverses, lane, levels):
                    for j in range(16):
                        first, scale = x_at + 16 * j, scales[16 * j + lane]
                        inverse = found[base + SUB * j + INVERSE + lane]
                        if scale != f4(0):
                            level = divide(x, first, f4(0), scale, -4, 3) + i4(4)
                        elif not weighted:
                            level = settle_q3(x, first, kept, trial)
                        elif inverse != f4(0):
                            level = multiply(x, first, f4(0), inverse, -4, 3) + i4(4)
                        else:
                            level = splat(i4(0))
                        store(levels, place_q3(j), to_u8(level))
                put_levels(levels, out, at)
                for j in range(12):
                    out[at + 96 + j] = packed[16 * j + lane]
                store_u16(out, at + 108, halves[lane])
