"""Weights in floats that lie on the grid of a block type: of models trained for it, or decoded from it.

A tensor lies on a type's grid when there are blocks whose values, rounded to the tensor's own type, are its weights,
every one.  The types' own encoders find such blocks where they were made as they make them; Q4_0's scale is searched
for besides, as blocks of models that were trained for it need not hold a -8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import block, plain
from llmconv.quant.block import Bytes

__all__ = ["GRIDS", "encoder", "grid_of"]

GRIDS = ("TQ2_0", "MXFP4", "Q4_0", "NVFP4", "Q4_K", "Q4_1", "Q5_0", "Q5_K", "Q5_1", "Q6_K", "Q8_0")
"""Types that are looked for, the smallest first."""
_FLOATS = (plain.F32, plain.F16, plain.BF16)
_FIRST = 1 << 14
"""Weights that are tried first: most tensors lie on no grid, and their first rows show it."""
_SLAB = 1 << 19


def grid_of(tensor: Tensor) -> BlockClass | None:
    """The smallest type on whose grid all weights of a tensor lie, or None.  The tensor is read."""
    if tensor.type not in _FLOATS or not tensor.n_elements:
        return None
    few = max(1, _FIRST // tensor.row_len)
    kinds = [block.by_name(name) for name in GRIDS]
    for kind in kinds:
        if tensor.row_len % kind.block_size == 0 and _lie(tensor, kind, few) and _lie(tensor, kind, tensor.n_rows):
            return kind
    return None


def _lie(tensor: Tensor, kind: BlockClass, stop: int) -> bool:
    """Whether the first rows lie on a type's grid."""
    step, stop = max(1, _SLAB // tensor.row_len), min(stop, tensor.n_rows)
    encode = encoder(kind)
    for start in range(0, stop, step):
        rows = tensor.rows(start, min(stop, start + step))
        if not np.isfinite(rows).all() or not rows.any():
            return False  # of zeros alone nothing is known
        if not np.array_equal(kind.decode(encode(rows)).astype(rows.dtype), rows):
            return False
    return True


def encoder(kind: BlockClass) -> Callable[[NDArray[Any]], Bytes]:
    """What makes the blocks of weights that lie on a type's grid."""
    return _q4_0 if kind.name == "Q4_0" else kind.encode


def _q4_0(rows: NDArray[Any]) -> Bytes:
    """Blocks of Q4_0: as ggml makes them, else with a scale of which the largest weight is another multiple."""
    kind = block.by_name("Q4_0")
    out = kind.encode(rows)
    exact = rows.astype(np.float32).reshape(-1, 32)
    wrong = np.flatnonzero((kind.decode(out).astype(rows.dtype) != rows).reshape(-1, 32).any(axis=1))
    made = out.reshape(-1, kind.layout.itemsize)
    for times in (8, 7, -7, 6, -6, 5, -5, 4, -4, 3, -3, 2, -2, 1, -1):
        if not wrong.size:
            break
        x = exact[wrong]
        largest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
        with np.errstate(over="ignore", under="ignore"):
            scale = (largest / np.float32(times)).astype(np.float16)
        d = scale.astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            q = np.nan_to_num(np.rint(x / d), nan=0, posinf=99, neginf=99)
        fits = (q >= -8).all(axis=1) & (q <= 7).all(axis=1)
        fits &= ((q * d).astype(rows.dtype) == x.astype(rows.dtype)).all(axis=1)
        codes = (q[fits] + 8).astype(np.uint8)
        found = np.empty((int(fits.sum()), kind.layout.itemsize), np.uint8)
        found[:, :2] = scale[fits].view(np.uint8).reshape(-1, 2)
        found[:, 2:] = codes[:, :16] | codes[:, 16:] << np.uint8(4)
        made[wrong[fits]] = found
        wrong = wrong[~fits]
    return out
