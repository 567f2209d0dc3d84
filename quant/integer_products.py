"""Products of rounded inputs and quantized weights in integers, on the CPU: what ggml computes there.

Inputs are rounded to signed bytes as ggml rounds them: under a float16 scale for 32 of them (its Q8_0) against types
with blocks of 32 weights, a float32 scale for 256 (its Q8_K) against types with blocks of 256.  The products inside a
block are exact; blocks are added in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmconv.errors import UsageError
from llmconv.quant.block import BlockType, Bytes, Floats
from llmconv.quant.kernels import integer_products as kernels
from llmconv.quant.kernels.terms.forms import FORMS, OUTPUTS_ABREAST, ROWS_ABREAST

__all__ = ["TYPES", "Rounded", "multiply", "round_inputs"]

CHUNK = 256
"""Columns that lie together in rounded inputs; the greatest block."""


TYPES = tuple(FORMS)
"""The types that have such products, by name."""


@dataclass(frozen=True)
class Rounded:
    """Inputs as signed bytes.

    shape: (n, k) of the inputs.   block: how many of them share a scale, 32 or 256.
    levels: (chunks, rows, 64) int32, four bytes each.   scales: (chunks, rows, 256 / block) float32.
    sums: (chunks, rows, 8) int32, the sums of 16 bytes and of the next 16 in two halves.
    Chunks are of 256 columns, the last perhaps of fewer; there are rows for a multiple of four, those from n on unused.
    """

    shape: tuple[int, int]
    block: int
    levels: NDArray[np.int32]
    scales: NDArray[np.float32]
    sums: NDArray[np.int32]


def round_inputs(x: Floats, block: int) -> Rounded:
    """(n, k) float32, k a multiple of `block` -> bytes.

    block: 32 or 256.  A block that holds an infinity or a NaN gets the scale NaN, so that its row's results are NaN; so
    does, with 32, one whose scale is beyond float16 (magnitudes above 8.3 million).
    """
    n, k = x.shape
    if block not in (32, CHUNK) or k % block:
        raise UsageError(f"inputs are rounded in blocks of 32 or {CHUNK}, and {k} columns are not blocks of {block}")
    chunks, rows = -(-k // CHUNK), -(-n // ROWS_ABREAST) * ROWS_ABREAST
    levels = np.empty((chunks, rows, CHUNK // 4), np.int32)
    scales = np.empty((chunks, rows, CHUNK // block), np.float32)
    sums = np.empty((chunks, rows, CHUNK // 32), np.int32)
    results = {"rounded": levels.reshape(-1).view(np.uint8), "scales": scales.reshape(-1), "sums": sums.reshape(-1)}
    flat = np.ascontiguousarray(x, np.float32).reshape(-1)
    kernels.round_inputs(flat, n=n, padded=rows, k=k, block=block, **results)
    return Rounded((n, k), block, levels, scales, sums)


def multiply(
    x: Rounded, type: type[BlockType], blocks: Bytes, out: NDArray[np.float32], first: int = 0, stop: int | None = None
) -> None:
    """Rounded inputs times weights, transposed: `out[:, first:stop] = x @ decode(blocks)[first:stop].T`.

    type: one of TYPES, with blocks as long as the inputs'.   blocks: (n_out, row bytes) uint8, C-contiguous.
    out: (n, n_out) float32, C-contiguous.   first: a multiple of 16.   stop: another, or n_out (None).
    """
    (n, k), n_out, form = x.shape, len(blocks), FORMS[type.name]
    if x.block != type.block_size or blocks.shape[1] != type.row_bytes(k) or out.shape != (n, n_out):
        raise UsageError(
            f"{n} x {k} inputs in blocks of {x.block}, {blocks.shape} bytes of {type.name} and results of {out.shape} "
            "don't fit together"
        )
    if n_out < OUTPUTS_ABREAST:
        filled = np.zeros((OUTPUTS_ABREAST, blocks.shape[1]), np.uint8)
        filled[:n_out] = blocks
        wide = np.empty((n, len(filled)), np.float32)
        multiply(x, type, filled, wide)
        out[...] = wide[:, :n_out]
        return
    rows = x.levels.shape[1]
    wanted = {"n_out": n_out, "row_bytes": blocks.shape[1], "first": first, "stop": n_out if stop is None else stop}
    inputs = {"rounded": x.levels.reshape(-1), "scales": x.scales.reshape(-1), "sums": x.sums.reshape(-1)}
    sizes = {"block": x.block, "size": type.layout.itemsize, "n": n, "padded": rows, "k": k}
    results = {"results": np.empty(16 * rows, np.float32), "y": out.reshape(-1)}
    kernels.multiply(blocks.reshape(-1), **wanted, **form._asdict(), **inputs, **sizes, **results)
