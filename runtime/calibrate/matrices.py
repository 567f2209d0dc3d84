"""Rounding one tensor: its rows in pieces that don't depend on each other, on threads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llmconv.formats.writing.scratch import Rows, Scratch
from llmconv.quant.block import BlockType, Bytes
from llmconv.quant.rounding.descent import Metric, rounded, spread_errors
from llmconv.quant.rounding.families import GRIDS
from llmconv.quant.rounding.grid import Grid
from llmconv.runtime.calibrate.gradients import row_groups
from llmconv.runtime.calibrate.inputs import Inputs
from llmconv.runtime.calibrate.threads import each, product

__all__ = ["Rounded", "loss_of", "plain_losses", "round_tensor"]

Doubles = NDArray[np.float64]

_DAMP, _DAMP_ROWS = 0.01, 0.03
"""Shares of the mean diagonal that are added to it, so that what few tokens don't say is not made up."""
_SWEEPS, _COUPLED_SWEEPS = 6, 4
_PIECE = 2048
"""Rows at a time where they don't depend on each other."""


@dataclass(frozen=True)
class Rounded:
    """blocks: (rows, row bytes), to be sliced.   before, after: what errors are predicted to cost, rounded one by one
    and as here: in nats of KL divergence where gradients are known, else as a share of the results' squares.
    importance: of columns, one (columns,) a matrix or one for all; what plain rounding goes by."""

    blocks: Bytes | Rows
    before: float
    after: float
    importance: list[NDArray[np.float32]]

    def aside(self, scratch: Scratch) -> Rounded:
        """The same with its blocks in a file."""
        return dataclasses.replace(self, blocks=Rows(scratch, self.blocks[:]))

    def plainly(self, weights: NDArray[np.float32], kind: type[BlockType]) -> Rounded:
        """The same tensor, (matrices, rows, columns), each weight rounded by itself."""
        last = len(self.importance) - 1
        parts = [_plain(matrix, kind, self.importance[min(i, last)]) for i, matrix in enumerate(weights)]
        return Rounded(np.concatenate(parts), self.before, self.before, self.importance)


@dataclass(frozen=True)
class _Piece:
    """Rows, and what their errors cost.   f: of rows that belong together.   counts: of rows that don't, how much each
    counts.   share: what the loss of these rows is multiplied with."""

    rows: slice
    h: Doubles
    f: Doubles | None
    counts: NDArray[np.float32] | None
    share: float

    def loss(self, error: NDArray[np.float32]) -> float:
        narrow = self.h.astype(np.float32)
        if self.counts is None:
            f = None if self.f is None else self.f.astype(np.float32)
            return self.share * Metric(narrow, f, product).loss(error)
        each = np.einsum("ij,ij->i", error, product(error, narrow), dtype=np.float64)
        return self.share * float(each @ self.counts)

    def plain(self, weights: NDArray[np.float32], kind: type[BlockType]) -> Bytes:
        """Each weight rounded by itself, scales chosen by the columns' importance."""
        return _plain(weights, kind, np.ascontiguousarray(np.diag(self.h), np.float32))


def _plain(weights: NDArray[np.float32], kind: type[BlockType], importance: NDArray[np.float32]) -> Bytes:
    given = importance if importance.any() and kind.uses_importance else None
    return kind.encode(np.ascontiguousarray(weights), given)


def _pieces(weights: NDArray[np.float32], inputs: Inputs, gradients: Sequence[Tensor] | None) -> list[_Piece]:
    """The pieces of (matrices, rows, columns); see `round_tensor`."""
    matrices, height, _ = weights.shape
    seen, out = sum(inputs.counts) or 1, []
    together = gradients is not None and gradients[0].dim() == 2
    groups = row_groups(height) if together else [slice(s, min(s + _PIECE, height)) for s in range(0, height, _PIECE)]
    for m in range(matrices):
        h = inputs.h[min(m, len(inputs.h) - 1)].numpy()
        for i, group in enumerate(groups):
            rows = slice(m * height + group.start, m * height + group.stop)
            f = gradients[i].double().numpy() if together and gradients is not None else None
            counts = None if gradients is None or together else gradients[0][group].float().numpy()
            share = 0.5 * (inputs.counts[m] / seen if matrices > 1 else 1.0)  # a token goes through some experts only
            out.append(_Piece(rows, h, f, counts, share))
    if gradients is not None:
        return out
    flat = weights.reshape(-1, weights.shape[-1])
    squares = sum(_Piece(p.rows, p.h, None, None, 1.0).loss(_rows(flat, p)) for p in out)
    return [_Piece(p.rows, p.h, None, None, 1 / squares if squares > 0 else 0.0) for p in out]


def _rows(flat: NDArray[np.float32], piece: _Piece) -> NDArray[np.float32]:
    return np.ascontiguousarray(flat[piece.rows], np.float32)


def round_tensor(
    weights: NDArray[np.float32],
    kind: type[BlockType],
    inputs: Inputs,
    gradients: Sequence[Tensor] | None,
    jobs: int = 1,
) -> Rounded:
    """Round all matrices of a tensor.

    weights: (matrices, rows, columns).   gradients: `Gradients.rows` of the tensor (the same for all its matrices), or
    None.   A type without a grid of its own is rounded by the importance of its columns.
    """
    flat = weights.reshape(-1, weights.shape[-1])
    pieces = _pieces(weights, inputs, gradients)
    found = each(lambda piece: _rounded(_rows(flat, piece), kind, piece), pieces, jobs)
    before, after = (sum(item[i] for item in found) for i in (1, 2))
    importance = [np.ascontiguousarray(np.diag(h.numpy()), np.float32) for h in inputs.h]
    return Rounded(np.concatenate([item[0] for item in found]), before, after, importance)


def plain_losses(
    weights: NDArray[np.float32],
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
    weights: NDArray[np.float32],
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


def _rounded(weights: NDArray[np.float32], kind: type[BlockType], piece: _Piece) -> tuple[Bytes, float, float]:
    """The blocks of some rows, and what they cost before and after."""
    plain = piece.plain(weights, kind)
    before = piece.loss(kind.decode(plain) - weights)
    grid = GRIDS.get(kind.name)
    if grid is None or not before > 0:
        return plain, before, before
    blocks = _searched(grid, plain, weights, piece)
    after = piece.loss(kind.decode(blocks) - weights)
    return (blocks, before, after) if after <= before else (plain, before, before)


def _searched(grid: Grid, plain: Bytes, weights: NDArray[np.float32], piece: _Piece) -> Bytes:
    """GPTQ where each weight has a code, then descent in the inputs' metric, then in that of inputs and results."""
    h = _damped(piece.h, _DAMP)
    start = grid.unpack(plain)
    metric = Metric(h.astype(np.float32), None, product)
    ordered = start if grid.book else spread_errors(grid, start, weights, h, product)
    if metric.loss(grid.values(ordered) - weights) > metric.loss(grid.values(start) - weights):
        ordered = start
    codes, _ = rounded(grid, ordered, weights, metric, _SWEEPS if piece.f is None else _COUPLED_SWEEPS)
    if piece.f is not None and piece.f.any():
        both = Metric(metric.h, _damped(piece.f, _DAMP_ROWS).astype(np.float32), product)
        codes, _ = rounded(grid, codes, weights, both, _COUPLED_SWEEPS)
    return grid.pack(codes)


def _damped(matrix: Doubles, share: float) -> Doubles:
    """Positive definite, with a mean diagonal of one."""
    mean = float(np.mean(np.diag(matrix)))
    out = matrix / mean if mean > 0 else np.eye(len(matrix))
    dead = np.diag(out) <= 0
    out[dead, dead] = 1.0
    out[np.diag_indices(len(out))] += share
    return out
