"""One input times rows of weights: how 64 levels meet 64 numbers, as they are or rounded to bytes.

What an input of k numbers is made into first (by `round_...` in `parts`), for rows of blocks:

    values    float: (k,) float32, of each 64 the first of every four, then the second, ...; bytes: (k,) int8
    steps     bytes: (k / 4,) float32, the scale of each four
    sums      (k / 4,) float32, the sum of each four

all filled up with zeros to a multiple of 64 numbers.  For plain weights, values are (k,) float32 as they stand.
"""

from llmconv.quant.kernels.compiling.build import inner
from llmconv.quant.kernels.single import levels
from llmconv.quant.kernels.terms.steps import (
    BIAS,
    COLUMNS,
    RESULTS,
    ROW_BYTES,
    STEPS,
    SUMS,
    VALUES,
    WEIGHTS,
)
from llmconv.quant.kernels.vectors.byte_lanes import dot_fours, dot_signed_fours
from llmconv.quant.kernels.vectors.lanes import f4
from llmconv.quant.kernels.vectors.memory import load, load_bytes, prefetch
from llmconv.quant.kernels.vectors.places import bytes_at, floats_at
from llmconv.quant.kernels.vectors.simd import splat, to_float
from llmconv.quant.kernels.vectors.sums import fuse, signed_bytes, sum_lanes, unsigned_bytes

_AHEAD = 1024
"""How many bytes ahead memory is asked for weights: what processors ask for by themselves ends with a page."""


# ---- 64 levels times 64 numbers, of each four a lane


def _float_dot(parts):
    a, b, c, d = parts

    @inner
    def dot(level, values, steps, part):
        at = 64 * part
        total = a(level) * load(values, at)
        total = fuse(b(level), load(values, at + 16), total)
        total = fuse(c(level), load(values, at + 32), total)
        return fuse(d(level), load(values, at + 48), total)

    return dot


def _byte_dot(multiply):
    @inner
    def dot(level, values, steps, part):
        return to_float(multiply(level, load_bytes(values, 64 * part))) * load(steps, 16 * part)

    return dot


_DOTS = {
    (False, False): _float_dot(unsigned_bytes),
    (False, True): _float_dot(signed_bytes),
    (True, False): _byte_dot(dot_fours),
    (True, True): _byte_dot(dot_signed_fours),
}
"""By whether inputs are bytes and levels have a sign."""


# ---- rows


@inner
def _end_of_row(table, start, row, total):
    if table[start + BIAS] != 0:
        total += floats_at(table[start + BIAS])[row]
    floats_at(table[start + RESULTS])[row] = total


def small(size, level, scale, offset, minimum, rounded, signed=False):
    """Rows first to stop of weights in blocks of 32, of `size` bytes: see `levels` for the functions.

    offset: what is added to all levels.   minimum: None where a type has none.
    """
    dot, values_at, offset = _DOTS[rounded, signed], bytes_at if rounded else floats_at, f4(offset)
    affine, shifted = minimum is not None, offset != 0
    minimum = minimum or scale

    @inner
    def rows(table, start, first, stop):
        blocks, row_bytes = bytes_at(table[start + WEIGHTS]), table[start + ROW_BYTES]
        values, parts = values_at(table[start + VALUES]), (table[start + COLUMNS] + 63) // 64
        steps, sums = floats_at(table[start + STEPS]), floats_at(table[start + SUMS])
        for row in range(first, stop):
            a, last = row * row_bytes, (row + 1) * row_bytes - size
            total = least = splat(f4(0))
            for part in range(parts):
                b = min(a + size, last)  # an odd block's partner meets zeros
                prefetch(blocks, a + _AHEAD)
                found = dot(level(blocks, a, b), values, steps, part)
                if shifted:
                    found = fuse(splat(offset), load(sums, 16 * part), found)
                total = fuse(scale(blocks, a, b), found, total)
                if affine:
                    least = fuse(minimum(blocks, a, b), load(sums, 16 * part), least)
                a += 2 * size
            _end_of_row(table, start, row, sum_lanes(total + least))

    return rows


def large(size, level, scales, picks, offset, minima, rounded, signed=False):
    """The same for blocks of 256.

    level, picks: for each quarter.   minima: None, the function of the minima and how a quarter's are picked, or how
    they are picked out of the scales' vector.
    """
    dot, values_at, offset = _DOTS[rounded, signed], bytes_at if rounded else floats_at, f4(offset)
    affine, shifted = minima is not None, offset != 0
    least_of, least_picks = minima or (scales, picks)
    apart = affine and least_of is not scales

    def quarter(part):
        level_of, pick, pick_least = level[part], picks[part], least_picks[part]

        @inner
        def add(blocks, at, scale, least, values, steps, sums, place, total):
            found = dot(level_of(blocks, at), values, steps, place + part)
            if shifted:
                found = fuse(splat(offset), load(sums, 16 * (place + part)), found)
            total = fuse(pick(scale), found, total)
            if affine:
                total = fuse(pick_least(least), load(sums, 16 * (place + part)), total)
            return total

        return add

    first_part, second_part, third_part, fourth_part = (quarter(part) for part in range(4))

    @inner
    def rows(table, start, first, stop):
        blocks, row_bytes = bytes_at(table[start + WEIGHTS]), table[start + ROW_BYTES]
        values, parts = values_at(table[start + VALUES]), table[start + COLUMNS] // 64
        steps, sums = floats_at(table[start + STEPS]), floats_at(table[start + SUMS])
        for row in range(first, stop):
            at = row * row_bytes
            one = two = splat(f4(0))
            for place in range(0, parts, 4):
                for line in range(at + _AHEAD, at + _AHEAD + size, 64):
                    prefetch(blocks, line)
                scale = scales(blocks, at)
                least = scale
                if apart:
                    least = least_of(blocks, at)
                one = first_part(blocks, at, scale, least, values, steps, sums, place, one)
                two = second_part(blocks, at, scale, least, values, steps, sums, place, two)
                one = third_part(blocks, at, scale, least, values, steps, sums, place, one)
                two = fourth_part(blocks, at, scale, least, values, steps, sums, place, two)
                at += size
            _end_of_row(table, start, row, sum_lanes(one + two))

    return rows


def plain(weights_at, width, widen):
    """Rows of plain numbers of `width` bytes."""

    @inner
    def rows(table, start, first, stop):
        weights, values = weights_at(table[start + WEIGHTS]), floats_at(table[start + VALUES])
        stride, k = table[start + ROW_BYTES] // width, table[start + COLUMNS]
        for row in range(first, stop):
            at = row * stride
            a = b = splat(f4(0))
            for i in range(0, k - 31, 32):
                for line in range(0, 32, 64 // width):
                    prefetch(weights, at + i + _AHEAD // width + line)
                a = fuse(load(weights, at + i), load(values, i), a)
                b = fuse(load(weights, at + i + 16), load(values, i + 16), b)
            total = sum_lanes(a + b)
            for i in range(k // 32 * 32, k):
                total += widen(weights[at + i]) * values[i]
            _end_of_row(table, start, row, total)

    return rows


BLOCKS = {
    "q4_0": (small, 18, levels.q4_0, levels.scale, -8, None),
    "q4_1": (small, 20, levels.q4_1, levels.scale, 0, levels.minimum),
    "q5_0": (small, 22, levels.q5_0, levels.scale, -16, None),
    "q5_1": (small, 24, levels.q5_1, levels.scale, 0, levels.minimum),
    "q8_0": (small, 34, levels.q8_0, levels.scale, 0, None),
    "iq4_nl": (small, 18, levels.iq4_nl, levels.scale, 0, None),
    "mxfp4": (small, 17, levels.mxfp4, levels.scale_mxfp4, 0, None),
    "q2_k": (large, 84, levels.q2_k, levels.scales_q2_k, levels.of_16, 0, (levels.minima_q2_k, levels.of_16)),
    "q3_k": (large, 110, levels.q3_k, levels.scales_q3_k, levels.of_16, -4, None),
    "q4_k": (large, 144, levels.q4_k, levels.scales_q45_k, levels.of_32, 0, (levels.scales_q45_k, levels.of_32_minima)),
    "q5_k": (large, 176, levels.q5_k, levels.scales_q45_k, levels.of_32, 0, (levels.scales_q45_k, levels.of_32_minima)),
    "q6_k": (large, 210, levels.q6_k, levels.scales_q6_k, levels.of_16, -32, None),
    "iq4_xs": (large, 136, levels.iq4_xs, levels.scales_iq4_xs, levels.of_32, 0, None),
}
"""By type: how its rows are multiplied, and the arguments of that."""

SIGNED = {"q8_0", "iq4_nl", "iq4_xs", "mxfp4"}
"""Types whose levels have a sign."""
