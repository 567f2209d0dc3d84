"""Weights in floats that lie on the grid of a block type: of models trained for it, or decoded from it.

A tensor lies on a type's grid when there are blocks whose values, rounded to the tensor's own type, are its weights,
every one.  The types' own encoders find such blocks where nothing was rounded and they were made as the encoder makes
them; for the others, scales are searched for (`quant.rounding.lattice`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import block, plain
from llmconv.quant.block import Bytes

__all__ = ["GRIDS", "encoder", "grid_of"]

GRIDS = (
    "Q1_0", "TQ2_0", "Q2_0", "Q2_K", "Q3_K", "MXFP4", "IQ4_XS", "Q4_0", "NVFP4", "Q4_K", "IQ4_NL", "Q4_1", "Q5_0",
    "Q5_K", "Q5_1", "Q6_K", "Q8_0",
)  # fmt: skip
"""Types that are looked for, the smallest first; TQ1_0 says what TQ2_0 does (`grid_of`)."""
_FLOATS = (plain.F32, plain.F16, plain.BF16)
_LOST = {np.dtype(np.float32): 2.0**-24, np.dtype(np.float16): 2.0**-11, np.dtype(ml_dtypes.bfloat16): 2.0**-8}
"""How much of a weight its rounding takes away at most."""
_FIRST = 1 << 9
"""Weights that are tried first: most tensors lie on no grid, and the first of them that are not 0 show it."""
_SLAB = 1 << 19


def grid_of(tensor: Tensor, ternary: str = "TQ2_0") -> BlockClass | None:
    """The smallest type on whose grid all weights of a tensor lie, or None.  The tensor is read.

    ternary: TQ1_0 or TQ2_0, which say the same numbers in 1.69 and 2.06 bits; computing goes faster with TQ2_0.
    """
    if tensor.type not in _FLOATS or not tensor.n_elements:
        return None
    few = _first(tensor)
    if few is None:
        return None
    for name in GRIDS:
        kind = block.by_name(ternary if name == "TQ2_0" else name)
        if few.shape[1] % kind.block_size == 0 and _could(few, kind) and _lie(few, kind) and _all_lie(tensor, kind):
            return kind
    return None


def _first(tensor: Tensor) -> NDArray[Any] | None:
    """The first few weights of the first row that is not all 0; None where there is none."""
    step = max(1, _SLAB // tensor.row_len)
    for start in range(0, tensor.n_rows, step):
        rows = tensor.rows(start, min(tensor.n_rows, start + step))
        filled = np.flatnonzero(rows.any(axis=1))
        if filled.size:
            row = rows[filled[0] : filled[0] + 1]
            at = int(np.flatnonzero(row[0])[0]) // 256 * 256
            return row[:, at : at + _FIRST] if row.shape[1] % 256 == 0 else row
    return None


def _could(few: NDArray[Any], kind: BlockClass) -> bool:
    """Whether weights under one scale are far enough apart for levels of a type, for all that their rounding hides.

    Those of most tensors aren't, and so much is seen without looking for scales.
    """
    from llmconv.quant.rounding.families import GRIDS as grids

    grid = grids.get(kind.name)
    if grid is None or grid.book is not None or few.shape[1] % grid.block:
        return True
    x = np.sort(few.astype(np.float32).reshape(-1, grid.block), axis=1)
    gaps, wide = np.diff(x), x[:, -1] - x[:, 0]
    least = np.where(gaps > 0, gaps, np.float32(np.inf)).min(axis=1)
    hidden = np.float32(4 * _LOST[few.dtype]) * np.maximum(-x[:, 0], x[:, -1])
    apart = np.diff(grid.levels)
    share = apart[apart > 0].min() / (grid.levels[-1] - grid.levels[0])
    return bool((least + hidden >= (wide - hidden) * share).all())


def _all_lie(tensor: Tensor, kind: BlockClass) -> bool:
    step = max(1, _SLAB // tensor.row_len)
    slabs = ((start, min(tensor.n_rows, start + step)) for start in range(0, tensor.n_rows, step))
    return all(_lie(tensor.rows(*slab), kind) for slab in slabs)


def _lie(rows: NDArray[Any], kind: BlockClass) -> bool:
    """Whether rows lie on a type's grid."""
    if not np.isfinite(rows).all():
        return False
    return np.array_equal(kind.decode(encoder(kind)(rows)).astype(rows.dtype), rows)


def encoder(kind: BlockClass) -> Callable[[NDArray[Any]], Bytes]:
    """What makes the blocks of weights that lie on a type's grid."""
    from llmconv.quant.rounding.families import GRIDS as grids  # makes the tables of the codebook types
    from llmconv.quant.rounding.lattice import mended, searched

    grid = grids.get(kind.name)
    if grid is None or not searched(grid):
        return kind.encode
    return lambda rows: mended(grid, rows, kind.encode(rows))
