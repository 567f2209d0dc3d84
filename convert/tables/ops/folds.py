"""Ops that make one tensor of several by arithmetic: their ways back need what was put in."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.tables.ops.base import Dims, Op, Parts, Size, evaluate
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain
from llmconv.quant.block import Bytes

__all__ = ["BatchNorm", "Slabs"]


@dataclass(frozen=True)
class BatchNorm(Op):
    """(weight, bias, mean, variance) of a batch norm, each of shape (n,) -> the (weight, bias) that do as much, F32:

        a = weight / sqrt(variance + eps),   b = bias - mean * a

    in single precision, each step rounded, as llama.cpp's converter has it.  `undo` gives a norm that does the same
    (mean 0, variance 1 - eps); which numbers there were is recorded, and put back where they still give these.
    """

    exact = False
    eps: float = 1e-5

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        weight, bias, *_ = parts
        return (
            _vector(weight, lambda: self._folded(parts)[0]),
            _vector(bias, lambda: self._folded(parts)[1]),
        )

    def _folded(self, parts: Parts) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        weight, bias, mean, variance = (part.numpy().astype(np.float32) for part in parts)
        with np.errstate(all="ignore"):
            a = weight / np.sqrt(variance + np.float32(self.eps))
            return a, bias - mean * a

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        weight, bias = parts
        n = weight.n_elements
        return (
            weight,
            bias,
            _vector(bias, lambda: np.zeros(n, np.float32)),
            _vector(bias, lambda: np.full(n, 1 - self.eps, np.float32)),
        )

    def all_lost(self, parts: Parts, dims: Dims) -> tuple[Any, ...]:
        """The bytes of each."""
        return tuple(np.array(part.blocks()).reshape(-1) for part in parts)

    def all_restored(self, parts: Parts, moved: Parts, records: tuple[Any, ...], dims: Dims) -> Parts:
        for part, record in zip(parts, records, strict=True):
            if not isinstance(record, np.ndarray) or record.dtype != np.uint8 or record.size != part.nbytes:
                return parts
        before = tuple(_holding(part, record) for part, record in zip(parts, records, strict=True))

        def choose(part: Tensor, old: Tensor) -> Tensor:
            def read(start: int, stop: int) -> Bytes:
                given = zip(self._folded(before), moved, strict=True)
                same = all(np.array_equal(now.view(np.uint32), then.numpy().view(np.uint32)) for now, then in given)
                return (old if same else part).read(start, stop)

            return dataclasses.replace(part, read=read, extent=None)

        return tuple(choose(part, old) for part, old in zip(parts, before, strict=True))


def _vector(like: Tensor, values: Any) -> Tensor:
    """A vector as long as another one, F32, of what a function gives."""

    def read(start: int, stop: int) -> Bytes:
        return np.ascontiguousarray(values(), np.float32).view(np.uint8).reshape(1, -1)[start:stop]

    return Tensor(like.name, like.shape, plain.F32, read)


def _holding(like: Tensor, data: NDArray[np.uint8]) -> Tensor:
    """A tensor of the same shape and type, of these bytes."""
    rows = data.reshape(like.n_rows, like.row_bytes)
    return dataclasses.replace(like, read=lambda start, stop: rows[start:stop], extent=None)


@dataclass(frozen=True)
class Slabs(Op):
    """The way back from a matrix that is the sum of `count` ones in a row: itself first, then zeros."""

    exact = False
    count: Size = 2

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        (whole,) = parts
        more = whole.row_bytes * (evaluate(self.count, dims) - 1)

        def read(start: int, stop: int) -> Bytes:
            return np.concatenate([whole.read(start, stop), np.zeros((stop - start, more), np.uint8)], axis=1)

        shape = (*whole.shape[:-1], whole.row_len * evaluate(self.count, dims))
        return (dataclasses.replace(whole, shape=shape, read=read, extent=None),)
