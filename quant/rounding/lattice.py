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
_MOST = 64
"""Scales on either side of one that are tried, at most."""


def searched(grid: Grid) -> bool:
    """Whether there is a search for the grid's scales: they are float16 numbers, and its levels stand alone."""
    return grid.rule == rules.F16 and grid.book is None


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
    for coarse in (True, False):
        x = x[~good]
        if not len(x):
            return
        good, codes = _near(grid, x, kind, lost, _by_sub_blocks(grid, x, lost, coarse))
        yield good, codes


def _near(grid: Grid, x: NDArray[np.float32], kind: int, lost: float, start: Codes) -> tuple[NDArray[np.bool_], Codes]:
    """Which spans fit scales and factors near given ones, and those."""
    n = len(x)
    given = np.stack([start.factor, start.shift], axis=-1).astype(np.int32)
    off = np.abs(x).max(axis=1) * lost
    steps = np.abs(grid.levels).max() * np.abs(start.factor).max(axis=1) * np.abs(start.scale[:, 0])
    lows = np.abs(start.shift).max(axis=1) * np.abs(start.minimum[:, 0])
    around = np.zeros((n, 2), np.int32)
    for i, whole in enumerate((steps, lows)):
        some = whole > 0
        around[some, i] = np.minimum(off[some] / whole[some] / _HALF, _MOST - 1) + 1
    scale, low, code = np.zeros(n, np.float32), np.zeros(n, np.float32), np.empty(x.size, np.int32)
    kept, found = np.empty(given.size, np.int32), np.empty(n, np.uint8)
    kernels.by_search(
        x.reshape(-1), kind=kind, levels=grid.levels, uniform=grid.uniform, block=grid.block,
        limits=np.array([*grid.factors, *grid.shifts], np.int32), around=around.reshape(-1), given=given.reshape(-1),
        scales=start.scale.reshape(-1), minimums=start.minimum.reshape(-1), new_scales=scale, new_minimums=low,
        kept=kept, codes=code, found=found,
    )  # fmt: skip
    good = found.astype(bool)
    pairs = kept.reshape(given.shape)[good]
    return good, Codes(code.reshape(n, -1)[good], scale[good, None], pairs[..., 0], low[good, None], pairs[..., 1])


def _by_sub_blocks(grid: Grid, x: NDArray[np.float32], lost: float, coarse: bool) -> Codes:
    """Scales, factors and shifts of superblocks by the steps in which their sub-blocks' weights are.

    coarse: of several steps that fit a sub-block, the largest, else the smallest.
    """
    parts = x.reshape(len(x), -1, grid.block)
    step, low = _ends_of(grid, parts, lost, coarse) if grid.shifts[1] else _peaks_of(grid, parts, lost, coarse)
    most = grid.factors[1] if grid.factors[0] == 0 else grid.factors[0]  # what encoders make of the largest step
    extreme = np.take_along_axis(step, np.abs(step).argmax(axis=1)[:, None], axis=1)
    scale = (extreme / np.float32(most)).astype(np.float16).astype(np.float32)
    minimum = (low.max(axis=1, keepdims=True) / np.float32(max(1, grid.shifts[1]))).astype(np.float16)
    minimum = minimum.astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.clip(np.nan_to_num(np.rint(step / scale)), *grid.factors).astype(np.int32)
        shift = np.clip(np.nan_to_num(np.rint(low / minimum)), *grid.shifts).astype(np.int32)
    return Codes(np.empty((0, 0), np.int32), scale, factor, minimum, shift)


def _ends_of(
    grid: Grid, parts: NDArray[np.float32], lost: float, coarse: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of sub-blocks (n, each, weights), the step between levels and what is taken away, their least weight."""
    least, most = parts.min(axis=-1), parts.max(axis=-1)
    wide = most - least
    with np.errstate(divide="ignore", invalid="ignore"):
        place = np.nan_to_num((parts - least[..., None]) / wide[..., None])
        noise = np.nan_to_num(2 * lost * np.abs(parts).max(axis=-1) / wide)
    steps = np.zeros(wide.shape, np.int32)
    for count in range(1, len(grid.levels)):
        t = place * np.float32(count)
        fits = np.abs(t - np.rint(t)).max(axis=-1) <= count * noise + _SLACK
        steps[fits & ((steps == 0) | (not coarse))] = count
    return wide / np.maximum(steps, 1), np.maximum(-least, 0)


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
