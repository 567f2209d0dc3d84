"""Blocks of weights that lie on a type's grid already: of its own decoder, or of training on it, in 32 or 16 bits.

A type's encoder looks for scales that cost little; here they are such that nothing is lost, or there are none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from llmconv.quant.block import Bytes
from llmconv.quant.kernels import lattice as kernels
from llmconv.quant.kernels.terms import rules
from llmconv.quant.rounding.grid import Codes, Grid
from llmconv.quant.rounding.low import E4M3 as _E4M3
from llmconv.quant.rounding.superscales import starts

__all__ = ["mended", "searched"]

Found = Iterator[tuple[NDArray[np.bool_], Codes]]
"""Which of the spans given were found, and those; what is left is for the next."""

_DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)
_KINDS = {
    np.dtype(t): (i, lost) for i, (t, lost) in enumerate(zip(_DTYPES, (2.0**-24, 2.0**-11, 2.0**-8), strict=True))
}
"""Of weights' types: their number in the kernels, and how much of a weight its rounding takes away at most."""
_HALF = 2.0**-11
"""What neighbouring float16 numbers are apart, at least, as a share of them."""
_OWN = {"Q4_0": ((-8,), False), "Q5_0": ((-16,), False), "IQ4_NL": ((-127,), False), "Q8_0": ((127, -127), True)}
"""What the type's own encoder makes of a block's largest weight, and whether its scales are positive."""
_SLACK = 1e-4
"""Of a level, what arithmetic in float32 may be off."""
_WAYS = ((True, True, 0), (False, False, 0), (False, True, 0), (False, False, 1), (False, True, 1), (True, True, 1))
"""In what order superblocks are guessed, see `_by_sub_blocks`."""
_MISSES = 2
"""Superblocks that lie on no grid, after which no others are looked at one by one."""
_MOST = 64
"""Scales on either side of one that are tried, at most."""


def searched(grid: Grid) -> bool:
    """Whether there is a search for the grid's scales: its levels stand alone."""
    return grid.book is None


def mended(grid: Grid, rows: NDArray[Any], blocks: Bytes) -> Bytes:
    """Blocks whose values, rounded to the weights' own type, are the weights, wherever such can be found.

    rows: (n, k) float32, float16 or bfloat16.   blocks: (n, bytes), what the type's encoder made of them; those that
    decode to other weights are replaced in place.
    """
    kind, size = grid.type, grid.type.block_size
    exact = rows.astype(np.float32).reshape(-1, size)
    made = blocks.reshape(-1, kind.layout.itemsize)
    wrong = np.flatnonzero((kind.decode(blocks).astype(rows.dtype) != rows).reshape(-1, size).any(axis=1))
    ways = _superblocks if grid.block < grid.span else _ends if grid.shifts[1] else _largest
    ways = _listed if grid.rule != rules.F16 else ways
    if wrong.size:
        for found, codes in ways(grid, exact[wrong], rows.dtype, made[wrong]):
            if found.any():
                made[wrong[found]] = grid.pack(codes)
            wrong = wrong[~found]  # what the next way is tried on
    return blocks


def _largest(grid: Grid, x: NDArray[np.float32], dtype: Any, blocks: Bytes) -> Found:
    """Spans with a scale alone."""
    levels = grid.levels[grid.levels != 0]
    every = tuple(levels[np.lexsort((-levels, -np.abs(levels)))])
    own, positive = _OWN.get(grid.type.name, (every, True))
    for multiples, above in ((own, positive), (every, True), (every, False))[: 3 if grid.type.name in _OWN else 1]:
        n = len(x)
        scale, code = np.zeros(n, np.float32), np.empty(x.size, np.int32)
        found = np.empty(n, np.uint8)
        kernels.by_largest(
            x.reshape(-1), kind=_KINDS[dtype][0], levels=grid.levels, uniform=grid.uniform, span=grid.span,
            multiples=np.array(multiples, np.float32), positive=above, scales=scale, codes=code, found=found,
        )  # fmt: skip
        good = found.astype(bool)
        yield good, _codes(grid, code.reshape(n, -1)[good], scale[good], np.zeros_like(scale)[good])
        x = x[~good]
        if not len(x):
            return


def _listed(grid: Grid, x: NDArray[np.float32], dtype: Any, blocks: Bytes) -> Found:
    """Spans with a scale alone that is one of few numbers: each of them that could be is tried."""
    spans = x.reshape(len(x), -1, grid.span)
    largest = np.abs(spans).max(axis=-1)
    scale, left = np.ones(largest.shape, np.float32), largest > 0
    code = np.full(spans.shape, np.searchsorted(grid.levels, 0), np.int32)
    middles = (grid.levels[1:] + grid.levels[:-1]) / 2
    for step in _E4M3 if grid.rule == rules.E4M3 else np.ldexp(np.float32(1), np.arange(-127, 127)):
        most = np.float64(1.01) * grid.levels[-1] * step
        tried = np.nonzero(left & (largest <= most) & (largest >= step / 2))
        if not tried[0].size:
            continue
        near = np.searchsorted(middles, spans[tried] / step)
        values = (grid.levels[near] * step).astype(np.float32).astype(dtype).astype(np.float32)
        fits = (values == spans[tried]).all(axis=-1)
        where = tuple(index[fits] for index in tried)
        code[where], scale[where], left[where] = near[fits], step, False
    good = ~left.any(axis=1)
    ones = np.ones(scale[good].shape, np.int32)
    yield good, Codes(code.reshape(x.shape)[good], scale[good], ones, 0 * scale[good], 0 * ones)


def _ends(grid: Grid, x: NDArray[np.float32], dtype: Any, blocks: Bytes) -> Found:
    """Spans with a scale and a minimum of their own."""
    n = len(x)
    scale, low, code = np.zeros(n, np.float32), np.zeros(n, np.float32), np.empty(x.size, np.int32)
    found = np.empty(n, np.uint8)
    kernels.by_ends(
        x.reshape(-1), kind=_KINDS[dtype][0], levels=grid.levels, span=grid.span, scales=scale, minimums=low,
        codes=code, found=found,
    )  # fmt: skip
    good = found.astype(bool)
    yield good, _codes(grid, code.reshape(n, -1)[good], scale[good], low[good])


def _superblocks(grid: Grid, x: NDArray[np.float32], dtype: Any, blocks: Bytes) -> Found:
    """Spans with factors and perhaps shifts: near those that the encoder found, else near those of the sub-blocks."""
    kind, lost = _KINDS[dtype]
    start = grid.unpack(blocks)
    good, codes = _near(grid, x, kind, lost, start)
    yield good, codes
    x = x[~good]
    for way in _WAYS if grid.shifts[1] else _WAYS[:2]:
        if not len(x):
            return
        given, whole = _by_sub_blocks(grid, x, lost, way)
        if not whole.any():
            continue
        good = np.zeros(len(x), np.bool_)
        good[whole], codes = _near(grid, x[whole], kind, lost, given)
        yield good, codes
        x = x[~good]
    if grid.shifts[1] and len(x):
        yield _one_by_one(grid, x, kind, lost)


def _one_by_one(grid: Grid, x: NDArray[np.float32], kind: int, lost: float) -> tuple[NDArray[np.bool_], Codes]:
    """Superblocks by every scale that is possible (`superscales`); where some have none, the rest is not tried."""
    good, misses = np.zeros(len(x), np.bool_), 0
    made: list[list[Any]] = []
    for i, row in enumerate(x):
        for given in starts(grid, row, lost):
            rows = np.broadcast_to(row, (len(given.scale), len(row)))
            found, codes = _near(grid, np.ascontiguousarray(rows), kind, lost, given, every=True)
            if found.any():
                good[i] = True
                made.append([array[:1] for array in codes.arrays()])
                break
        misses += not good[i]
        if misses == _MISSES:
            break
    arrays: list[Any] = [np.concatenate(each) for each in zip(*made, strict=True)] or [np.empty((0, 0))] * 5
    return good, Codes(*arrays)


def _near(
    grid: Grid, x: NDArray[np.float32], kind: int, lost: float, start: Codes, every: bool = False
) -> tuple[NDArray[np.bool_], Codes]:
    """Which spans fit scales and factors near given ones, and those.   every: whatever the factors and shifts."""
    n = len(x)
    given = np.stack([start.factor, start.shift], axis=-1).astype(np.int32)
    off = np.abs(x).max(axis=1) * lost
    steps = np.abs(grid.levels).max() * np.abs(start.factor).max(axis=1) * np.abs(start.scale[:, 0])
    lows = np.abs(start.shift).max(axis=1) * np.abs(start.minimum[:, 0])
    around = np.zeros((n, 2), np.int32)
    for i, whole in enumerate((steps, lows)):
        some = whole > 0
        near = off[some] / whole[some] / _HALF * (1 + every)  # what is given may be as far off itself
        around[some, i] = np.minimum(near, _MOST - 1) + 1
    scale, low, code = np.zeros(n, np.float32), np.zeros(n, np.float32), np.empty(x.size, np.int32)
    kept, found = np.empty(given.size, np.int32), np.empty(n, np.uint8)
    kernels.by_search(
        x.reshape(-1), kind=kind, levels=grid.levels, uniform=grid.uniform, block=grid.block,
        limits=np.array([*grid.factors, *grid.shifts], np.int32), around=around.reshape(-1), given=given.reshape(-1),
        every=every, scales=start.scale.reshape(-1), minimums=start.minimum.reshape(-1), new_scales=scale,
        new_minimums=low, kept=kept, codes=code, found=found,
    )  # fmt: skip
    good = found.astype(bool)
    pairs = kept.reshape(given.shape)[good]
    return good, Codes(code.reshape(n, -1)[good], scale[good, None], pairs[..., 0], low[good, None], pairs[..., 1])


def _by_sub_blocks(
    grid: Grid, x: NDArray[np.float32], lost: float, way: tuple[bool, bool, int]
) -> tuple[Codes, NDArray[np.bool_]]:
    """Scales, factors and shifts of superblocks by the steps in which their sub-blocks' weights are, and of which
    there are such in all of them.

    way: of several steps that fit a sub-block, whether the largest counts: for the scale, for factors; which level the
    least weight of the sub-block with the largest shift is.
    """
    parts = x.reshape(len(x), -1, grid.block)
    steps_of = _ends_of if grid.shifts[1] else _peaks_of
    step, low = steps_of(grid, parts, lost, way[1])
    widest = step if way[0] is way[1] else steps_of(grid, parts, lost, way[0])[0]
    whole = ((step != 0) | (parts.max(axis=-1) == parts.min(axis=-1))).all(axis=1)
    step, low, widest = step[whole], low[whole], widest[whole]
    most = grid.factors[1] if grid.factors[0] == 0 else grid.factors[0]  # what encoders make of the largest step
    extreme = np.take_along_axis(widest, np.abs(widest).argmax(axis=1)[:, None], axis=1)
    scale = (extreme / np.float32(most)).astype(np.float16).astype(np.float32)
    lowest = (low + np.where(low > 0, np.float32(way[2]) * widest, 0)).max(axis=1, keepdims=True)
    minimum = (lowest / np.float32(max(1, grid.shifts[1]))).astype(np.float16).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor, shift = np.nan_to_num(np.rint(step / scale)), np.nan_to_num(np.rint(low / minimum))
    factor = np.where((factor > grid.factors[1]) & (grid.factors[0] < 0), -factor, factor)
    factor, shift = np.clip(factor, *grid.factors), np.clip(shift, *grid.shifts)
    none = np.empty((0, 0), np.int32)
    return Codes(none, scale, factor.astype(np.int32), minimum, shift.astype(np.int32)), whole


def _ends_of(
    grid: Grid, parts: NDArray[np.float32], lost: float, coarse: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of sub-blocks (n, each, weights), the step between levels and what is taken away, their least weight."""
    least, most = parts.min(axis=-1), parts.max(axis=-1)
    wide = most - least
    with np.errstate(divide="ignore", invalid="ignore"):
        place = np.nan_to_num((parts - least[..., None]) / wide[..., None])
        noise = np.nan_to_num(2 * lost * np.abs(parts).max(axis=-1) / wide, posinf=1e9)
    steps = np.zeros(wide.shape, np.int32)
    for count in range(1, len(grid.levels)):
        t = place * np.float32(count)
        fits = np.abs(t - np.rint(t)).max(axis=-1) <= count * noise + _SLACK
        steps[fits & ((steps == 0) | (not coarse))] = count
    return np.where(steps > 0, wide / np.maximum(steps, 1), 0), np.maximum(-least, 0)


def _peaks_of(
    grid: Grid, parts: NDArray[np.float32], lost: float, coarse: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of sub-blocks (n, each, weights), the number that their weights are levels of; nothing is taken away."""
    place = np.abs(parts).argmax(axis=-1)[..., None]
    peak = np.take_along_axis(parts, place, axis=-1)[..., 0]
    step = np.zeros(peak.shape, np.float32)
    middles = (grid.levels[1:] + grid.levels[:-1]) / 2
    every = grid.levels[grid.levels != 0]
    for level in every[np.lexsort((every, np.abs(every)))]:
        own = peak / level
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.nan_to_num(parts / own[..., None])
        off = np.abs(t - grid.levels[np.searchsorted(middles, t)]).max(axis=-1)
        fits = off <= 2 * lost * np.abs(level) + _SLACK
        step = np.where(fits & ((step == 0) | (not coarse)), own, step)
    return step, np.zeros(step.shape, np.float32)


def _codes(grid: Grid, code: NDArray[np.int32], scale: NDArray[np.float32], low: NDArray[np.float32]) -> Codes:
    """Of spans without factors."""
    ones = np.ones((len(code), 1), np.int32)
    return Codes(code, scale[:, None], ones, low[:, None], ones * grid.shifts[1])
