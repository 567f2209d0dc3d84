"""Microscaling types: 4-bit floats (E2M1) under a scale of one byte."""

from __future__ import annotations

import numpy as np

from llmconv.quant.block import BlockType
from llmconv.quant.kernels import microscaling


class MXFP4(BlockType):
    """32 numbers under a power of two (E8M0); byte j of `qs` holds numbers j and j + 16."""

    name, ggml_id, block_size, kernels = "MXFP4", 39, 32, microscaling
    layout = np.dtype([("e", "u1"), ("qs", "u1", 16)])


class NVFP4(BlockType):
    """Four times 16 numbers, each 16 under an unsigned E4M3 scale; byte j of their 8 holds numbers j and j + 8."""

    name, ggml_id, block_size, kernels = "NVFP4", 40, 64, microscaling
    layout = np.dtype([("d", "u1", 4), ("qs", "u1", (4, 8))])
