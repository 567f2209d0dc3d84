"""Rounding a matrix so that tr(E H E' F) is small: GPTQ for a start, then coordinate descent, lower every sweep.

Column blocks stand in sequence; inside one, row tiles do.  A tile's own gradient is kept true while it is searched, and
products of matrices carry what changed to all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmconv.errors import LlmconvError
from llmconv.quant.kernels import descent as kernels, entry_search, rounding
from llmconv.quant.kernels.terms import rules
from llmconv.quant.rounding.grid import Codes, Grid

__all__ = ["Found", "Metric", "Order", "loss", "rounded", "spread_errors"]

Floats = NDArray[np.float32]
Product = Callable[[Any, Any], Any]

_ROWS = 64  # of a tile with coupled rows: what one number's move is carried to at once
_COLUMNS = 256  # of a tile, at most
_SMALL = 64  # of a triangular matrix that is inverted at once
_STEPS = 128  # columns that GPTQ rounds between products
_STILL = 1e-4  # share of numbers that move in a sweep after which another is not worth its time
_SLACK = 1e-4  # what float32's rounding may seem to raise a loss by


@dataclass(frozen=True)
class Metric:
    """What an error costs: tr(E H E' F).

    h: (columns, columns), of the inputs; positive definite.   f: (rows, rows) of the outputs' gradients, or None: every
    row counts alike.   product: multiplies matrices.
    """

    h: Floats
    f: Floats | None = None
    product: Product = np.matmul

    def gradient(self, error: Floats) -> Floats:
        """F E H: half the loss's."""
        right = self.product(error, self.h)
        return np.ascontiguousarray(right if self.f is None else self.product(self.f, right))

    def loss(self, error: Floats) -> float:
        """tr(E H E' F)."""
        return float(np.einsum("ij,ij->", error, self.gradient(error), dtype=np.float64))


def loss(metric: Metric, grid: Grid, codes: Codes, weights: Floats) -> float:
    """What codes cost that stand for `weights`."""
    return metric.loss(grid.values(codes) - weights)


@dataclass(frozen=True)
class Order:
    """Of columns, for GPTQ.   columns: their numbers, by falling diagonal of H (its activation order).   upper: of the
    inverse of H in that order, upper triangular U with U' U the inverse, (columns, columns)."""

    columns: NDArray[np.int64]
    upper: Floats

    @staticmethod
    def of(h: Floats, product: Product = np.matmul, root: Callable[[Any], Any] = np.linalg.cholesky) -> Order:
        """h: (columns, columns), positive definite.   product, root: multiply matrices and take their Cholesky factor;
        numpy's last bits depend on how many threads it has."""
        order = np.argsort(-np.diag(h), kind="stable")
        return Order(order, _inverse_root(h[order][:, order].astype(np.float64), product, root))


def spread_errors(grid: Grid, codes: Codes, weights: Floats, known: Order, product: Product) -> Codes:
    """Codes under the scales given, rounded one column after the other, errors spread."""
    order, upper = known.columns, known.upper
    step, low = grid.steps(codes)
    step, low = (np.repeat(a, grid.block, 1)[:, order] for a in (step, low))
    left = np.ascontiguousarray(weights[:, order], np.float32)
    columns = len(order)
    found = np.empty(left.shape, np.int32)
    for start in range(0, columns, _STEPS):
        at = slice(start, min(start + _STEPS, columns))
        part, width = np.array(left[:, at], order="C"), at.stop - start
        code, error = np.empty(part.shape, np.int32), np.empty(part.shape, np.float32)
        square = np.array(upper[at, at], order="C")
        rounding.round_in_order(
            square.reshape(-1), part.reshape(-1), _flat(step[:, at]), _flat(low[:, at]), grid.levels, grid.uniform,
            len(part), width, code.reshape(-1), error.reshape(-1),
        )  # fmt: skip
        found[:, at] = code
        left[:, at.stop :] -= product(error, upper[at, at.stop :])
    back = np.empty_like(found)
    back[:, order] = found
    return Codes(back, codes.scale, codes.factor, codes.minimum, codes.shift).copy()


def _flat(array: Floats) -> Floats:
    return np.ascontiguousarray(array).reshape(-1)


def _inverse_root(h: NDArray[np.float64], product: Product, root: Callable[[Any], Any]) -> Floats:
    """Upper triangular U with U' U the inverse of H.

    H turned round is L L'; L turned is upper triangular, R, and H is R R', so that U is the inverse of R.
    """
    low = root(np.ascontiguousarray(h[::-1, ::-1]))
    return _upper_inverse(np.ascontiguousarray(low[::-1, ::-1], np.float32), product)


def _upper_inverse(r: Floats, product: Product) -> Floats:
    """The inverse of an upper triangular matrix, by halves; its condition is but the root of the other's."""
    n = len(r)
    if n <= _SMALL:
        found: Floats = np.triu(np.linalg.inv(r.astype(np.float64))).astype(np.float32)
        return found
    half = n // 2
    out = np.zeros_like(r)
    for part in (slice(half), slice(half, n)):
        out[part, part] = _upper_inverse(r[part, part], product)
    out[:half, half:] = -product(product(out[:half, :half], r[:half, half:]), out[half:, half:])
    return out


class Found(NamedTuple):
    """Codes, the loss before the first and after each sweep, and the gradient where they are."""

    codes: Codes
    losses: list[float]
    gradient: Floats


def rounded(
    grid: Grid,
    start: Codes,
    weights: Floats,
    metric: Metric,
    sweeps: int,
    little: float = 0.01,
    gradient: Floats | None = None,
) -> Found:
    """Coordinate descent from `start`.

    weights: (rows, columns) float32.   sweeps: at most; one that takes away less than `little` of the loss is the last.
    gradient: at the start, where that is known; it is used up.
    Raises `LlmconvError` if a sweep raised the loss, which would be a bug here.
    """
    codes = start.copy()
    error = grid.values(codes) - weights
    gradient = metric.gradient(error) if gradient is None else gradient
    losses = [_inner(error, gradient)]
    for _ in range(sweeps):
        changed = sum(_swept(grid, codes, weights, metric, error, gradient))
        losses.append(_inner(error, gradient))
        if losses[-1] > losses[-2] * (1 + _SLACK):
            raise LlmconvError(f"rounding to {grid.type.name} raised its loss from {losses[-2]:g} to {losses[-1]:g}")
        if changed < _STILL * error.size or losses[-1] > losses[-2] * (1 - little):
            break
    return Found(codes, losses, gradient)


def _inner(a: Floats, b: Floats) -> float:
    return float(np.einsum("ij,ij->", a, b, dtype=np.float64))


def _swept(grid: Grid, codes: Codes, weights: Floats, metric: Metric, error: Floats, gradient: Floats) -> Iterator[int]:
    """One sweep; codes, error and gradient are changed in place.  How many numbers moved, tile by tile."""
    rows, columns = weights.shape
    width = _width(grid, columns)
    tile = rows if metric.f is None else _ROWS
    for j in range(0, columns, width):
        at = slice(j, j + width)
        h = np.array(metric.h[at, at], order="C")
        moved, turned = np.zeros((rows, width), np.float32), np.zeros((rows, width), np.float32)
        for r in range(0, rows, tile):
            here = slice(r, min(r + tile, rows))
            part = codes.part(here, at, grid)
            local = np.array(gradient[here, at], order="C")
            if metric.f is not None and r:  # what the tiles above did
                local += metric.product(metric.f[here, :r], turned[:r])
            count = _descended(grid, part, h, None if metric.f is None else metric.f[here, here], local)
            if not count:
                continue
            yield count
            codes.put(part, here, at, grid)
            new = grid.values(part) - weights[here, at]
            np.subtract(new, error[here, at], out=moved[here])
            error[here, at] = new
            if metric.f is not None:
                turned[here] = metric.product(moved[here], h)
        if moved.any():
            by_rows = moved if metric.f is None else metric.product(metric.f, moved)
            gradient += metric.product(by_rows, metric.h[at])


def _width(grid: Grid, columns: int) -> int:
    """Columns of a tile: the most that are whole spans, of which there are as many in all of them."""
    most = _COLUMNS // grid.span * grid.span
    return next(w for w in range(most, 0, -grid.span) if columns % w == 0)


def _descended(grid: Grid, part: Codes, h: Floats, f: Floats | None, gradient: Floats) -> int:
    """Search one tile; its codes change in place, and its gradient is used up."""
    rows, columns = part.code.shape
    counts = np.ones(rows, np.float32) if f is None else _flat(f)
    changed = np.zeros(1, np.int32)
    code, scale, factor, minimum, shift = (a.reshape(-1) for a in part.arrays())
    flat_h = h.reshape(-1)
    given: dict[str, Any] = {"f": counts, "levels": grid.levels, "coupled": f is not None, "block": grid.block}
    given |= {"rows": rows, "columns": columns, "changed": changed, "code": code}
    given["gradient"] = gradient.reshape(-1)
    given["carried"] = np.zeros(gradient.size if f is not None else 1, np.float32)
    scales: dict[str, Any] = {"scale": scale, "factor": factor, "minimum": minimum, "shift": shift}
    scales |= {"factor_low": grid.factors[0], "factor_high": grid.factors[1], "apart": grid.apart}
    scales |= {"shift_low": grid.shifts[0], "shift_high": grid.shifts[1], "span": grid.span, "rule": grid.rule}
    if grid.rule != rules.FIXED:
        kernels.descend_scales(flat_h, **given, **scales)
    step = grid.steps(part)[0].reshape(-1)
    if grid.book is None:
        kernels.descend_codes(flat_h, **given, step=step, uniform=grid.uniform)
    else:
        book = grid.book()
        entries: dict[str, Any] = {"table": book.table, "places": book.places.reshape(-1), "n": len(book.places)}
        entries |= {"sides": book.sides, "width": book.width, "group": book.places.shape[1]}
        entry_search.descend_entries(flat_h, **given, step=step, **entries)
    return int(changed[0])
