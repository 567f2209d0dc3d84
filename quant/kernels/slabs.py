"""Rows in groups of sixteen, widened to float32: what the searches work on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.quant.block import BlockType
from llmconv.quant.kernels import flat, search
from llmconv.quant.kernels.fields import SUB

WEIGHTS = 1 << 18
"""Weights in a slab, about: small enough for the cache, large enough to make the calls' cost vanish (measured)."""
NONE = np.empty(0, np.float32)
"""No importance, no means."""

_KEPT = threading.local()


def scratch(use: str, size: int) -> NDArray[np.float32]:
    """`size` float32 of working memory, one array a thread and use: fresh pages would cost as much as the search."""
    kept: NDArray[np.float32] | None = getattr(_KEPT, use, None)
    if kept is None or kept.size < size:
        kept = np.empty(size, np.float32)
        setattr(_KEPT, use, kept)
    return kept[:size]


def slabs(
    rows: NDArray[Any], importance: NDArray[np.float32] | None, block: int
) -> Iterator[tuple[NDArray[np.float32], int, int, int]]:
    """(float32 weights, row length, first row, rows) for sixteen-row groups; the last is filled up with zeros.

    Without importance nothing depends on the column, so every block counts as a row.
    """
    k = block if importance is None else rows.shape[1]
    weights = flat(rows)
    n = weights.size // k
    step = 16 * max(1, WEIGHTS // (16 * k))
    for start in range(0, n, step):
        count = min(step, n - start)
        padded = -(-count // 16) * 16
        part = weights[start * k : (start + count) * k]
        if part.dtype != np.float32 or padded != count:
            wide = scratch("weights", padded * k)
            search.widen(part, part.size, wide)
            wide[part.size :] = 0
            part = wide
        yield part, k, start, count


def room(x: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    """An array for what a search finds in `x`, with sub-blocks of `n`."""
    return scratch("found", x.size // (16 * n) * int(SUB))


def means(x: NDArray[np.float32], k: int, span: int, factor: float) -> NDArray[np.float32]:
    """factor * mean square of every `span` columns, for sixteen rows abreast."""
    result = scratch("means", x.size // span)
    search.mean_squares(x, k, span, factor, result)
    return result


def part(out: NDArray[np.uint8], block: type[BlockType], k: int, start: int, count: int) -> NDArray[np.uint8]:
    """The bytes of rows `start : start + count` of length `k`, flat."""
    size = block.row_bytes(k)
    return out.reshape(-1)[start * size : (start + count) * size]
