"""Ops that change the order of a tensor's rows or columns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.tables.ops.base import Dims, Op, Parts, Size, evaluate, like, rows_of
from llmconv.convert.tables.ops.joins import gathered
from llmconv.errors import Unsupported, UsageError
from llmconv.formats.moving.rows import swapped
from llmconv.formats.tensor import Tensor
from llmconv.quant.block import Bytes

__all__ = ["ByAxis", "Exchanged", "PartHalves", "SwapColumns", "SwapRows", "Unpaired", "rope_halves"]


@dataclass(frozen=True)
class SwapRows(Op):
    """Rows (or the elements of a vector) seen as (outer, a, b, inner) -> (outer, b, a, inner)."""

    a: Size
    b: Size
    outer: Size = 1
    inner: Size = 1

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        outer, a, b, inner = (evaluate(s, dims) for s in (self.outer, self.a, self.b, self.inner))
        return tuple(like(swapped(rows_of(p), outer, a, b, inner), p) for p in parts)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        outer, a, b, inner = (evaluate(s, dims) for s in (self.outer, self.a, self.b, self.inner))
        return tuple(like(swapped(rows_of(p), outer, b, a, inner), p) for p in parts)


@dataclass(frozen=True)
class SwapColumns(Op):
    """Columns seen as (a, b, inner) -> (b, a, inner).  Needs plain values."""

    a: Size
    b: Size
    inner: Size

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        return tuple(_with_columns(p, *(evaluate(s, dims) for s in (self.a, self.b, self.inner))) for p in parts)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        return tuple(_with_columns(p, *(evaluate(s, dims) for s in (self.b, self.a, self.inner))) for p in parts)


def _with_columns(tensor: Tensor, a: int, b: int, inner: int) -> Tensor:
    if tensor.type.dtype is None:
        raise Unsupported(
            f"the columns of tensor {tensor.name!r} of type {tensor.type.name} can't be reordered, only those of plain "
            "values; decode it first"
        )
    if a * b * inner != tensor.row_len:
        raise UsageError(f"tensor {tensor.name!r} has rows of {tensor.row_len}, expected {a} x {b} x {inner}")
    source, dtype = tensor.read, tensor.type.dtype

    def read(start: int, stop: int) -> Bytes:
        values = source(start, stop).view(dtype).reshape(stop - start, a, b, inner)
        return np.ascontiguousarray(values.swapaxes(1, 2)).reshape(stop - start, -1).view(np.uint8)

    return dataclasses.replace(tensor, read=read, extent=None)


def rope_halves(heads: Size, head_dim: Size = "head_dim") -> SwapRows:
    """Rotary pairs: (first half, second half) of each head in Hugging Face -> neighbours in GGUF's Llama."""
    return SwapRows(2, f"({head_dim}) // 2", outer=heads)


@dataclass(frozen=True)
class Unpaired(Op):
    """Rotary pairs: neighbours among the first `n_rot` rows of each head -> as far apart as half of them.

    Only where positions are three-fold (`folds`), which GGUF's readers know in no other order.
    """

    heads: Size

    def _index(self, dims: Dims) -> NDArray[np.intp]:
        heads, head_dim, turned = evaluate(self.heads, dims), dims["head_dim"], dims["n_rot"]
        one = np.concatenate([np.arange(0, turned, 2), np.arange(1, turned, 2), np.arange(turned, head_dim)])
        index: NDArray[np.intp] = (np.arange(heads)[:, None] * head_dim + one).reshape(-1)
        return index

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        return self._moved(parts, self._index(dims)) if dims.get("folds") else parts

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        return self._moved(parts, np.argsort(self._index(dims))) if dims.get("folds") else parts

    def _moved(self, parts: Parts, index: NDArray[np.intp]) -> Parts:
        return tuple(like(gathered(rows_of(part), index), part) for part in parts)


@dataclass(frozen=True)
class PartHalves(Unpaired):
    """Rotary pairs: halves of the first `n_rot` rows of each head -> neighbours; `rope_halves` where all turn."""

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        return self._moved(parts, np.argsort(self._index(dims)))

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        return self._moved(parts, self._index(dims))


@dataclass(frozen=True)
class ByAxis(Unpaired):
    """Rotary pairs of three axes (time, height, width): a head's first halves of each axis, then the second ones, then
    what does not turn -> both halves of each axis together, then the rest."""

    def _index(self, dims: Dims) -> NDArray[np.intp]:
        heads, head_dim = evaluate(self.heads, dims), dims["head_dim"]
        half = 2 * (head_dim // 2) // 3 // 2  # of an axis
        one = np.arange(6 * half).reshape(2, 3, half).swapaxes(0, 1).reshape(-1)
        one = np.concatenate([one, np.arange(6 * half, head_dim)])
        index: NDArray[np.intp] = (np.arange(heads)[:, None] * head_dim + one).reshape(-1)
        return index

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        return self._moved(parts, self._index(dims))

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        return self._moved(parts, np.argsort(self._index(dims)))


@dataclass(frozen=True)
class Exchanged(Op):
    """Two of `groups` equal runs of rows in each other's place."""

    groups: int
    a: int
    b: int

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        return tuple(self._moved(p) for p in parts)

    undo = apply

    def _moved(self, tensor: Tensor) -> Tensor:
        order = np.arange(self.groups)
        order[[self.a, self.b]] = order[[self.b, self.a]]
        each = tensor.n_rows // self.groups
        index = (order[:, None] * each + np.arange(each)).reshape(-1)
        return dataclasses.replace(gathered(tensor, index), shape=tensor.shape)
