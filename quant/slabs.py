"""Rows in groups of sixteen, widened to float32: what the searches work on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmconv.quant.block import BlockType, Bytes, Floats
from llmconv.quant.kernels import flat, search
from llmconv.quant.kernels.terms.fields import BY_BOTH, SUB

__all__ = ["NONE", "Abreast", "Slab", "Trials", "Weighing"]

WEIGHTS = 1 << 18
"""Weights in a slab, about: small enough for the cache, large enough to make the calls' cost vanish (measured)."""
NONE = np.empty(0, np.float32)
"""No importance, no means."""

_KEPT = threading.local()


class Weighing(NamedTuple):
    """How a weight counts in the error that a search lowers.

    by: BY_RMS, BY_SIZE, ... of `kernels.fields`.   factor, span: for BY_BOTH, factor * the mean square of `span`
    columns (0: of the row) is what the weight's own square is added to.
    """

    by: int
    factor: float = 0
    span: int = 0


class Trials(NamedTuple):
    """The scales that a search with a minimum tries: range / (top + first + step * i), i = 0 … steps.

    absolute: errors count as they are, not squared.
    """

    first: float
    step: float
    steps: int
    absolute: bool = False


@dataclass(frozen=True)
class Slab:
    """Some rows.

    x: their float32 weights, flat, of sixteen-row groups; the last group is filled up with zeros.
    importance: (k,) or NONE.   block: weights in a block.   k: row length.   start, count: the first row and how many.
    """

    x: NDArray[np.float32]
    importance: NDArray[np.float32]
    block: int
    k: int
    start: int
    count: int

    def affine(self, sub: int, top: int, weighing: Weighing, trials: Trials) -> NDArray[np.float32]:
        """What `search_affine` finds for sub-blocks of `sub` weights as integers 0 … top; see `kernels.fields`."""
        found = self._room(sub)
        search.search_affine(self.x, top=top, found=found, **self._how(sub, weighing), **trials._asdict())
        return found

    def symmetric(self, sub: int, top: int, weighing: Weighing) -> NDArray[np.float32]:
        """What `search_symmetric` finds for sub-blocks of `sub` weights as integers -top … top - 1."""
        found = self._room(sub)
        search.search_symmetric(self.x, top=top, found=found, **self._how(sub, weighing))
        return found

    def _room(self, sub: int) -> NDArray[np.float32]:
        return _scratch("found", self.x.size // (16 * sub) * int(SUB))

    def _how(self, sub: int, weighing: Weighing) -> dict[str, Any]:
        means, span = NONE, weighing.span or self.k
        if weighing.by == BY_BOTH:
            means = _scratch("means", self.x.size // span)
            search.mean_squares(self.x, k=self.k, span=span, factor=weighing.factor, means=means)
        given = {"importance": self.importance, "mode": weighing.by, "means": means, "span": span}
        return {"k": self.k, "block": self.block, "n": sub, **given}


class Abreast(BlockType):
    """Common base of types that are encoded sixteen rows at a time."""

    @classmethod
    def _encode(cls, rows: Floats, importance: NDArray[np.float32] | None, out: Bytes) -> None:
        k = cls.block_size if importance is None else rows.shape[1]
        size, packed = cls.row_bytes(k), out.reshape(-1)
        for slab in _slabs(rows, importance, cls.block_size, k):
            cls._encode_slab(slab, packed[slab.start * size : (slab.start + slab.count) * size])

    @classmethod
    def _encode_slab(cls, slab: Slab, out: Bytes) -> None:
        """Fill `out`, flat; by default with the kernel `encode_` and the type's name in small letters."""
        cls._kernel("encode")(slab.x, importance=slab.importance, columns=slab.k, height=slab.count, out=out)


def _slabs(rows: Floats, importance: NDArray[np.float32] | None, block: int, k: int) -> Iterator[Slab]:
    """Without importance nothing depends on the column, so every block counts as a row (`k` is then a block)."""
    given = NONE if importance is None else importance
    weights = flat(rows)
    n = weights.size // k
    step = 16 * max(1, WEIGHTS // (16 * k))
    for start in range(0, n, step):
        count = min(step, n - start)
        padded = -(-count // 16) * 16
        part = weights[start * k : (start + count) * k]
        if part.dtype != np.float32 or padded != count:
            wide = _scratch("weights", padded * k)
            search.widen(part, part.size, wide)
            wide[part.size :] = 0
            part = wide
        yield Slab(part, given, block, k, start, count)


def _scratch(use: str, size: int) -> NDArray[np.float32]:
    """`size` float32 of working memory, one array a thread and use: fresh pages would cost as much as the search."""
    kept: NDArray[np.float32] | None = getattr(_KEPT, use, None)
    if kept is None or kept.size < size:
        kept = np.empty(size, np.float32)
        setattr(_KEPT, use, kept)
    return kept[:size]
