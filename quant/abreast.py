"""Rows of blocks laid sixteen abreast, which is how one input is multiplied with them, and back: see the kernels'
`single.abreast` for the layout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmconv.quant.block import BlockType, Bytes
from llmconv.quant.kernels import one_token

__all__ = ["ROWS", "lay", "rows", "take_back"]

ROWS = 16


def _fields(type: type[BlockType]) -> tuple[int, int, int]:
    """How wide the narrow numbers that a block begins with are, where they end, and the bytes of those at its end."""
    layout = type.layout
    assert layout.fields is not None
    numbers = [(at, kind.itemsize) for kind, at, *_ in layout.fields.values() if kind.shape == () and kind.itemsize < 4]
    first = [(at, width) for at, width in numbers if at < 4]
    width = first[0][1] if first else 2
    return width, width * len(first), sum(width for at, width in numbers if at >= 4)


def lay(type: type[BlockType], rows: Bytes, out: Bytes) -> None:
    """rows: (n, row bytes), contiguous.   out: as many rows, filled up to a multiple of sixteen with zeros."""
    out[len(rows) // ROWS * ROWS :] = 0  # the last sixteen, of which some may be none
    _turn(type, rows, out, len(rows), rows.shape[1], False)


def take_back(type: type[BlockType], laid: Bytes, out: Bytes) -> None:
    """The other way: `out` (n, row bytes) from what `lay` made of such rows."""
    _turn(type, laid, out, len(out), out.shape[1], True)


def rows(type: type[BlockType], laid: Bytes, wanted: Sequence[int]) -> Bytes:
    """Some rows of what `lay` made, (len(wanted), row bytes)."""
    out, near = np.empty((len(wanted), laid.shape[1]), np.uint8), np.empty((ROWS, laid.shape[1]), np.uint8)
    for i, row in enumerate(wanted):
        first = row // ROWS * ROWS
        take_back(type, laid[first : first + ROWS], near)
        out[i] = near[row - first]
    return out


def _turn(type: type[BlockType], source: Bytes, out: Bytes, rows: int, row_bytes: int, back: bool) -> None:
    size = type.layout.itemsize
    one_token.lay(source.reshape(-1), out.reshape(-1), rows, row_bytes, size, *_fields(type), int(back))
