"""Ops between one tensor and several."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.tables.ops.base import Dims, Op, Parts, Size, evaluate, like, rows_of
from llmconv.errors import UsageError
from llmconv.formats.moving.rows import join, take
from llmconv.formats.tensor import Tensor
from llmconv.quant.block import Bytes

__all__ = ["Chunks", "Concat", "Inverse", "Only", "Split", "Stack", "Twice", "gathered"]


@dataclass(frozen=True)
class Split(Op):
    """One tensor -> several along its rows: rows seen as (groups, sum of sizes), each piece (groups * size, ...).

    With `hf_stacked` or `gguf_stacked` the groups (experts, heads) are a leading dimension on that side.
    """

    sizes: tuple[Size, ...]
    groups: Size = 1
    hf_stacked: bool = False
    gguf_stacked: bool = False

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        (whole,) = parts
        sizes, groups = [evaluate(s, dims) for s in self.sizes], evaluate(self.groups, dims)
        rows, total = rows_of(whole), sum(sizes)
        if rows.n_rows != groups * total:
            raise UsageError(f"tensor {whole.name!r} has {rows.n_rows} rows, expected {groups} x {total}")
        out, start = [], 0
        for size in sizes:
            shape = (groups, size, rows.row_len) if self.gguf_stacked else (groups * size, rows.row_len)
            if groups == 1:
                piece = take(rows, start, size, shape)
            else:
                index = (np.arange(groups)[:, None] * total + np.arange(start, start + size)).reshape(-1)
                piece = dataclasses.replace(gathered(rows, index), shape=shape)
            out.append(piece if self.gguf_stacked else like(piece, whole))
            start += size
        return tuple(out)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        sizes, groups = [evaluate(s, dims) for s in self.sizes], evaluate(self.groups, dims)
        rows, total = tuple(rows_of(p) for p in parts), sum(sizes)
        whole = join(rows, (groups * total, rows[0].row_len))  # all groups of the first piece, then of the second, ...
        if groups > 1:
            starts = np.cumsum([0, *sizes]).tolist()
            runs = [(starts[k] * groups + g * size, size) for g in range(groups) for k, size in enumerate(sizes)]
            whole = gathered(whole, np.concatenate([np.arange(first, first + size) for first, size in runs]))
        if self.hf_stacked:
            return (whole.reshaped((groups, total, whole.row_len)),)
        return (like(whole, parts[0]),)


def gathered(tensor: Tensor, index: NDArray[np.intp]) -> Tensor:
    """Row i of the result is row index[i]; long consecutive runs are read as such."""
    source = tensor.read

    def read(start: int, stop: int) -> Bytes:
        wanted = index[start:stop]
        if not wanted.size:
            return source(0, 0)
        cuts = np.flatnonzero(np.diff(wanted) != 1) + 1
        bounds = [0, *cuts.tolist(), wanted.size]
        out = np.empty((wanted.size, tensor.row_bytes), np.uint8)
        for lo, hi in itertools.pairwise(bounds):
            first = int(wanted[lo])
            out[lo:hi] = source(first, first + hi - lo)
        return out

    return dataclasses.replace(tensor, shape=(len(index), tensor.row_len), read=read, extent=None)


@dataclass(frozen=True)
class Inverse(Op):
    """Another op, the other way round."""

    op: Op

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        return self.op.undo(parts, dims)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        return self.op.apply(parts, dims)


def Concat(sizes: tuple[Size, ...]) -> Op:
    """Several tensors -> one, along the rows."""
    return Inverse(Split(sizes))


@dataclass(frozen=True)
class Stack(Op):
    """n tensors of shape (...) -> one of shape (n, ...): experts that Hugging Face keeps apart.

    With `kinds`, the parts are that many equal series (all gates, then all ups), each stacked by itself.
    """

    kinds: int = 1

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        n = len(parts) // self.kinds
        series = [parts[k * n : (k + 1) * n] for k in range(self.kinds)]
        return tuple(join(tuple(p.reshaped((1, *p.shape)) for p in one), (n, *one[0].shape)) for one in series)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        out = []
        for whole in parts:
            n, *rest = whole.shape
            each = math.prod(rest[:-1])
            out += [take(whole, i * each, each, tuple(rest)) for i in range(n)]
        return tuple(out)


@dataclass(frozen=True)
class Chunks(Op):
    """Tensors with as many rows each, but for the last, which may have fewer -> one: a table in `count` files."""

    rows: Size
    count: Size

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        return (join(parts, (evaluate(self.rows, dims), parts[0].row_len)),)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        (whole,) = parts
        count = max(evaluate(self.count, dims), 1)
        step = -(-whole.n_rows // count)
        sizes = [max(0, min(step, whole.n_rows - i * step)) for i in range(count)]
        return tuple(take(whole, i * step, size, (size, whole.row_len)) for i, size in enumerate(sizes))


@dataclass(frozen=True)
class Only(Op):
    """Another op on one of the parts, or on `count` of them, of which it makes one."""

    index: int
    op: Op
    count: int = 1

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        end = self.index + self.count
        return (*parts[: self.index], *self.op.apply(parts[self.index : end], dims), *parts[end:])

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        return (*parts[: self.index], *self.op.undo(parts[self.index : self.index + 1], dims), *parts[self.index + 1 :])


@dataclass(frozen=True)
class Twice(Op):
    """A tensor under two names."""

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        return (*parts, *parts)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        return parts[: len(parts) // 2]
