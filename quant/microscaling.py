"""Microscaling types: 4-bit floats (E2M1) under a scale of one byte."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmconv.quant.block import BlockType, Bytes, Floats

VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
"""Twice the number that each 4-bit code stands for; the scales' decoded values are halved in return, as in ggml."""


def _log2_rounds_up() -> NDArray[np.int32]:
    """See LOG2_ROUNDS_UP: log2(1 - n 2^-24) is tiny beside a large exponent, and float32 drops it."""
    steps = np.arange(1, 129)
    table = np.full(278, 0x800000, np.int32)  # the last one is for infinity and NaN
    for exponent in range(-149, 128):
        logs = (np.log2(1 - steps * 2.0**-24) + (exponent + 1)).astype(np.float32)
        table[exponent + 149] = 0x800000 - np.count_nonzero(logs >= exponent + 1)
    return table


LOG2_ROUNDS_UP = _log2_rounds_up()
"""At exponent + 149, the mantissa from which the reference's floor(log2f(x)) is one more than the exponent of x."""


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
