"""Rounding one tensor: its rows in pieces that don't depend on each other, on threads."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llmconv.formats.writing.scratch import Rows, Scratch
from llmconv.quant.block import BlockType, Bytes
from llmconv.quant.rounding.descent import Metric, Order, rounded, spread_errors
from llmconv.quant.rounding.grid import Codes, Grid
from llmconv.quant.rounding.groups import grid_of
from llmconv.runtime.calibrate.gradients import row_groups
from llmconv.runtime.calibrate.inputs import Inputs
from llmconv.runtime.calibrate.threads import each, product

__all__ = ["LONG", "SHORT", "Rounded", "Search", "loss_of", "plain_losses", "round_tensor"]

Floats = NDArray[np.float32]

_DAMP, _DAMP_ROWS = 0.01, 0.03
"""Shares of the mean diagonal that are added to it, so that what few tokens don't say is not made up."""
_FINE = 256
"""Levels that leave little to search for."""
_FIRST_SWEEPS = 1
"""In the metric of inputs alone as a start for that of inputs and results, where more of them change nothing."""
_PIECE = 2048
"""Rows at a time where they don't depend on each other."""


@dataclass(frozen=True)
class Search:
    """How long to search.   alone, coupled: sweeps at most, in the metric of inputs, and in that of results too.
    little: the share of the loss that the last of them takes away."""

    alone: int
    coupled: int
    little: float


SHORT, LONG = Search(6, 3, 0.01), Search(12, 24, 0.003)


@dataclass(frozen=True)
class Rounded:
    """blocks: (rows, row bytes), to be sliced.   before, after: what errors are predicted to cost, rounded one by one
    and as here: in nats of KL divergence where gradients are known, else as a share of the results' squares.
    importance: of columns, one (columns,) a matrix or one for all; what plain rounding goes by."""

    blocks: Bytes | Rows
    before: float
    after: float
    importance: list[Floats]

    def aside(self, scratch: Scratch) -> Rounded:
        """The same with its blocks in a file."""
        return dataclasses.replace(self, blocks=Rows(scratch, self.blocks[:]))

    def plainly(self, weights: Floats, kind: type[BlockType]) -> Rounded:
        """The same tensor, (matrices, rows, columns), each weight rounded by itself."""
        last = len(self.importance) - 1
        parts = [_plain(matrix, kind, self.importance[min(i, last)]) for i, matrix in enumerate(weights)]
        return Rounded(np.concatenate(parts), self.before, self.before, self.importance)


class _Columns:
    """What errors in columns cost.   h: (columns, columns) float32, of inputs."""

    def __init__(self, h: Floats):
        self.h = h

    @functools.cached_property
    def damped(self) -> Floats:
        return _damped(self.h, _DAMP)

    def gradient(self, error: Floats, turned: Floats) -> Floats:
        """E times the damped matrix.   turned: E H."""
        diagonal, made = np.diag(self.h), np.diag(self.damped)
        mean = _mean(self.h)
        found: Floats = error * (made - diagonal / mean) + turned / mean
        return found

    @functools.cached_property
    def order(self) -> Order:
        return Order.of(self.damped)


@dataclass(frozen=True)
class _Piece:
    """Rows, and what their errors cost.   f: of rows that belong together.   counts: of rows that don't, how much each
    counts.   share: what the loss of these rows is multiplied with."""

    rows: slice
    h: Floats
    f: Floats | None
    counts: Floats | None
    share: float

    def loss(self, error: Floats, turned: Floats | None = None) -> float:
        """turned: E H, where that is there."""
        turned = product(error, self.h) if turned is None else turned
        if self.counts is None:
            turned = turned if self.f is None else product(self.f, turned)
            return self.share * float(np.einsum("ij,ij->", error, turned, dtype=np.float64))
        each = np.einsum("ij,ij->i", error, turned, dtype=np.float64)
        return self.share * float(each @ self.counts)

    def plain(self, weights: Floats, kind: type[BlockType]) -> Bytes:
        """Each weight rounded by itself, scales chosen by the columns' importance."""
        return _plain(weights, kind, np.ascontiguousarray(np.diag(self.h)))


def _plain(weights: Floats, kind: type[BlockType], importance: Floats) -> Bytes:
    given = importance if importance.any() and kind.uses_importance else None
    return kind.encode(np.ascontiguousarray(weights), given)


def _pieces(weights: Floats, inputs: Inputs, gradients: Sequence[Tensor] | None) -> list[_Piece]:
    """The pieces of (matrices, rows, columns); see `round_tensor`."""
    matrices, height, _ = weights.shape
    seen, out = sum(inputs.counts) or 1, []
    together = gradients is not None and gradients[0].dim() == 2
    groups = row_groups(height) if together else [slice(s, min(s + _PIECE, height)) for s in range(0, height, _PIECE)]
    for m in range(matrices):
        h = inputs.h[min(m, len(inputs.h) - 1)].numpy()
        for i, group in enumerate(groups):
            rows = slice(m * height + group.start, m * height + group.stop)
            f = gradients[i].float().numpy() if together and gradients is not None else None
            counts = None if gradients is None or together else gradients[0][group].float().numpy()
            share = 0.5 * (inputs.counts[m] / seen if matrices > 1 else 1.0)  # a token goes through some experts only
            out.append(_Piece(rows, h, f, counts, share))
    if gradients is not None:
        return out
    flat = weights.reshape(-1, weights.shape[-1])
    squares = sum(_Piece(p.rows, p.h, None, None, 1.0).loss(_rows(flat, p)) for p in out)
    return [_Piece(p.rows, p.h, None, None, 1 / squares if squares > 0 else 0.0) for p in out]


def _rows(flat: Floats, piece: _Piece) -> Floats:
    return np.ascontiguousarray(flat[piece.rows], np.float32)


def round_tensor(
    weights: Floats,
    kind: type[BlockType],
    inputs: Inputs,
    gradients: Sequence[Tensor] | None,
    jobs: int = 1,
    search: Search = SHORT,
) -> Rounded:
    """Round all matrices of a tensor.

    weights: (matrices, rows, columns).   gradients: `Gradients.rows` of the tensor (the same for all its matrices), or
    None.   A type without a grid of its own is rounded by the importance of its columns.
    """
    flat = weights.reshape(-1, weights.shape[-1])
    pieces = _pieces(weights, inputs, gradients)
    shared = _shared(inputs, kind)

    def work(piece: _Piece) -> tuple[Bytes, float, float]:
        return _rounded(_rows(flat, piece), kind, piece, shared or _Columns(piece.h), search)

    found = each(work, pieces, jobs)
    before, after = (sum(item[i] for item in found) for i in (1, 2))
    importance = [np.ascontiguousarray(np.diag(h.numpy())) for h in inputs.h]
    return Rounded(np.concatenate([item[0] for item in found]), before, after, importance)


def _shared(inputs: Inputs, kind: type[BlockType]) -> _Columns | None:
    """What all pieces have in common, made before they are searched side by side; None where matrices differ in it."""
    if len(inputs.h) > 1:
        return None
    columns = _Columns(inputs.h[0].numpy())
    grid = grid_of(kind)
    if grid is not None:
        _ = columns.damped if grid.book else columns.order
    return columns


def plain_losses(
    weights: Floats,
    kinds: Sequence[type[BlockType]],
    inputs: Inputs,
    gradients: Sequence[Tensor] | None,
    jobs: int = 1,
) -> list[float]:
    """What plain rounding to each of several types is predicted to cost; arguments as `round_tensor`'s."""
    flat = weights.reshape(-1, weights.shape[-1])
    pieces = _pieces(weights, inputs, gradients)

    def losses(piece: _Piece) -> list[float]:
        rows = _rows(flat, piece)
        return [piece.loss(kind.decode(piece.plain(rows, kind)).astype(np.float32) - rows) for kind in kinds]

    return [sum(column) for column in zip(*each(losses, pieces, jobs), strict=True)]


def loss_of(
    weights: Floats,
    kind: type[BlockType],
    blocks: Bytes | Rows,
    inputs: Inputs,
    gradients: Sequence[Tensor] | None,
    jobs: int = 1,
) -> float:
    """What these blocks are predicted to cost; arguments as `round_tensor`'s."""
    flat = weights.reshape(-1, weights.shape[-1])

    def loss(piece: _Piece) -> float:
        return piece.loss(kind.decode(blocks[piece.rows]).astype(np.float32) - _rows(flat, piece))

    return float(sum(each(loss, _pieces(weights, inputs, gradients), jobs)))


def _rounded(
    weights: Floats, kind: type[BlockType], piece: _Piece, columns: _Columns, search: Search
) -> tuple[Bytes, float, float]:
    """The blocks of some rows, and what they cost before and after."""
    plain = piece.plain(weights, kind)
    error = kind.decode(plain) - weights
    turned = product(error, piece.h)
    before = piece.loss(error, turned)
    grid = grid_of(kind)
    if grid is None or not before > 0:
        return plain, before, before
    start = _Start(grid.unpack(plain), error, columns.gradient(error, turned))
    blocks = _searched(grid, start, weights, piece, columns, search)
    after = piece.loss(kind.decode(blocks) - weights)
    return (blocks, before, after) if after <= before else (plain, before, before)


class _Start(NamedTuple):
    """Codes, their errors, and the gradient there in the metric of inputs alone."""

    codes: Codes
    error: Floats
    gradient: Floats


def _searched(grid: Grid, start: _Start, weights: Floats, piece: _Piece, columns: _Columns, search: Search) -> Bytes:
    """GPTQ where each weight has a code, then descent in the inputs' metric, then in that of inputs and results."""
    metric = Metric(columns.damped, None, product)
    if grid.book is None:
        codes = spread_errors(grid, start.codes, weights, columns.order, product)
        error = grid.values(codes) - weights
        ordered = _Start(codes, error, metric.gradient(error))
        start = min(ordered, start, key=lambda found: np.vdot(found.error, found.gradient))
    alone = search.alone if piece.f is None and len(grid.levels) < _FINE else _FIRST_SWEEPS
    found = rounded(grid, start.codes, weights, metric, alone, search.little, start.gradient)
    if piece.f is not None and piece.f.any():
        f = _damped(piece.f, _DAMP_ROWS)
        gradient = np.ascontiguousarray(product(f, found.gradient))
        both = Metric(metric.h, f, product)
        found = rounded(grid, found.codes, weights, both, search.coupled, search.little, gradient)
    return grid.pack(found.codes)


def _damped(matrix: Floats, share: float) -> Floats:
    """Positive definite, with a mean diagonal of one."""
    mean = _mean(matrix)
    out = matrix / mean if matrix.any() else np.eye(len(matrix), dtype=np.float32)
    dead = np.diag(out) <= 0
    out[dead, dead] = 1.0
    out[np.diag_indices(len(out))] += np.float32(share)
    return out


def _mean(matrix: Floats) -> np.float32:
    """Of the diagonal; 1 of a matrix of nothing."""
    mean = np.float32(np.mean(np.diag(matrix), dtype=np.float64))
    return mean if mean > 0 else np.float32(1)
