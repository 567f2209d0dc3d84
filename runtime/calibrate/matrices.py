"""Rounding tensors: their rows in pieces that don't depend on each other, on threads, by one process or by several."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from llmconv.formats.tensor import Tensor as Stored
from llmconv.formats.writing.scratch import Rows, Scratch
from llmconv.quant.block import BlockType, Bytes
from llmconv.quant.rounding.descent import Metric, Order, rounded, spread_errors
from llmconv.quant.rounding.grid import Codes, Grid
from llmconv.quant.rounding.groups import grid_of
from llmconv.runtime.calibrate.gradients import row_groups
from llmconv.runtime.calibrate.inputs import Inputs
from llmconv.runtime.calibrate.threads import axes, each, product, root

__all__ = [
    "LONG",
    "SHORT",
    "Rounded",
    "Search",
    "ToRound",
    "losses_of_blocks",
    "plain_losses",
    "round_tensors",
]

R = TypeVar("R")
Floats = NDArray[np.float32]

_DAMP, _DAMP_ROWS, _DAMP_TRIED = 0.01, 0.03, 0.05
"""Shares of the mean diagonal that are added to it: of columns, of rows, and of columns whose moments one half of the
text has tried on the other.  The first two beside one of dimensions by tokens: what few tokens say of many columns is
mostly chance (Ledoit and Wolf 2004, doi:10.1016/S0047-259X(03)00096-4, whose share falls in this way)."""
_COUNTING = 0.5
"""About how much of the tokens counts, as weights differ: (sum w)^2 / sum w^2 of what is clipped at four means."""
_MOST_DAMP = 1.0
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


@dataclass(frozen=True)
class ToRound:
    """A tensor of (matrices, rows, columns), which is `shape`.

    read: some rows of one of its matrices.   kind: what it becomes.   gradients: `Gradients.rows` of it (the same for
    all its matrices), or None.
    """

    shape: tuple[int, int, int]
    read: Callable[[int, slice], Floats]
    kind: type[BlockType]
    inputs: Inputs
    gradients: Sequence[Stored] | None

    @property
    def coupled(self) -> bool:
        """Whether what errors in one row cost depends on those in others."""
        return self.gradients is not None and len(self.gradients[0].shape) == 2

    def numbers(self) -> Floats:
        """All of its weights, in `shape`."""
        return np.stack([self.read(matrix, slice(0, self.shape[1])) for matrix in range(self.shape[0])])


class _Columns:
    """What errors in columns cost.   h: (columns, columns) float32, of inputs.   tokens: of how many it is the mean."""

    def __init__(self, inputs: Inputs, matrix: int):
        self.h, self.tokens = inputs.h[matrix].numpy(), sum(inputs.counts)
        self._half = None if inputs.half is None else inputs.half.numpy()
        self._one = threading.Lock()
        self._damped: Floats | None = None
        self._order: Order | None = None

    @property
    def damped(self) -> Floats:
        with self._one:
            return self._as_damped()

    @property
    def order(self) -> Order:
        with self._one:
            if self._order is None:
                self._order = Order.of(self._as_damped(), product, root)
            return self._order

    def _as_damped(self) -> Floats:
        if self._damped is None:
            if self._half is None:
                self._damped = _damped(self.h, _DAMP, self.tokens)
            else:
                self._damped = _damped(_tried(self.h, self._half), _DAMP_TRIED, 0)
        return self._damped


def _tried(h: Floats, half: Floats) -> Floats:
    """Each half's principal axes with the moments that the other half has along them, summed: the text's own moments
    are too small where chance made them so (Lam 2016, doi:10.1214/15-AOS1393)."""
    parts = [half, h - half]
    found = np.zeros_like(h)
    for own, other in (parts, parts[::-1]):
        turn = axes(own)
        moments = np.einsum("ij,ij->j", turn, product(other, turn))
        found += product(turn * moments, turn.T)
    return found


@dataclass(frozen=True)
class _Piece:
    """Rows, and what their errors cost.   f: of rows that belong together.   counts: of rows that don't, how much each
    counts.   share: what the loss of these rows is multiplied with."""

    columns: _Columns
    f: Floats | None
    counts: Floats | None
    share: float

    def loss(self, error: Floats) -> float:
        turned = product(error, self.columns.h)
        if self.counts is None:
            turned = turned if self.f is None else product(self.f, turned)
            return self.share * float(np.einsum("ij,ij->", error, turned, dtype=np.float64))
        each = np.einsum("ij,ij->i", error, turned, dtype=np.float64)
        return self.share * float(each @ self.counts)

    def error(self, kind: type[BlockType], blocks: Bytes, weights: Floats) -> float:
        """What these blocks cost."""
        return self.loss(kind.decode(blocks).astype(np.float32) - weights)

    def plain(self, weights: Floats, kind: type[BlockType]) -> Bytes:
        """Each weight rounded by itself, scales chosen by the columns' importance."""
        return _plain(weights, kind, np.ascontiguousarray(np.diag(self.columns.h)))


def _plain(weights: Floats, kind: type[BlockType], importance: Floats) -> Bytes:
    given = importance if importance.any() and kind.uses_importance else None
    return kind.encode(np.ascontiguousarray(weights), given)


@dataclass(frozen=True)
class _Place:
    """Where a piece is: tensor number, matrix, rows of it, and which of the groups of rows these are."""

    tensor: int
    matrix: int
    rows: slice
    group: int


def _places(tensors: Sequence[ToRound]) -> list[_Place]:
    found = []
    for t, tensor in enumerate(tensors):
        matrices, height, _ = tensor.shape
        pieces = [slice(s, min(s + _PIECE, height)) for s in range(0, height, _PIECE)]
        for m in range(matrices):
            groups = row_groups(height) if tensor.coupled else pieces
            found += [_Place(t, m, rows, i) for i, rows in enumerate(groups)]
    return found


def _cost(tensor: ToRound, place: _Place) -> float:
    """Of a search, about: sums over columns, and over rows where they are coupled."""
    rows, columns = place.rows.stop - place.rows.start, tensor.shape[2]
    return float(rows) * columns * (columns + (rows if tensor.coupled else 0))


class _Shared:
    """What pieces have in common that are of the same inputs: made once, kept until the last of them is done."""

    def __init__(self, tensors: Sequence[ToRound], places: Sequence[_Place]):
        self._left = Counter(id(tensors[place.tensor].inputs) for place in places)
        self._made: dict[int, _Columns] = {}
        self._one = threading.Lock()

    def of(self, inputs: Inputs, matrix: int) -> _Columns:
        if len(inputs.h) > 1:
            return _Columns(inputs, matrix)
        with self._one:
            return self._made.setdefault(id(inputs), _Columns(inputs, 0))

    def done(self, inputs: Inputs) -> None:
        with self._one:
            self._left[id(inputs)] -= 1
            if not self._left[id(inputs)]:
                self._made.pop(id(inputs), None)


def _of_each(
    tensors: Sequence[ToRound], look: Callable[[ToRound, _Place, _Piece, Floats], R], jobs: int
) -> Iterator[tuple[ToRound, list[R]]]:
    """Each tensor with what is found of its pieces, by one process or by several."""
    places = _places(tensors)
    shared = _Shared(tensors, places)

    @torch.inference_mode()
    def work(place: _Place) -> R:
        tensor = tensors[place.tensor]
        weights = np.ascontiguousarray(tensor.read(place.matrix, place.rows), np.float32)
        try:
            return look(tensor, place, _piece(tensor, place, shared), weights)
        finally:
            shared.done(tensor.inputs)

    costs = [_cost(tensors[place.tensor], place) for place in places]
    counts = Counter(place.tensor for place in places)
    with contextlib.closing(each(work, places, jobs, costs)) as made:
        for i, tensor in enumerate(tensors):
            yield tensor, list(itertools.islice(made, counts[i]))


def _piece(tensor: ToRound, place: _Place, shared: _Shared) -> _Piece:
    f = counts = None
    share, own = 1.0, tensor.inputs.counts
    if tensor.gradients is not None:
        stored = tensor.gradients[place.group if tensor.coupled else 0].numpy()
        if tensor.coupled:
            f = np.asarray(stored, np.float32)
        else:
            counts = np.asarray(stored[place.rows], np.float32)
        # a token goes through some experts only
        share = 0.5 * (own[place.matrix] / (sum(own) or 1) if tensor.shape[0] > 1 else 1.0)
    return _Piece(shared.of(tensor.inputs, place.matrix), f, counts, share)


def _scale(tensor: ToRound, squares: Iterable[float]) -> float:
    """What losses are multiplied with: where gradients are unknown they are shares of the results' squares."""
    if tensor.gradients is not None:
        return 1.0
    total = sum(squares)
    return 1 / total if total > 0 else 0.0


def _squares(tensor: ToRound, piece: _Piece, weights: Floats) -> float:
    return piece.loss(weights) if tensor.gradients is None else 0.0


def round_tensors(tensors: Sequence[ToRound], jobs: int = 1, search: Search = SHORT) -> Generator[Rounded]:
    """Round tensors, of a layer: each as soon as it and those before it are done.

    A type without a grid of its own is rounded by the importance of its columns.
    """

    def look(tensor: ToRound, _: _Place, piece: _Piece, weights: Floats) -> tuple[Bytes, float, float, float]:
        return *_rounded(weights, tensor.kind, piece, search), _squares(tensor, piece, weights)

    for tensor, found in _of_each(tensors, look, jobs):
        blocks, before, after, squares = zip(*found, strict=True)
        scale = _scale(tensor, squares)
        importance = [np.ascontiguousarray(np.diag(h.numpy())) for h in tensor.inputs.h]
        yield Rounded(np.concatenate(blocks), scale * sum(before), scale * sum(after), importance)


def plain_losses(
    tensors: Sequence[ToRound], kinds: Sequence[Sequence[type[BlockType]]], jobs: int = 1
) -> Iterator[list[float]]:
    """What plain rounding to each of several types, of each tensor its own, is predicted to cost."""

    def look(tensor: ToRound, place: _Place, piece: _Piece, weights: Floats) -> list[float]:
        own = [piece.error(kind, piece.plain(weights, kind), weights) for kind in kinds[place.tensor]]
        return [*own, _squares(tensor, piece, weights)]

    for tensor, found in _of_each(tensors, look, jobs):
        *losses, squares = zip(*found, strict=True)
        yield [_scale(tensor, squares) * sum(column) for column in losses]


def losses_of_blocks(tensors: Sequence[ToRound], blocks: Sequence[Bytes | Rows], jobs: int = 1) -> Iterator[float]:
    """What the blocks of each tensor are predicted to cost."""

    def look(tensor: ToRound, place: _Place, piece: _Piece, weights: Floats) -> tuple[float, float]:
        start = place.matrix * tensor.shape[1]
        own = blocks[place.tensor][start + place.rows.start : start + place.rows.stop]
        return piece.error(tensor.kind, own, weights), _squares(tensor, piece, weights)

    for tensor, found in _of_each(tensors, look, jobs):
        losses, squares = zip(*found, strict=True)
        yield _scale(tensor, squares) * sum(losses)


def _rounded(weights: Floats, kind: type[BlockType], piece: _Piece, search: Search) -> tuple[Bytes, float, float]:
    """The blocks of some rows, and what they cost before and after."""
    plain = piece.plain(weights, kind)
    before = piece.error(kind, plain, weights)
    grid = grid_of(kind)
    if grid is None or not before > 0:
        return plain, before, before
    blocks = _searched(grid, grid.unpack(plain), weights, piece, search)
    after = piece.loss(kind.decode(blocks) - weights)
    return (blocks, before, after) if after <= before else (plain, before, before)


class _Start(NamedTuple):
    """Codes, and their loss and its gradient in the metric of inputs alone."""

    codes: Codes
    loss: float
    gradient: Floats

    @staticmethod
    def of(grid: Grid, codes: Codes, weights: Floats, metric: Metric) -> _Start:
        error = grid.values(codes) - weights
        gradient = metric.gradient(error)
        return _Start(codes, float(np.vdot(error, gradient)), gradient)


def _searched(grid: Grid, plain: Codes, weights: Floats, piece: _Piece, search: Search) -> Bytes:
    """GPTQ where each weight has a code, then descent in the inputs' metric, then in that of inputs and results."""
    metric = Metric(piece.columns.damped, None, product)
    start = _Start.of(grid, plain, weights, metric)
    if grid.book is None:
        codes = spread_errors(grid, plain, weights, piece.columns.order, product)
        start = min(_Start.of(grid, codes, weights, metric), start, key=lambda found: found.loss)
    alone = search.alone if piece.f is None and len(grid.levels) < _FINE else _FIRST_SWEEPS
    found = rounded(grid, start.codes, weights, metric, alone, search.little, start.gradient)
    if piece.f is not None and piece.f.any():
        f = _damped(piece.f, _DAMP_ROWS, piece.columns.tokens)
        gradient = np.ascontiguousarray(product(f, found.gradient))
        both = Metric(metric.h, f, product)
        found = rounded(grid, found.codes, weights, both, search.coupled, search.little, gradient)
    return grid.pack(found.codes)


def _damped(matrix: Floats, share: float, tokens: int) -> Floats:
    """Positive definite, with a mean diagonal of one.   tokens: of how many it is the mean; 0: of none that count."""
    out = matrix / _mean(matrix) if matrix.any() else np.eye(len(matrix), dtype=np.float32)
    dead = np.diag(out) <= 0
    out[dead, dead] = 1.0
    few = len(out) / (_COUNTING * tokens) if tokens else 0.0
    out[np.diag_indices(len(out))] += np.float32(min(share + few, _MOST_DAMP))
    return out


def _mean(matrix: Floats) -> np.float32:
    """Of the diagonal; 1 of a matrix of nothing."""
    mean = np.float32(np.mean(np.diag(matrix), dtype=np.float64))
    return mean if mean > 0 else np.float32(1)
