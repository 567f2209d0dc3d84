"""Ternary types (for BitNet b1.58, TriLMs): -1, 0 or 1 times the largest magnitude of 256 weights."""

from __future__ import annotations

import numpy as np

from llmconv.quant.block import BlockType
from llmconv.quant.kernels import ternary


class TQ1_0(BlockType):
    """Five weights a byte: their base-3 number b is stored as ceil(256 b / 243), so that multiplying by 3
    moves the next digit past the byte.  `qs` holds weights 0-239, `qh` (four a byte) the last 16."""

    name, ggml_id, block_size, kernels = "TQ1_0", 34, 256, ternary
    layout = np.dtype([("qs", "u1", 48), ("qh", "u1", 4), ("d", "<f2")])


class TQ2_0(BlockType):
    """Two bits a weight: byte j of half h holds weights 128h + j + 32n (n = 0 … 3), each plus 1."""

    name, ggml_id, block_size, kernels = "TQ2_0", 35, 256, ternary
    layout = np.dtype([("qs", "u1", 64), ("d", "<f2")])
