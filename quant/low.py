"""One and two bits a weight: a scale a block, and -1 or 1 (Q1_0), or -1, 0, 1 or 2 (Q2_0) times it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmconv.quant.block import BlockType, Bytes, Floats


class Q1_0(BlockType):
    """The weight's sign times the block's mean magnitude; bit i of byte j is weight 8j + i."""

    name, ggml_id, block_size = "Q1_0", 41, 128
    layout = np.dtype([("d", "<f2"), ("qs", "u1", 16)])

    @classmethod
    def _encode(cls, rows: Floats, importance: NDArray[np.float32] | None, out: Bytes) -> None:
        from llmconv.quant.kernels import low, slabs

        for x, k, start, count in slabs.slabs(rows, None, 128):
            low.encode_q1_0(x, count, slabs.part(out, cls, k, start, count))

    @classmethod
    def _decode(cls, blocks: Bytes, out: NDArray[np.float32]) -> None:
        from llmconv.quant.kernels import low

        low.decode_q1_0(blocks.reshape(-1), out.reshape(-1))


class Q2_0(BlockType):
    """The nearest of -1, 0 and 1 times the block's largest magnitude; bits 2i of byte j are weight 4j + i, plus 1."""

    name, ggml_id, block_size = "Q2_0", 42, 64
    layout = np.dtype([("d", "<f2"), ("qs", "u1", 16)])

    @classmethod
    def _encode(cls, rows: Floats, importance: NDArray[np.float32] | None, out: Bytes) -> None:
        from llmconv.quant.kernels import flat, low

        low.encode_q2_0(flat(rows), out.reshape(-1))

    @classmethod
    def _decode(cls, blocks: Bytes, out: NDArray[np.float32]) -> None:
        from llmconv.quant.kernels import low

        low.decode_q2_0(blocks.reshape(-1), out.reshape(-1))
