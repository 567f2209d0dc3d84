"""One and two bits a weight: a scale a block, and -1 or 1 (Q1_0), or -1, 0, 1 or 2 (Q2_0) times it."""

from __future__ import annotations

import numpy as np

from llmconv.quant.block import BlockType, Bytes
from llmconv.quant.kernels import low
from llmconv.quant.slabs import Abreast, Slab


class Q1_0(Abreast):
    """The weight's sign times the block's mean magnitude; bit i of byte j is weight 8j + i."""

    name, ggml_id, block_size, kernels = "Q1_0", 41, 128, low
    layout = np.dtype([("d", "<f2"), ("qs", "u1", 16)])

    @classmethod
    def _encode_slab(cls, slab: Slab, out: Bytes) -> None:
        low.encode_q1_0(slab.x, slab.count, out)


class Q2_0(BlockType):
    """The nearest of -1, 0 and 1 times the block's largest magnitude; bits 2i of byte j are weight 4j + i, plus 1."""

    name, ggml_id, block_size, kernels = "Q2_0", 42, 64, low
    layout = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
