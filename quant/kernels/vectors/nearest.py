"""The codebook entry nearest to some weights, among the neighbours of the point they round to: sixteen at a time.

Distances are computed in the reference's order, and the first of equals wins: the `…_find_best_neighbour` functions of
ggml.
"""

import numpy as np

from llmconv.quant.kernels.compiling.build import inlined, inner
from llmconv.quant.kernels.vectors.choosing import choose4, choose8, repeat4, repeat8
from llmconv.quant.kernels.vectors.codegen import LANES
from llmconv.quant.kernels.vectors.lanes import LANE, f4, i4
from llmconv.quant.kernels.vectors.memory import load, load_i32, store
from llmconv.quant.kernels.vectors.simd import (
    halves,
    max_,
    min_,
    reduce_fmin,
    reduce_umax,
    select,
    splat,
    swap_halves,
)

FLOAT_MAX = f4(3.4028235e38)
u8 = np.uint64

_QUARTER0, _QUARTER1, _QUARTER2, _QUARTER3 = choose4
_HALF0, _HALF1 = choose8


# What the levels in `number`, a codebook's points, add to the distance, dimension by dimension.
@inner
def _sum_of_8(costs, number):
    total = _QUARTER0(costs[0], number) + _QUARTER1(costs[0], number >> i4(2))
    total = (total + _QUARTER2(costs[0], number >> i4(4))) + _QUARTER3(costs[0], number >> i4(6))
    total = (total + _QUARTER0(costs[1], number >> i4(8))) + _QUARTER1(costs[1], number >> i4(10))
    return (total + _QUARTER2(costs[1], number >> i4(12))) + _QUARTER3(costs[1], number >> i4(14))


@inner
def _sum_of_4(costs, number):
    total = _HALF0(costs[0], number) + _HALF1(costs[0], number >> i4(3))
    return (total + _HALF0(costs[1], number >> i4(6))) + _HALF1(costs[1], number >> i4(9))


def nearest_entry(size):
    """Functions that search among the neighbours of one point in `size` dimensions, whose levels stand for 1, 3, 5, ...

    Their 32 slots are the levels that the dimensions can have, one dimension's after another's.
    """
    slots = 32 // size
    value_of_slot = 2 * (np.arange(32, dtype=np.float32) % slots) + 1
    sum_of = _sum_of_8 if size == 8 else _sum_of_4
    low_of, high_of = repeat4 if size == 8 else repeat8

    @inlined
    def spread(x, at, w, wat):
        """What the others ask of the weights `x[at:]`, whose importance `w[wat:]` says."""
        xs, ws = load(x, at), load(w, wat)
        return low_of(xs), high_of(xs), low_of(ws), high_of(ws)

    @inlined
    def costs_of(scale, shift, known):
        """What each level in each dimension adds to the distance from scale * (value + shift)."""
        low = (load(value_of_slot, 0) + shift) * scale - known[0]
        high = (load(value_of_slot, LANES) + shift) * scale - known[1]
        return low * known[2] * low, high * known[3] * high

    @inlined
    def nearest(costs, listed, numbers):
        """The number of the nearest of `numbers[listed[0] : listed[1]]`, the first of equals."""
        start, stop = listed
        best, found = splat(FLOAT_MAX), splat(i4(start))
        at = load_i32(LANE, 0) + i4(start)
        for place in range(u8(start), u8(stop), u8(LANES)):  # numba asks of a signed place whether it is from the end
            distance = sum_of(costs, load_i32(numbers, np.int64(place)))
            distance = select(at < i4(stop), distance, FLOAT_MAX)
            found = select(distance < best, at, found)
            best = min_(distance, best)
            at = at + i4(LANES)
        ties = select(best == reduce_fmin(best), found ^ i4(-1), i4(0))
        return np.int64(numbers[np.int64(reduce_umax(ties) ^ i4(-1))])

    @inlined
    def lines_of(known):
        """What each level in each dimension adds to a point's square, and to twice its product with the weights."""
        low, high = load(value_of_slot, 0), load(value_of_slot, LANES)
        ones, others = low * known[2], high * known[3]
        return low * ones, high * others, f4(2) * (ones * known[0]), f4(2) * (others * known[1])

    @inlined
    def draw(lines, listed, numbers, squares, products, points):
        """Both for `numbers[listed[0] : listed[1]]`, and these; behind them one that is never the nearest."""
        start, stop = listed
        for place in range(u8(start), u8(stop), u8(LANES)):
            number = load_i32(numbers, np.int64(place))
            to = np.int64(place - u8(start))
            store(squares, to, sum_of((lines[0], lines[1]), number))
            store(products, to, sum_of((lines[2], lines[3]), number))
            store(points, to, number)
        squares[stop - start], products[stop - start] = FLOAT_MAX, 0

    @inlined
    def nearest_under(scales, half, squares, products, points):
        """Under each of eight scales, in both halves: which of 2 * `half` points is the nearest, and by how much.

        The distance is scale * (scale * square - product) and what no point changes; rounded otherwise than `nearest`
        does it.
        """
        best, second, found = splat(FLOAT_MAX), splat(FLOAT_MAX), load_i32(points, 0)
        for j in range(u8(half)):
            k = j + u8(half)
            distance = scales * halves(squares[j], squares[k]) - halves(products[j], products[k])
            found = select(distance < best, halves(points[j], points[k]), found)
            second = min_(max_(distance, best), second)
            best = min_(distance, best)
        other = swap_halves(best)
        found = select(other < best, swap_halves(found), found)
        second = min_(min_(second, swap_halves(second)), max_(best, other))
        return found, (second - min_(best, other)) * scales

    return spread, costs_of, nearest, (lines_of, draw, nearest_under)
