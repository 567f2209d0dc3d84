"""Grids: what a block type's bytes can say, as numbers that can be searched.

A weight is `scale * factor * level - minimum * shift`: a scale and a float16 minimum for `span` weights, an integer
factor and shift for `block` of them, and one of a few levels for each.  Where a type has no sub-blocks, factor is one;
where it has no minimum, shift is nothing; where its minimum stands alone (Q4_1, Q5_1), shift is one and the minimum of
any sign.  Where a type has a codebook, the levels of a few weights together are one of its entries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.quant.block import BlockType, Bytes
from llmconv.quant.kernels.terms import rules

__all__ = ["Codes", "Fields", "Grid"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Codes:
    """Rows on a grid.   code: (rows, columns), numbers of levels.   scale, minimum: (rows, spans) float32 that float16
    holds.   factor, shift: (rows, blocks)."""

    code: Ints
    scale: Floats
    factor: Ints
    minimum: Floats
    shift: Ints

    def part(self, rows: slice, columns: slice, grid: Grid) -> Codes:
        """Some rows and whole spans of columns, copied."""
        spans = slice(columns.start // grid.span, columns.stop // grid.span)
        blocks = slice(columns.start // grid.block, columns.stop // grid.block)
        where = (columns, spans, blocks, spans, blocks)
        return _codes(np.array(a[rows, w], order="C") for a, w in zip(self.arrays(), where, strict=True))

    def put(self, part: Codes, rows: slice, columns: slice, grid: Grid) -> None:
        """`part`, as `part` gave it, back in its place."""
        spans = slice(columns.start // grid.span, columns.stop // grid.span)
        blocks = slice(columns.start // grid.block, columns.stop // grid.block)
        for array, new, at in zip(self.arrays(), part.arrays(), (columns, spans, blocks, spans, blocks), strict=True):
            array[rows, at] = new

    def arrays(self) -> tuple[Ints, Floats, Ints, Floats, Ints]:
        return self.code, self.scale, self.factor, self.minimum, self.shift

    def copy(self) -> Codes:
        return _codes(np.array(a, order="C") for a in self.arrays())


def _codes(arrays: Iterable[Any]) -> Codes:
    return Codes(*arrays)


@dataclass(frozen=True)
class Fields:
    """The numbers in flat blocks: (n, …) each; None where the type has none.   code: (n, weights of a block type's
    block).   scale, minimum: (n,).   factor, shift: (n, sub-blocks)."""

    code: NDArray[np.integer]
    scale: Floats
    factor: NDArray[np.integer] | None = None
    minimum: Floats | None = None
    shift: NDArray[np.integer] | None = None


@dataclass(frozen=True)
class Book:
    """A codebook.   table: the levels of its entries, by side (one, or two where sides are shifts), place and entry,
    flat.   places: (entries, group), the same without sides.   sides, width: what `width` weights share, of
    `kernels.rules`."""

    table: Floats
    places: NDArray[np.uint8]
    sides: int
    width: int


@dataclass(frozen=True)
class Grid:
    """One type's.   block, span: weights under a factor, under a scale.   levels: what codes stand for, ascending.
    factors, shifts: the lowest and highest.   read, write: between blocks of the type's layout and `Fields`.
    apart: between neighbouring factors.   rule: what scales may be, of `kernels.rules`.   book: makes the codebook."""

    type: type[BlockType]
    block: int
    span: int
    levels: Floats
    factors: tuple[int, int]
    shifts: tuple[int, int]
    read: Callable[[NDArray[np.void]], Fields] = dataclasses.field(repr=False)
    write: Callable[[Fields, NDArray[np.void]], None] = dataclasses.field(repr=False)
    apart: int = 1
    rule: int = rules.F16
    book: Callable[[], Book] | None = dataclasses.field(default=None, repr=False)

    @property
    def uniform(self) -> bool:
        """Whether levels are neighbouring integers."""
        return bool((np.diff(self.levels) == 1).all())

    def unpack(self, blocks: Bytes) -> Codes:
        """Rows of bytes (n, row bytes) -> codes."""
        rows = len(blocks)
        found = self.read(np.ascontiguousarray(blocks).reshape(-1).view(self.type.layout))
        scale = found.scale.reshape(rows, -1)
        columns = scale.shape[1] * self.span
        ones = np.ones((rows, columns // self.block), np.int32)
        factor = ones if found.factor is None else found.factor.reshape(rows, -1).astype(np.int32)
        shift = ones * self.shifts[1] if found.shift is None else found.shift.reshape(rows, -1).astype(np.int32)
        minimum = np.zeros_like(scale) if found.minimum is None else found.minimum.reshape(rows, -1)
        code = found.code.reshape(rows, columns).astype(np.int32)
        return Codes(code, scale.astype(np.float32), factor, minimum.astype(np.float32), shift)

    def pack(self, codes: Codes) -> Bytes:
        """Codes -> rows of bytes."""
        rows, columns = codes.code.shape
        n = rows * columns // self.type.block_size
        out = np.zeros(n, self.type.layout)
        several = (n, -1) if self.span < self.type.block_size else n
        values = (codes.code.reshape(n, -1), codes.scale.reshape(several), codes.factor.reshape(n, -1))
        self.write(Fields(*values, codes.minimum.reshape(several), codes.shift.reshape(n, -1)), out)
        return out.view(np.uint8).reshape(rows, -1)

    def steps(self, codes: Codes) -> tuple[Floats, Floats]:
        """For each block, what a level is multiplied with and what is then taken away: (rows, blocks) float32."""
        each = self.span // self.block
        step = np.repeat(codes.scale, each, 1) * codes.factor.astype(np.float32)
        return step, np.repeat(codes.minimum, each, 1) * codes.shift.astype(np.float32)

    def values(self, codes: Codes) -> Floats:
        """What the codes stand for: (rows, columns) float32, up to the rounding of a product and a sum."""
        step, low = self.steps(codes)
        found = self.levels[codes.code].reshape(*step.shape, self.block) * step[..., None] - low[..., None]
        return found.reshape(codes.code.shape)
