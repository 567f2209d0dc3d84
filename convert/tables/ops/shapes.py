"""Ops that change a tensor's shape: axes, padding, a part."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.tables.ops.base import Dims, Op, Parts, Size, evaluate
from llmconv.errors import Unsupported
from llmconv.formats.moving.rows import join, take
from llmconv.formats.tensor import Tensor
from llmconv.quant.block import Bytes

__all__ = ["Led", "Padded", "Reshape", "Tail", "Transpose"]


@dataclass(frozen=True)
class Reshape(Op):
    """Other dimensions, the same bytes.  `hf` and `gguf` are the two shapes."""

    hf: tuple[Size, ...]
    gguf: tuple[Size, ...]

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        return tuple(p.reshaped(tuple(evaluate(s, dims) for s in self.gguf)) for p in parts)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        return tuple(p.reshaped(tuple(evaluate(s, dims) for s in self.hf)) for p in parts)


@dataclass(frozen=True)
class Transpose(Op):
    """The last two dimensions exchanged.  Needs plain values, and every slab of the result reads the whole matrix."""

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        return tuple(_transposed(p) for p in parts)

    undo = apply


def _transposed(tensor: Tensor) -> Tensor:
    if tensor.type.dtype is None:
        raise Unsupported(
            f"tensor {tensor.name!r} of type {tensor.type.name} can't be transposed, only plain values can; "
            "decode it first"
        )
    *lead, n, m = tensor.shape
    dtype, source = tensor.type.dtype, tensor

    def read(start: int, stop: int) -> Bytes:
        out = np.empty((stop - start, n), dtype)
        row = start
        while row < stop:  # one matrix of the batch at a time
            matrix, first = divmod(row, m)
            last = min(m, first + stop - row)
            step = max(1, (8 << 20) // max(1, source.row_bytes))
            for lo in range(0, n, step):
                hi = min(n, lo + step)
                values = source.read(matrix * n + lo, matrix * n + hi).view(dtype)
                out[row - start : row - start + last - first, lo:hi] = values[:, first:last].T
            row += last - first
        return out.view(np.uint8)

    return dataclasses.replace(tensor, shape=(*lead, m, n), read=read, extent=None)


@dataclass(frozen=True)
class Tail(Op):
    """All rows but the first ones, which no token uses (RoBERTa's positions before the first).

    What those hold is `lost`, and put back from the record; without one they are zeros.
    """

    exact = False
    skip: Size = 0

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        n = evaluate(self.skip, dims)
        return tuple(take(p, n, p.n_rows - n, (p.shape[0] - n, *p.shape[1:])) if n else p for p in parts)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        n = evaluate(self.skip, dims)
        return tuple(self._after(p, np.zeros((n, p.row_bytes), np.uint8)) if n else p for p in parts)

    @staticmethod
    def _after(tensor: Tensor, first: Bytes) -> Tensor:
        """The tensor with rows before its own."""
        head = dataclasses.replace(
            tensor, shape=(len(first), *tensor.shape[1:]), read=lambda a, b: first[a:b], extent=None
        )
        return join((head, tensor), (tensor.shape[0] + len(first), *tensor.shape[1:])).renamed(tensor.name)

    def lost(self, tensor: Tensor, dims: Dims) -> NDArray[np.uint8] | None:
        """The bytes of the rows that are left out, unless all are zero."""
        found = tensor.blocks(0, min(evaluate(self.skip, dims), tensor.n_rows))
        return np.ascontiguousarray(found).reshape(-1) if found.any() else None

    def restored(self, tensor: Tensor, moved: Tensor, record: Any, dims: Dims) -> Tensor:
        n = tensor.n_rows - moved.n_rows
        if not isinstance(record, np.ndarray) or record.dtype != np.uint8 or record.size != n * tensor.row_bytes:
            return tensor
        rest = take(tensor, n, moved.n_rows, moved.shape)
        return self._after(rest, record.reshape(n, -1))


@dataclass(frozen=True)
class Padded(Op):
    """Rows of zeros behind the `rows` that there are, so that there are `to` of them."""

    rows: Size = 0
    to: Size = 0

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        more = evaluate(self.to, dims) - evaluate(self.rows, dims)
        return tuple(self._longer(p, more) if more > 0 else p for p in parts)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        n = evaluate(self.rows, dims)
        return tuple(take(p, 0, n, (n, *p.shape[1:])) if n < p.shape[0] else p for p in parts)

    @staticmethod
    def _longer(tensor: Tensor, more: int) -> Tensor:
        def zeros(start: int, stop: int) -> Bytes:
            return np.zeros((max(0, stop - start), tensor.row_bytes), np.uint8)

        shape = (more, *tensor.shape[1:])
        tail = dataclasses.replace(tensor, shape=shape, read=zeros, extent=None)
        return join((tensor, tail), (tensor.shape[0] + more, *tensor.shape[1:])).renamed(tensor.name)


@dataclass(frozen=True)
class Led(Op):
    """A matrix of zeros before those of a stack: the adapter that changes nothing."""

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        return tuple(self._led(p) for p in parts)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        each = (math.prod(p.shape[1:-1]) for p in parts)
        return tuple(take(p, n, p.n_rows - n, (p.shape[0] - 1, *p.shape[1:])) for p, n in zip(parts, each, strict=True))

    @staticmethod
    def _led(tensor: Tensor) -> Tensor:
        def zeros(start: int, stop: int) -> Bytes:
            return np.zeros((max(0, stop - start), tensor.row_bytes), np.uint8)

        first = dataclasses.replace(tensor, shape=(1, *tensor.shape[1:]), read=zeros, extent=None)
        return join((first, tensor), (tensor.shape[0] + 1, *tensor.shape[1:])).renamed(tensor.name)
