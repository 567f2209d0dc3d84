"""Grids of folders' integers: a scale for 64 or 128 columns, or one for a row, as block types and files of none have.

Each is a `BlockType` of its own that no file names.  A group's bytes are blocks of the type with the same numbers whose
scales agree, so that they are read as that type.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.quant import int8
from llmconv.quant.block import BlockType, Bytes, by_name
from llmconv.quant.kernels.terms import rules
from llmconv.quant.rounding.families import GRIDS
from llmconv.quant.rounding.grid import Codes, Fields, Grid

__all__ = ["Grouped", "Rows8", "grid_of", "grouped", "int8_rows", "stored_as"]

Blocks = NDArray[np.void]
Floats = NDArray[np.float32]

_MOST_F16 = 65504.0
_INT8 = np.dtype([("d", "<f4"), ("qs", "i1", (32,))])


class Grouped(BlockType):
    """Rows that a search rounds on `grid`.   base: the type as which their bytes are read; None: no other."""

    grid: Grid
    base: type[BlockType] | None = None


class Rows8(Grouped):
    """Rows in 8 bits under a scale of `scales`, which stands in all of their blocks."""

    scales: np.dtype[Any]

    @classmethod
    def numbers(cls, blocks: Bytes) -> tuple[NDArray[np.int8], NDArray[Any]]:
        """Rows of bytes -> (n, k) integers and (n, 1) scales."""
        fields = np.ascontiguousarray(blocks).view(_INT8)
        return fields["qs"].reshape(len(blocks), -1), fields["d"][:, :1].astype(cls.scales)


def grid_of(kind: type[BlockType]) -> Grid | None:
    """The grid of a type; None where it has none of its own."""
    return kind.grid if issubclass(kind, Grouped) else GRIDS.get(kind.name)


def stored_as(kind: type[BlockType]) -> type[BlockType]:
    """The type as which others read the bytes."""
    return kind.base or kind if issubclass(kind, Grouped) else kind


@functools.cache
def grouped(name: str, columns: int) -> type[BlockType]:
    """Blocks of Q4_0, Q4_1, Q5_0 or Q5_1 whose scales and minima agree over so many columns, a multiple of 32."""
    base, own = by_name(name), GRIDS[name]
    count = columns // base.block_size
    blocks = np.dtype([("parts", base.layout, (count,))])

    class Kind(Grouped):
        block_size, layout = columns, blocks

        @classmethod
        def _encode(cls, rows: NDArray[Any], importance: Any, out: Bytes) -> None:
            out[...] = cls.grid.pack(_nearest(cls.grid, rows.astype(np.float32, copy=False)))

        @classmethod
        def _decode(cls, blocks: Bytes, out: Floats) -> None:
            base.decode(blocks, out)

    def read(found: Blocks) -> Fields:
        n, parts = len(found), np.ascontiguousarray(found["parts"]).reshape(-1)
        fields = own.read(parts)
        minimum = None if fields.minimum is None else fields.minimum.reshape(n, count)[:, 0]
        return Fields(fields.code.reshape(n, columns), fields.scale.reshape(n, count)[:, 0], minimum=minimum)

    def write(fields: Fields, out: Blocks) -> None:
        assert fields.minimum is not None
        parts = np.zeros(len(out) * count, base.layout)
        scale, minimum = (np.repeat(a.reshape(-1), count) for a in (fields.scale, fields.minimum))
        own.write(Fields(fields.code.reshape(len(parts), -1), scale, minimum=minimum), parts)
        out["parts"] = parts.reshape(len(out), count)

    Kind.name, Kind.base = f"{name} in groups of {columns}", base
    Kind.grid = Grid(Kind, columns, columns, own.levels, own.factors, own.shifts, read, write)
    return Kind


def _nearest(grid: Grid, rows: Floats) -> Codes:
    """Each weight rounded by itself: the largest on the outermost level, or the two ends on the outer ones."""
    n = len(rows)
    x = rows.reshape(n, -1, grid.span)
    low, high = x.min(-1), x.max(-1)
    affine = grid.shifts[1] > 0
    wanted = (high - low) / grid.levels[-1] if affine else np.where(-low > high, low, high) / grid.levels[0]
    scale, minimum = _half(wanted), _half(-low) if affine else np.zeros_like(low)
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.nan_to_num((x + minimum[..., None]) / scale[..., None], posinf=0, neginf=0)
    code = np.clip(np.rint(level) - grid.levels[0], 0, len(grid.levels) - 1).astype(np.int32)
    ones = np.ones(scale.shape, np.int32)
    return Codes(code.reshape(n, -1), scale, ones, minimum, ones * grid.shifts[1])


def _half(x: NDArray[Any]) -> Floats:
    found: Floats = np.clip(x, -_MOST_F16, _MOST_F16).astype(np.float16).astype(np.float32)
    return found


@functools.cache
def int8_rows(dtype: np.dtype[Any]) -> type[Rows8]:
    """Rows in 8 bits under one scale, `int8.encode`'s of weights of that dtype: it stays as it is."""

    class Kind(Rows8):
        block_size, layout = 32, _INT8
        scales = int8.encode(np.zeros((1, 1), dtype))[1].dtype

        @classmethod
        def _encode(cls, rows: NDArray[Any], importance: Any, out: Bytes) -> None:
            code, scale = int8.encode(rows.astype(dtype))
            blocks = out.reshape(-1).view(_INT8).reshape(len(rows), -1)
            blocks["d"], blocks["qs"] = scale.astype(np.float32), code.reshape(*blocks.shape, 32)

        @classmethod
        def _decode(cls, blocks: Bytes, out: Floats) -> None:
            fields = np.ascontiguousarray(blocks).reshape(-1).view(_INT8)
            out[...] = (fields["qs"] * fields["d"][:, None]).reshape(out.shape)

    def read(found: Blocks) -> Fields:
        return Fields(found["qs"].astype(np.int32) + 127, found["d"])

    def write(fields: Fields, out: Blocks) -> None:
        out["d"], out["qs"] = fields.scale, (fields.code - 127).astype(np.int8)

    Kind.name = f"INT8 rows of {dtype.name}"
    levels = np.arange(-127, 128, dtype=np.float32)
    Kind.grid = Grid(Kind, 32, 32, levels, (1, 1), (0, 0), read, write, rule=rules.FIXED)
    return Kind
