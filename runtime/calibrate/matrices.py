"""Rounding one tensor: its rows in pieces that don't depend on each other, on threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llmconv.quant.block import BlockType, Bytes
from llmconv.quant.rounding.descent import Metric, rounded, spread_errors
from llmconv.quant.rounding.families import GRIDS
from llmconv.quant.rounding.grid import Grid
from llmconv.runtime.calibrate.gradients import row_groups
from llmconv.runtime.calibrate.inputs import Inputs
from llmconv.runtime.calibrate.threads import each, product

__all__ = ["Rounded", "round_tensor"]

Doubles = NDArray[np.float64]

_DAMP, _DAMP_ROWS = 0.01, 0.03
"""Shares of the mean diagonal that are added to it, so that what few tokens don't say is not made up."""
_SWEEPS, _COUPLED_SWEEPS = 6, 4
_PIECE = 2048
"""Rows at a time where they don't depend on each other."""


@dataclass(frozen=True)
class Rounded:
    """blocks: (rows, row bytes).   before, after: what errors are predicted to cost, rounded one by one and as here: in
    nats of KL divergence where gradients are known, else as a share of the results' squares."""

    blocks: Bytes
    before: float
    after: float


@dataclass(frozen=True)
class _Piece:
    rows: slice
    h: Doubles
    f: Doubles | None


def round_tensor(
    weights: NDArray[np.float32],
    kind: type[BlockType],
    inputs: Inputs,
    gradients: Sequence[Tensor] | None,
    jobs: int = 1,
) -> Rounded:
    """Round all matrices of a tensor.

    weights: (matrices, rows, columns).   gradients: E[g g'] of each row group of a matrix (the same for all matrices),
    or None.   A type without a grid of its own is rounded by the importance of its columns.
    """
    matrices, height, columns = weights.shape
    rows = weights.reshape(-1, columns)
    pieces = []
    for m in range(matrices):
        h = inputs.h[min(m, len(inputs.h) - 1)].numpy()
        if gradients is not None:
            groups = row_groups(height)
            fs: list[Doubles | None] = [f.double().numpy() for f in gradients]
        else:
            groups = [slice(s, min(s + _PIECE, height)) for s in range(0, height, _PIECE)]
            fs = [None] * len(groups)
        for group, f in zip(groups, fs, strict=True):
            pieces.append(_Piece(slice(m * height + group.start, m * height + group.stop), h, f))
    share = 1.0
    if gradients is None:  # as a share of the squares of the results
        squares = sum(_squares(rows[p.rows], p.h) for p in pieces)
        share = 2 / squares if squares > 0 else 0.0
    seen = sum(inputs.counts) or 1

    def work(piece: _Piece) -> tuple[Bytes, float, float]:
        return _rounded(np.ascontiguousarray(rows[piece.rows], np.float32), kind, piece)

    found = each(work, pieces, jobs)
    if matrices > 1 and gradients is not None:  # a token goes through some experts only
        scales = [inputs.counts[p.rows.start // height] / seen for p in pieces]
    else:
        scales = [1.0] * len(pieces)
    before, after = (0.5 * share * sum(s * item[i] for s, item in zip(scales, found, strict=True)) for i in (1, 2))
    return Rounded(np.concatenate([item[0] for item in found]), before, after)


def _squares(rows: Any, h: Doubles) -> float:
    narrow = h.astype(np.float32)
    return float(np.einsum("ij,ij->", rows, product(np.ascontiguousarray(rows, np.float32), narrow), dtype=np.float64))


def _rounded(weights: NDArray[np.float32], kind: type[BlockType], piece: _Piece) -> tuple[Bytes, float, float]:
    """The blocks of some rows, and tr(E H E' F) before and after."""
    true = Metric(piece.h.astype(np.float32), None if piece.f is None else piece.f.astype(np.float32), product)
    importance = np.ascontiguousarray(np.diag(piece.h), np.float32)
    plain = kind.encode(weights, importance if importance.any() and kind.uses_importance else None)
    before = true.loss(kind.decode(plain) - weights)
    grid = GRIDS.get(kind.name)
    if grid is None or not before > 0:
        return plain, before, before
    blocks = _searched(grid, plain, weights, piece)
    after = true.loss(kind.decode(blocks) - weights)
    return (blocks, before, after) if after <= before else (plain, before, before)


def _searched(grid: Grid, plain: Bytes, weights: NDArray[np.float32], piece: _Piece) -> Bytes:
    """GPTQ, then descent in the inputs' metric, then in that of inputs and results."""
    h = _damped(piece.h, _DAMP)
    start = grid.unpack(plain)
    metric = Metric(h.astype(np.float32), None, product)
    ordered = spread_errors(grid, start, weights, h, product)
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
