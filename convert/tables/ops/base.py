"""What an op is, and the sizes that it is given."""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

from numpy.typing import NDArray

from llmconv.errors import UsageError
from llmconv.formats.tensor import BlockClass, Tensor

__all__ = ["Dims", "Op", "Parts", "Size", "evaluate", "like", "rows_of"]

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

    def all_lost(self, parts: Parts, dims: Dims) -> tuple[Any, ...]:
        """`lost` of each part; another one for an op that makes one tensor of several."""
        return tuple(self.lost(part, dims) for part in parts)

    def all_restored(self, parts: Parts, moved: Parts, records: tuple[Any, ...], dims: Dims) -> Parts:
        """`restored` for each part that has a record; what is one tensor moved is that for each of its parts."""
        return tuple(
            part if record is None else self.restored(part, moved[min(i, len(moved) - 1)], record, dims)
            for i, (part, record) in enumerate(zip(parts, records, strict=True))
        )


def rows_of(tensor: Tensor) -> Tensor:
    """A vector as a column, so that its elements are rows; anything else as it is."""
    return tensor.reshaped((tensor.shape[0], 1)) if len(tensor.shape) == 1 else tensor


def like(tensor: Tensor, old: Tensor) -> Tensor:
    """The vector again, if `old` was one."""
    return tensor.reshaped((tensor.shape[0],)) if len(old.shape) == 1 else tensor
