"""Q3_K's kernels: the reference's descent for the scales (`make_q3_quants`), and what is then stored.

The descent rounds sixteen weights by the scale that takes the largest to -4, then asks them in turn for an integer
that would fit better, given the others', until none of them has one, five rounds at most.  Most sub-blocks rest as
they were rounded.  So rounding goes sixteen sub-blocks abreast, one a lane; those that may not rest are then kept
with their integers, and all their weights are asked at once: only the first that moves counts, as it changes the
question for the others.  Every sum is the reference's, in its order.  Layout: ggml's `ggml-common.h`.
"""

import numpy as np
from numba import types

from llmconv.quant.kernels.compiling.build import F32, inner, kernel, out
from llmconv.quant.kernels.search import TINY, best_symmetric
from llmconv.quant.kernels.terms.fields import INVERSE, SCALE, SUB, WEIGHT
from llmconv.quant.kernels.vectors.lanes import divide, multiply
from llmconv.quant.kernels.vectors.memory import (
    load,
    load_bytes,
    load_i32,
    prefetch,
    store,
    store_bytes,
    store_u16,
    transpose,
)
from llmconv.quant.kernels.vectors.simd import (
    any_lane,
    bits,
    clamp,
    f16_bits,
    f16_value,
    fabs,
    mask_bits,
    max_,
    min_,
    nearest_int,
    neg,
    rint,
    select,
    splat,
    to_float,
    to_int,
    to_u8,
    trailing_zeros,
)
from llmconv.quant.kernels.vectors.stack import empty

f4, i4, u4 = np.float32, np.int32, np.uint32
u8 = np.uint64  # an index that numba need not look at for a minus sign

KEPT = 24
"""Floats kept of a sub-block that may move: its integers, one that stands for none, the sums, and room to align."""
SUM_XL, SUM_LL = u8(17), u8(18)
LOOKS = u8(80)  # sixteen weights, five rounds
GROUPS = 2
"""Sixteen blocks each; their descents go together, so that one needn't wait for another's outcome."""


# ---- the search


@inner
def round_q3(tile, at, levels, parts, sums):
    """Plain rounding of 16 weights to -4 .. 3; returns the lanes, as bits, where one of them may move.

    Into `sums`, four vectors: the sums of w x l and of w l² (w being x²), the inverse scale, and the scale.
    levels, parts: room for 256.
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
        part = w * v * level
        store(levels, i, level)
        store(parts, i, part)
        sum_xl, sum_ll = sum_xl + part, sum_ll + w * level * level
    dead = largest < TINY
    store(sums, 0, sum_xl)
    store(sums, 16, sum_ll)
    store(sums, 32, inverse)
    store(sums, 48, select(sum_ll > f4(0), select(dead, f4(0), sum_xl / sum_ll), f4(0)))
    # A weight stays if |x L / X - l| < 1/2, L and X being the sums without it: if |x sum_ll - l sum_xl| < X / 2, as its
    # own part cancels.  (3 also stands for what is above it.)  Both sides twice; their rounding errors are below
    # 4e-6 times the largest weight times sum_ll, unless something is subnormal.
    twice_xl, twice_ll, top = sum_xl + sum_xl, sum_ll + sum_ll, f4(6) * sum_xl
    most = splat(f4(0))
    for i in range(0, 256, 16):
        away = fabs(min_(load(tile, at + i) * twice_ll, top) - load(levels, i) * twice_xl)
        most = max_(away + load(parts, i), most)
    stays = most < f4(0.9998) * sum_xl - f4(2e-5) * largest * sum_ll
    # After a positive largest weight, integers have the other sign: nothing in sum_xl is positive, and nothing moves.
    may_move = select(dead, f4(0), select(stays & (sum_xl > f4(1e-30)), f4(0), sum_xl))
    return mask_bits(may_move > f4(0))


@inner
def move_q3(x, at, kept, to, step, trial):
    """Let the first of sixteen weights that wants another integer, from `step` on, have it.

    kept: the state at `to` (see KEPT); trial: room for 96.  Returns the next step, and whether there was such a weight.
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
    store(trial, 32, new_ll)
    store(trial, 64, level)
    trial[16], trial[48] = sum_xl, sum_ll
    step += u8(trailing_zeros((wants | (wants << u4(16))) >> u4(step & u8(15))))
    # No branch: it can't be foreseen.
    rests = u8((wants == u4(0)) | (step >= LOOKS))
    first = (step & u8(15)) * (u8(1) - rests) + u8(16) * rests
    kept[to + SUM_XL], kept[to + SUM_LL] = trial[first], trial[u8(32) + first]
    kept[to + first] = trial[u8(64) + first]
    return step + u8(1), rests == u8(0)


@inner
def search_q3(x, start, stop, found, room):
    """SCALE of `make_q3_quants` for every 16 weights of the blocks of 256 in x[start:stop], GROUPS times 16 at most."""
    tile, levels, parts, sums, kept, trial, places, states = room
    n, to = 0, 0
    for group in range(start, stop, 4096):
        for i in range(0, 256, 16):
            transpose(x, group + i, 256, tile, 16 * i)
        for j in range(0, 256, 16):
            for i in range(0, 256, 16):
                prefetch(x, group + 4096 + 16 * j + i)
            left = round_q3(tile, 16 * j, levels, parts, sums)
            store(found, to + SCALE, load(sums, 48))
            while left:
                lane = np.int64(trailing_zeros(left))
                left &= left - u4(1)
                at, own = group + 256 * lane + j, n * KEPT
                places[n], states[n] = to + SCALE + lane, at << 21 | own << 7
                store(kept, own, min_(rint(sums[32 + lane] * load(x, at)), f4(3)))
                kept[own + 17], kept[own + 18] = sums[lane], sums[16 + lane]
                n += 1
            to += SUB
    count = n
    while count:
        some, count = count, 0
        for i in range(some):
            state = states[i]
            at, own, step = state >> u8(21), (state >> u8(7)) & u8(0x3FFF), state & u8(0x7F)
            step, moved = move_q3(x, at, kept, own, step, trial)
            states[count] = (state ^ (state & u8(0x7F))) | step
            count += moved
    for i in range(n):
        xl, ll = kept[KEPT * i + 17], kept[KEPT * i + 18]
        found[places[i]] = xl / ll if ll > f4(0) else f4(0)


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
    a, b = load_bytes(levels, 0), load_bytes(levels, 64)
    c, d = load_bytes(levels, 128), load_bytes(levels, 192)
    one, three = i4(0x01010101), i4(0x03030303)
    high = ((a >> i4(2)) & one) | (((b >> i4(2)) & one) << i4(1))
    high = high | (((c >> i4(2)) & one) << i4(2)) | (((d >> i4(2)) & one) << i4(3))
    store_bytes(levels, 256, high)
    store_bytes(out, at, load_bytes(levels, 256) | (load_bytes(levels, 288) << i4(4)))  # 32 bytes of it count
    low = (a & three) | ((b & three) << i4(2)) | ((c & three) << i4(4)) | ((d & three) << i4(6))
    store_bytes(out, at + 32, low)


@inner
def scales_q3(found, at, codes):
    """The sixteen scales of each lane's block as integers 0 .. 63, into `codes`; returns the scale of those."""
    largest, signed = splat(f4(0)), splat(f4(0))
    for j in range(16):
        scale = load(found, at + SUB * j + SCALE)
        more = fabs(scale) > largest
        largest, signed = select(more, fabs(scale), largest), select(more, scale, signed)
    inverse = f4(-32) / signed
    none = signed == f4(0)
    for j in range(16):
        # The reference keeps the rounded scale in a signed byte before it clamps.
        code = nearest_int(inverse * load(found, at + SUB * j + SCALE))
        code = clamp(((code & i4(255)) ^ i4(128)) - i4(128), i4(-32), i4(31)) + i4(32)
        store(codes, 16 * j, select(none, i4(0), code))
    return select(none, f4(0), f4(1) / inverse)


@inner
def weighted_scales_q3(found, at, tile, weights, products, codes):
    """`scales_q3` with importance, which counts in the error of the scales too."""
    for j in range(0, 256, 16):
        store(tile, j, load(found, at + SUB * (j // 16) + SCALE))
        store(weights, j, load(found, at + SUB * (j // 16) + WEIGHT))
    scale, inverse = best_symmetric(tile, 0, 16, weights, products, f4(32))
    for j in range(0, 256, 16):
        code = clamp(nearest_int(inverse * load(tile, j)), i4(-32), i4(31)) + i4(32)
        store(codes, j, select(inverse == f4(0), i4(0), code))
    return scale


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


@inner
def scales_as_stored(codes, d, halves, scales, inverses, packed):
    """Of the scales' integers: their bytes, the float16 they multiply, the scales then read back, and 1 over those."""
    scale_bytes(codes, packed)
    half = f16_bits(d)
    store(halves, 0, half)
    stored = f16_value(half)
    for j in range(0, 256, 16):
        scale = stored * to_float(load_i32(codes, j) - i4(32))
        store(scales, j, scale)
        store(inverses, j, select(scale == f4(0), f4(np.nan), f4(1) / scale))


@inner
def put_block_q3(levels, packed, halves, lane, out, at):
    """The high bits, the low two bits, the twelve bytes of scales, d."""
    put_levels(levels, out, at)
    for j in range(12):
        out[at + 96 + j] = packed[16 * j + lane]
    store_u16(out, at + 108, halves[lane])


@kernel(F32, types.int64, out(types.uint8))
def encode_q3_k(x, n_blocks, out):
    """Blocks without importance, a multiple of 16 of them in `x`, of which `n_blocks` are wanted."""
    most = 256 * GROUPS
    tile, kept, trial = empty(16 * 256, f4), empty(most * KEPT, f4), empty(96, f4)
    parts, sums = empty(256, f4), empty(64, f4)
    places, states = empty(most, np.int64), empty(most, np.uint64)
    found, rounded = empty(16 * GROUPS * SUB, f4), empty(256, f4)
    codes, halves, scales, inverses = empty(256, i4), empty(16, i4), empty(256, f4), empty(256, f4)
    packed, levels = empty(192, np.uint8), empty(352, np.uint8)
    for chunk in range(0, x.size, 4096 * GROUPS):
        stop = min(chunk + 4096 * GROUPS, x.size)
        search_q3(x, chunk, stop, found, (tile, rounded, parts, sums, kept, trial, places, states))
        for group in range(chunk, stop, 4096):
            d = scales_q3(found, (group - chunk) // 256 * SUB, codes)
            scales_as_stored(codes, d, halves, scales, inverses, packed)
            for lane in range(min(16, n_blocks - group // 256)):
                first = group + 256 * lane
                if not quick_levels(x, first, inverses, lane, levels):
                    for j in range(16):
                        if scales[16 * j + lane] != f4(0):
                            level = divide(x, first + 16 * j, f4(0), scales[16 * j + lane], -4, 3) + i4(4)
                        else:
                            level = settle_q3(x, first + 16 * j, kept, trial)
                        store(levels, place_q3(j), to_u8(level))
                put_block_q3(levels, packed, halves, lane, out, first // 256 * 110)


@kernel(F32, types.int64, types.int64, F32, out(types.uint8))
def pack_q3_k(x, k, n_rows, found, out):
    """Blocks with importance, whose scales `search_symmetric` has found."""
    tile, weights, products = empty(256, f4), empty(256, f4), empty(256, f4)
    codes, halves, scales, inverses = empty(256, i4), empty(16, i4), empty(256, f4), empty(256, f4)
    packed, levels = empty(192, np.uint8), empty(352, np.uint8)
    for group in range((n_rows + 15) // 16):
        for column in range(k // 256):
            base = (group * (k // 256) + column) * 16 * SUB
            d = weighted_scales_q3(found, base, tile, weights, products, codes)
            scales_as_stored(codes, d, halves, scales, inverses, packed)
            for lane in range(min(16, n_rows - 16 * group)):
                row = 16 * group + lane
                for j in range(16):
                    at, inverse = row * k + 256 * column + 16 * j, found[base + SUB * j + INVERSE + lane]
                    if scales[16 * j + lane] != f4(0):
                        level = divide(x, at, f4(0), scales[16 * j + lane], -4, 3) + i4(4)
                    elif inverse != f4(0):
                        level = multiply(x, at, f4(0), inverse, -4, 3) + i4(4)
                    else:
                        level = splat(i4(0))
                    store(levels, place_q3(j), to_u8(level))
                put_block_q3(levels, packed, halves, lane, out, (row * (k // 256) + column) * 110)
