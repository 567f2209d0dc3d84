"""Scales and minima of a superblock that say its weights, from every pair that the weights leave possible.

A sub-block's weights are levels of a step, less a shift of their own.  How far apart they are leaves a few steps in
question, each of which is a whole multiple of the superblock's scale; so few scales are in question that suit all
sub-blocks.  With a scale, a sub-block's least weight is one of the levels, which leaves a few numbers that may have
been taken away, each a whole multiple of the superblock's minimum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.quant.rounding.grid import Codes, Grid

__all__ = ["starts"]

Floats = NDArray[np.float64]
_SLACK = 1e-4
"""Of a level, what arithmetic in float32 may be off."""
_MOST_SCALES, _MOST_MINIMA = 48, 256
"""That are given; the largest first, as encoders use their factors up."""


@dataclass(frozen=True)
class _Ways:
    """What a sub-block may be: (ways,) each.   factor, low: of the scale, and what is taken away."""

    factor: NDArray[Any]
    low: Floats


def starts(grid: Grid, x: NDArray[np.float32], lost: float) -> Iterator[Codes]:
    """Scales and minima, with factors and shifts, near which those of a superblock's weights lie, likely ones first.

    x: (weights of a superblock,).   lost: how much of a weight its own type's rounding takes away at most.
    """
    for loose in (False, True):  # as far off as weights mostly are, then as far as they can be
        yield from _starts(grid, x, lost, loose)


def _starts(grid: Grid, x: NDArray[np.float32], lost: float, loose: bool) -> Iterator[Codes]:
    parts = x.astype(np.float64).reshape(-1, grid.block)
    least, wide = parts.min(axis=1), np.ptp(parts, axis=1)
    noise = 2 * max(lost, 2.0**-23) * np.abs(parts).max(axis=1)
    counts = np.arange(1, len(grid.levels))
    with np.errstate(divide="ignore", invalid="ignore"):
        places = (parts - least[:, None]) / wide[:, None]
        t = places[:, None] * counts[:, None]
        fits = np.abs(t - np.rint(t)).max(axis=-1) <= (1 + loose) * counts * (noise / wide)[:, None] + _SLACK
    moving = wide > 0
    if not moving.any() or not fits[moving].any(axis=1).all():
        return
    scales, unsure = _scales(grid, wide[moving], fits[moving], noise[moving], counts)
    for scale in scales:
        given = scale, unsure * loose
        ways = [_ways(grid, given, *each, counts) for each in zip(least, wide, fits, noise, strict=True)]
        if all(len(each.low) for each in ways):
            found = list(_minima(grid, ways, noise))
            if found:
                yield _codes(scale, found)


def _scales(
    grid: Grid, wide: Floats, fits: NDArray[np.bool_], noise: Floats, counts: NDArray[Any]
) -> tuple[list[float], float]:
    """The scales of which all sub-blocks' steps are multiples, as float16 has them, and how far off they may be."""
    pivot = int(np.lexsort((-wide, fits.sum(axis=1)))[0])
    unsure = 2.0**-11 + float(noise[pivot] / wide[pivot])
    each = wide[pivot] / counts[fits[pivot]]
    scales = np.unique((each[:, None] / np.arange(1, grid.factors[1] + 1)).astype(np.float16).astype(np.float64))[::-1]
    scales = scales[scales > 0]
    steps = wide[:, None] / counts
    ratio = steps[None] / scales[:, None, None]
    off = np.abs(ratio - np.rint(ratio)) - (noise[:, None] / counts)[None] / scales[:, None, None]
    off -= ratio * unsure
    good = (off <= _SLACK) & fits & (np.rint(ratio) >= 1) & (np.rint(ratio) <= grid.factors[1])
    return [float(s) for s in scales[good.any(axis=2).all(axis=1)][:_MOST_SCALES]], unsure


def _ways(
    grid: Grid, given: tuple[float, float], least: float, wide: float, fits: NDArray[np.bool_], noise: float,
    counts: NDArray[Any],
) -> _Ways:  # fmt: skip
    """What may be taken away from a sub-block under a scale.   given: that, and how far off it may be."""
    scale, unsure = given
    factors = np.arange(0 if wide == 0 else 1, grid.factors[1] + 1)
    if wide == 0:  # one weight: under any factor
        levels = np.zeros(1, np.int64)
    else:
        ratio = wide / counts[fits] / scale
        near = np.abs(ratio - np.rint(ratio)) <= noise / counts[fits] / scale + ratio * unsure + _SLACK
        factors, levels = np.rint(ratio[near]).astype(np.int64), counts[fits][near]
        inside = (factors >= 1) & (factors <= grid.factors[1])
        factors, levels = factors[inside], levels[inside]
    first = np.arange(len(grid.levels))
    factor, level = np.broadcast_arrays(factors[:, None], first[None])
    top = np.broadcast_to(np.asarray(levels).reshape(-1, 1), factor.shape)
    low = scale * factor * level - least
    kept = (level + top < len(grid.levels)) & (low >= -noise)
    return _Ways(factor[kept], np.where(np.abs(low[kept]) <= noise, 0, low[kept]))


def _minima(grid: Grid, ways: list[_Ways], noise: Floats) -> Iterator[tuple[float, NDArray[Any], NDArray[Any]]]:
    """Minima of which all that is taken away is a multiple, with the factor and the shift of each sub-block."""
    taking = [i for i, each in enumerate(ways) if not (each.low == 0).any()]
    if not taking:
        yield 0.0, np.array([each.factor[each.low == 0][0] for each in ways]), np.zeros(len(ways), np.int64)
        return
    pivot = min(taking, key=lambda i: len(ways[i].low))
    unsure = 2.0**-11 + noise[pivot] / ways[pivot].low.min()
    shifts = np.arange(1, grid.shifts[1] + 1)
    minima = np.unique((ways[pivot].low[:, None] / shifts).astype(np.float16).astype(np.float64))[::-1]
    minima = minima[minima > 0]
    good, best = np.ones(len(minima), np.bool_), []
    for each, own in zip(ways, noise, strict=True):
        ratio = each.low / minima[:, None]
        off = np.abs(ratio - np.rint(ratio)) - own / minima[:, None] - ratio * unsure
        off[np.rint(ratio) > grid.shifts[1]] = np.inf
        choice = off.argmin(axis=1)
        good &= off.min(axis=1) <= _SLACK
        best.append((each.factor[choice], np.rint(np.take_along_axis(ratio, choice[:, None], axis=1)[:, 0])))
    for i in np.flatnonzero(good)[:_MOST_MINIMA]:
        yield float(minima[i]), np.array([f[i] for f, _ in best]), np.array([s[i] for _, s in best])


def _codes(scale: float, found: list[tuple[float, NDArray[Any], NDArray[Any]]]) -> Codes:
    """One row for each minimum."""
    n = len(found)
    scales, lows = np.full((n, 1), scale, np.float32), np.array([[low] for low, *_ in found], np.float32)
    factor, shift = (np.array([each[i] for each in found]).astype(np.int32) for i in (1, 2))
    return Codes(np.empty((0, 0), np.int32), scales, factor, lows, shift)
