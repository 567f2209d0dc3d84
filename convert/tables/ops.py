"""Operations between the tensors of a Hugging Face model and those of a GGUF: each has `apply` and an exact `undo`.

An op takes and gives tuples of lazy tensors, so that one op may split, join or stack.  Most move whole rows, and a row
is a row whatever its block type, so they work on quantized tensors too; `Transpose` and `Shift` need plain values
and say so.  Sizes are expressions over the model's dimensions ("n_head * head_dim"), evaluated when the op is applied.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llmconv.errors import Unsupported, UsageError
from llmconv.formats.moving.rows import join, swapped, take
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import block, plain
from llmconv.quant.block import Bytes

__all__ = [
    "Backwards",
    "Concat",
    "Dims",
    "Exchanged",
    "Exp",
    "Inverse",
    "Led",
    "NegativeExp",
    "Offsets",
    "Only",
    "Op",
    "PackMxfp4",
    "Padded",
    "PartHalves",
    "Parts",
    "Reshape",
    "Rounds",
    "Shift",
    "Size",
    "Split",
    "Stack",
    "SwapColumns",
    "SwapRows",
    "Tail",
    "Transpose",
    "Twice",
    "Unpaired",
    "evaluate",
    "rope_halves",
]

Dims: TypeAlias = Mapping[str, int]
"""The model's dimensions by name: n_embd, n_head, head_dim, ..."""
Size: TypeAlias = int | str
"""A number, or an expression over the dimensions."""
Parts: TypeAlias = tuple[Tensor, ...]

_OPERATORS: dict[type[ast.AST], Any] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
}


@functools.cache
def _parsed(text: str) -> ast.expr:
    return ast.parse(text.strip(), mode="eval").body


def evaluate(size: Size, dims: Dims) -> int:
    """The value of a size: integers, names, + - * // %, comparisons, and / or / not.  Unknown names are 0."""
    return size if isinstance(size, int) else _value(_parsed(size), dims, size)


def _value(node: ast.expr, dims: Dims, text: str) -> int:
    match node:
        case ast.Constant(value=int() as value):
            return value
        case ast.Name(id=name):
            return dims.get(name, 0)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            a, b = _value(left, dims, text), _value(right, dims, text)
            if isinstance(op, ast.FloorDiv | ast.Mod) and b == 0:
                return 0
            return int(_OPERATORS[type(op)](a, b))
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _OPERATORS:
            return int(_OPERATORS[type(op)](_value(left, dims, text), _value(right, dims, text)))
        case ast.BoolOp(op=ast.And(), values=values):
            return int(all(_value(v, dims, text) for v in values))
        case ast.BoolOp(op=ast.Or(), values=values):
            return int(any(_value(v, dims, text) for v in values))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return int(not _value(operand, dims, text))
    raise UsageError(f"{text!r} is no size expression")


class Op:
    """One step from another ecosystem's tensors to GGUF's.  `undo(apply(x))` is `x`, bit for bit.

    stored_as: the block type of what `apply` gives, and `undo` must be given; None: the type that it was given.
    exact: False for an op that rounds; then `lost` finds what `undo` would not give back, and `restored` puts it back.
    """

    stored_as: ClassVar[BlockClass | None] = None
    exact: ClassVar[bool] = True

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        raise NotImplementedError

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        raise NotImplementedError

    def lost(self, tensor: Tensor, dims: Dims) -> NDArray[Any] | None:
        """A record of the values that undoing would not give back; None when it gives all."""
        return None

    def restored(self, tensor: Tensor, moved: Tensor, record: Any, dims: Dims) -> Tensor:
        """The tensor with the record's values; moved: what `undo` was given."""
        return tensor


def _rows(tensor: Tensor) -> Tensor:
    """A vector as a column, so that its elements are rows; anything else as it is."""
    return tensor.reshaped((tensor.shape[0], 1)) if len(tensor.shape) == 1 else tensor


def _like(tensor: Tensor, old: Tensor) -> Tensor:
    """The vector again, if `old` was one."""
    return tensor.reshaped((tensor.shape[0],)) if len(old.shape) == 1 else tensor


@dataclass(frozen=True)
class SwapRows(Op):
    """Rows (or the elements of a vector) seen as (outer, a, b, inner) -> (outer, b, a, inner)."""

    a: Size
    b: Size
    outer: Size = 1
    inner: Size = 1

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        outer, a, b, inner = (evaluate(s, dims) for s in (self.outer, self.a, self.b, self.inner))
        return tuple(_like(swapped(_rows(p), outer, a, b, inner), p) for p in parts)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        outer, a, b, inner = (evaluate(s, dims) for s in (self.outer, self.a, self.b, self.inner))
        return tuple(_like(swapped(_rows(p), outer, b, a, inner), p) for p in parts)


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
        return tuple(_like(_gathered(_rows(part), index), part) for part in parts)


@dataclass(frozen=True)
class PartHalves(Unpaired):
    """Rotary pairs: halves of the first `n_rot` rows of each head -> neighbours; `rope_halves` where all turn."""

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        return self._moved(parts, np.argsort(self._index(dims)))

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        return self._moved(parts, self._index(dims))


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
        rows, total = _rows(whole), sum(sizes)
        if rows.n_rows != groups * total:
            raise UsageError(f"tensor {whole.name!r} has {rows.n_rows} rows, expected {groups} x {total}")
        out, start = [], 0
        for size in sizes:
            shape = (groups, size, rows.row_len) if self.gguf_stacked else (groups * size, rows.row_len)
            if groups == 1:
                piece = take(rows, start, size, shape)
            else:
                index = (np.arange(groups)[:, None] * total + np.arange(start, start + size)).reshape(-1)
                piece = dataclasses.replace(_gathered(rows, index), shape=shape)
            out.append(piece if self.gguf_stacked else _like(piece, whole))
            start += size
        return tuple(out)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        sizes, groups = [evaluate(s, dims) for s in self.sizes], evaluate(self.groups, dims)
        rows, total = tuple(_rows(p) for p in parts), sum(sizes)
        whole = join(rows, (groups * total, rows[0].row_len))  # all groups of the first piece, then of the second, ...
        if groups > 1:
            starts = np.cumsum([0, *sizes]).tolist()
            runs = [(starts[k] * groups + g * size, size) for g in range(groups) for k, size in enumerate(sizes)]
            whole = _gathered(whole, np.concatenate([np.arange(first, first + size) for first, size in runs]))
        if self.hf_stacked:
            return (whole.reshaped((groups, total, whole.row_len)),)
        return (_like(whole, parts[0]),)


def _gathered(tensor: Tensor, index: NDArray[np.intp]) -> Tensor:
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


class Rounds(Op):
    """A function of each value, computed in float32 and stored as F32.

    It rounds, so `undo` alone does not always give the original bits: `convert.dialects.hf` stores what is `lost`.
    """

    exact = False

    def forward(self, values: NDArray[Any]) -> NDArray[np.float32]:
        raise NotImplementedError

    def back(self, values: NDArray[Any]) -> NDArray[np.float32]:
        raise NotImplementedError

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        return tuple(p.map(self.forward, plain.F32) for p in parts)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        return tuple(p.map(self.back, plain.F32) for p in parts)

    def lost(self, tensor: Tensor, dims: Dims) -> NDArray[np.uint32] | None:
        """(n, 2) flattened: index and original bits of every value that `undo`, rounded, would not give back."""
        values = tensor.numpy().reshape(-1)
        if values.dtype.itemsize > 4:
            return None
        back = self.back(self.forward(values)).astype(values.dtype)
        bits = values.view(f"u{values.dtype.itemsize}").astype(np.uint32)
        index = np.flatnonzero(back.view(f"u{values.dtype.itemsize}") != bits)
        return np.stack([index.astype(np.uint32), bits[index]], axis=1).reshape(-1) if index.size else None

    def restored(self, tensor: Tensor, moved: Tensor, record: Any, dims: Dims) -> Tensor:
        """Kept values go back, each only where the stored one is still what its original gives."""
        if tensor.type.dtype is None or not isinstance(record, np.ndarray) or record.size % 2 or not tensor.shape:
            return tensor
        dtype, (index, bits) = tensor.type.dtype, record.reshape(-1, 2).T
        inside = index < tensor.n_elements
        index, bits = index[inside].astype(np.intp), bits[inside]
        originals = bits.astype(f"u{dtype.itemsize}").view(dtype)
        made = self.forward(originals).view(np.uint32)

        def patch(rows: NDArray[Any]) -> NDArray[Any]:
            same = made == moved.rows().reshape(-1)[index].view(np.uint32)
            out = np.array(rows)
            out[0, index[same]] = originals[same]
            return out

        return tensor.reshaped((tensor.n_elements,)).map(patch, tensor.type).reshaped(tensor.shape)


@dataclass(frozen=True)
class Shift(Rounds):
    """Values plus a constant (Gemma's norms, which multiply by 1 + w)."""

    by: float = 1.0

    def forward(self, values: NDArray[Any]) -> NDArray[np.float32]:
        return values.astype(np.float32) + np.float32(self.by)

    def back(self, values: NDArray[Any]) -> NDArray[np.float32]:
        return values.astype(np.float32) - np.float32(self.by)


@dataclass(frozen=True)
class NegativeExp(Rounds):
    """x -> -exp(x): the rates of decay of selective scans, which Hugging Face keeps as logarithms (A_log).

    Computed in float64 and rounded once, so that every machine gets the same bits.
    """

    def forward(self, values: NDArray[Any]) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):
            return (-np.exp(values.astype(np.float64))).astype(np.float32)

    def back(self, values: NDArray[Any]) -> NDArray[np.float32]:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(-values.astype(np.float64)).astype(np.float32)


@dataclass(frozen=True)
class Exp(Rounds):
    """x -> exp(x), of rates that a GGUF keeps above zero (Ling 3)."""

    def forward(self, values: NDArray[Any]) -> NDArray[np.float32]:
        return -NegativeExp().forward(values)

    def back(self, values: NDArray[Any]) -> NDArray[np.float32]:
        return NegativeExp().back(-values)


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
class Backwards(Op):
    """The second half of each head's rows negated: pairs that turn the other way round.  Needs plain values."""

    heads: Size = 1

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        return tuple(self._negated(p, evaluate(self.heads, dims)) for p in parts)

    undo = apply

    @staticmethod
    def _negated(tensor: Tensor, heads: int) -> Tensor:
        if tensor.type.dtype is None:
            raise Unsupported(f"rows of tensor {tensor.name!r} of type {tensor.type.name} can't be negated; decode it")
        source, size = tensor.read, tensor.n_rows // max(heads, 1)
        last = tensor.type.dtype.itemsize - 1  # the byte with the sign, numbers being little-endian

        def read(start: int, stop: int) -> Bytes:
            values = np.array(source(start, stop)).reshape(stop - start, -1, last + 1)
            second = np.arange(start, stop) % size >= size // 2
            values[second, :, last] ^= 0x80
            return values.reshape(stop - start, -1)

        return dataclasses.replace(tensor, read=read, extent=None)


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
        return dataclasses.replace(_gathered(tensor, index), shape=tensor.shape)


@dataclass(frozen=True)
class Twice(Op):
    """A tensor under two names."""

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        return (*parts, *parts)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        return parts[: len(parts) // 2]


@dataclass(frozen=True)
class Offsets(Op):
    """A vector of whole numbers that count from their own places -> from 0: x[i] + i (which words a draft knows)."""

    stored_as = block.by_name("I64")

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        return tuple(self._moved(p, 1) for p in parts)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        return tuple(self._moved(p, -1) for p in parts)

    def _moved(self, tensor: Tensor, sign: int) -> Tensor:
        if tensor.type is not self.stored_as:
            raise Unsupported(f"tensor {tensor.name!r} is {tensor.type.name}, expected I64, which words are counted in")

        def read(start: int, stop: int) -> Bytes:
            values = tensor.read(start, stop).view(np.int64)  # a vector is one row
            return (values + sign * np.arange(tensor.row_len)).astype(np.int64).view(np.uint8)

        return dataclasses.replace(tensor, read=read, extent=None)


@dataclass(frozen=True)
class PackMxfp4(Op):
    """(blocks uint8 (..., n/32, 16), scales uint8 (..., n/32)) -> one MXFP4 tensor (..., n); only bits move.

    Source of both layouts: the OCP microscaling format as gpt-oss stores it (element 2i in byte i's low half), and
    ggml's block_mxfp4 (scale byte, then byte j with element j low and j + 16 high).
    """

    stored_as = block.by_name("MXFP4")

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        blocks, scales = parts
        *lead, n_blocks, half = blocks.shape
        if (
            half != 16
            or scales.shape != (*lead, n_blocks)
            or blocks.type is not plain.U8
            or scales.type is not plain.U8
        ):
            raise UsageError(
                f"tensors {blocks.name!r} {blocks.type.name}{list(blocks.shape)} and {scales.name!r} "
                f"{scales.type.name}{list(scales.shape)} are no MXFP4 pair; expected U8 (..., n, 16) and (..., n)"
            )

        def read(start: int, stop: int) -> Bytes:
            packed = blocks.read(start * n_blocks, stop * n_blocks)  # (rows * n_blocks, 16)
            values = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1, 32)
            out = np.empty((stop - start, n_blocks, 17), np.uint8)
            out[..., 0] = scales.read(start, stop)
            out[..., 1:] = (values[:, :16] | (values[:, 16:] << 4)).reshape(stop - start, n_blocks, 16)
            return out.reshape(stop - start, n_blocks * 17)

        return (Tensor(blocks.name, (*lead, n_blocks * 32), self.stored_as, read),)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        (whole,) = parts
        if whole.type is not self.stored_as:
            raise Unsupported(f"tensor {whole.name!r} is {whole.type.name}, expected MXFP4 to unpack it")
        *lead, n = whole.shape
        n_blocks = n // 32

        def block_bytes(start: int, stop: int) -> Bytes:
            lo, hi = start // n_blocks, -(-stop // n_blocks)
            qs = whole.read(lo, hi).reshape(-1, 17)[:, 1:]
            values = np.concatenate([qs & 15, qs >> 4], axis=1)
            packed = values[:, 0::2] | (values[:, 1::2] << 4)
            return np.ascontiguousarray(packed[start - lo * n_blocks : stop - lo * n_blocks])

        def scale_bytes(start: int, stop: int) -> Bytes:
            return np.ascontiguousarray(whole.read(start, stop).reshape(stop - start, n_blocks, 17)[..., 0])

        return (
            Tensor(whole.name, (*lead, n_blocks, 16), plain.U8, block_bytes),
            Tensor(whole.name, (*lead, n_blocks), plain.U8, scale_bytes),
        )
