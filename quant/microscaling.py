"""Microscaling types: 4-bit floats (E2M1) under a scale of one byte."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmconv.quant.block import BlockType, Bytes, Floats


class MXFP4(BlockType):
    """32 numbers under a power of two (E8M0); byte j of `qs` holds numbers j and j + 16."""

    name, ggml_id, block_size = "MXFP4", 39, 32
    layout = np.dtype([("e", "u1"), ("qs", "u1", 16)])

    @classmethod
    def _encode(cls, rows: Floats, importance: NDArray[np.float32] | None, out: Bytes) -> None:
        from llmconv.quant.kernels import flat, microscaling

        microscaling.encode_mxfp4(flat(rows), out.reshape(-1))

    @classmethod
    def _decode(cls, blocks: Bytes, out: NDArray[np.float32]) -> None:
        from llmconv.quant.kernels import microscaling

        microscaling.decode_mxfp4(blocks.reshape(-1), out.reshape(-1))


class NVFP4(BlockType):
    """Four times 16 numbers, each 16 under an unsigned E4M3 scale; byte j of their 8 holds numbers j and j + 8."""

    name, ggml_id, block_size = "NVFP4", 40, 64
    layout = np.dtype([("d", "u1", 4), ("qs", "u1", (4, 8))])

    @classmethod
    def _encode(cls, rows: Floats, importance: NDArray[np.float32] | None, out: Bytes) -> None:
        from llmconv.quant.kernels import flat, microscaling

        microscaling.encode_nvfp4(flat(rows), out.reshape(-1))

    @classmethod
    def _decode(cls, blocks: Bytes, out: NDArray[np.float32]) -> None:
        from llmconv.quant.kernels import microscaling

        microscaling.decode_nvfp4(blocks.reshape(-1), out.reshape(-1))
