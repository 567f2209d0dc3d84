"""Rows of lazy tensors taken, joined, put side by side and reordered: nothing is read before somebody asks for rows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from llmconv.errors import Unsupported, UsageError
from llmconv.formats.tensor import Tensor
from llmconv.quant.block import Bytes

__all__ = ["beside", "join", "swapped", "take"]

_MOST = 16 << 20
"""Bytes of rows that are read together to be reordered."""


def take(tensor: Tensor, start: int, count: int, shape: tuple[int, ...]) -> Tensor:
    """`count` consecutive rows from `start`, as `shape`.  Still an extent if it was one."""
    read, extent, begins, row_bytes = tensor.read, tensor.extent, tensor.begins, tensor.row_bytes
    if extent is not None:
        extent = dataclasses.replace(extent, offset=extent.offset + start * row_bytes, nbytes=count * row_bytes)
        begins = extent.path, extent.offset
    return dataclasses.replace(
        tensor, shape=shape, read=lambda a, b: read(start + a, start + b), extent=extent, begins=begins
    )


def join(parts: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    """All rows of the parts, one part after another, as `shape`."""
    first = parts[0]
    for part in parts[1:]:
        if part.type is not first.type or part.row_len != first.row_len:
            raise Unsupported(
                f"tensors {first.name!r} ({first.type.name}, rows of {first.row_len}) and {part.name!r} "
                f"({part.type.name}, rows of {part.row_len}) can't be joined; expected one type and row length"
            )
    starts = np.cumsum([0] + [part.n_rows for part in parts]).tolist()

    def read(start: int, stop: int) -> Bytes:
        pieces = [
            part.read(max(start - lo, 0), min(stop, hi) - lo)
            for part, lo, hi in zip(parts, starts, starts[1:], strict=False)
            if lo < stop and start < hi
        ]
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else first.read(0, 0)

    return Tensor(first.name, shape, first.type, read, begins=first.begins)


def beside(parts: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    """The rows of the parts one beside the other, as `shape`: a matrix that was cut by its columns."""
    first = parts[0]
    if any(part.type is not first.type or part.n_rows != first.n_rows for part in parts):
        raise Unsupported(f"the parts of tensor {first.name!r} differ in type or rows; they are of two models")
    width = sum(part.row_bytes for part in parts)
    if width != first.type.row_bytes(shape[-1]) or first.n_rows != math.prod(shape[:-1]):
        raise UsageError(f"the parts of tensor {first.name!r} don't make up {shape}; the configuration is another's")

    def read(start: int, stop: int) -> Bytes:
        return np.concatenate([part.read(start, stop) for part in parts], axis=1)

    return Tensor(first.name, shape, first.type, read, begins=first.begins)


def swapped(tensor: Tensor, outer: int, a: int, b: int, inner: int) -> Tensor:
    """Rows seen as (outer, a, b, inner), reordered to (outer, b, a, inner)."""
    if outer * a * b * inner != tensor.n_rows:
        raise UsageError(
            f"tensor {tensor.name!r} has {tensor.n_rows} rows, expected {outer} x {a} x {b} x {inner}; "
            "the configuration does not fit the weights"
        )
    source, group = tensor.read, a * b * inner

    def read(start: int, stop: int) -> Bytes:
        if stop <= start:
            return source(0, 0)
        long = inner * tensor.row_bytes >= 1 << 14 and (tensor.extent is not None or group * tensor.row_bytes > _MOST)
        if long:  # read each run by itself; rows that are computed cost too much a call
            out = np.empty((stop - start, tensor.row_bytes), np.uint8)
            row = start
            while row < stop:
                run, offset = divmod(row, inner)
                o, rest = divmod(run, a * b)
                j, i = divmod(rest, a)
                count = min(inner - offset, stop - row)
                first = ((o * a + i) * b + j) * inner + offset
                out[row - start : row - start + count] = source(first, first + count)
                row += count
            return out
        lo, hi = start // group, -(-stop // group)
        rows = source(lo * group, hi * group)
        width = rows.shape[1]
        moved = rows.reshape(hi - lo, a, b, inner * width).swapaxes(1, 2).reshape(-1, width)
        return moved[start - lo * group : stop - lo * group]

    return dataclasses.replace(tensor, read=read, extent=None)
