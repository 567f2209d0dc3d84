"""Four bits a weight on an uneven scale: sixteen values, dense near zero, times a scale for 32 weights.

Byte j of 32 weights holds the indices of weights j (low bits) and j + 16.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmconv.quant.block import BlockType, Bytes, Floats


class IQ4_NL(BlockType):
    """32 weights under a float16 scale."""

    name, ggml_id, block_size = "IQ4_NL", 20, 32
    layout = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
    uses_importance = True

    @classmethod
    def _encode(cls, rows: Floats, importance: NDArray[np.float32] | None, out: Bytes) -> None:
        from llmconv.quant.kernels import iq4, slabs

        given = slabs.NONE if importance is None else importance
        for x, k, start, count in slabs.slabs(rows, importance, 32):
            iq4.encode_iq4_nl(x, given, k, count, slabs.part(out, cls, k, start, count))

    @classmethod
    def _decode(cls, blocks: Bytes, out: NDArray[np.float32]) -> None:
        from llmconv.quant.kernels import iq4

        iq4.decode_iq4_nl(blocks.reshape(-1), out.reshape(-1))


class IQ4_XS(BlockType):
    """Eight times 32 weights under 6-bit scales (minus 32) times one float16.

    A scale's low four bits are in `scales_l` (two a byte), its high two in `scales_h`.
    """

    name, ggml_id, block_size = "IQ4_XS", 23, 256
    layout = np.dtype([("d", "<f2"), ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", (8, 16))])
    uses_importance = True

    @classmethod
    def _encode(cls, rows: Floats, importance: NDArray[np.float32] | None, out: Bytes) -> None:
        from llmconv.quant.kernels import iq4, slabs

        given = slabs.NONE if importance is None else importance
        for x, k, start, count in slabs.slabs(rows, importance, 256):
            iq4.encode_iq4_xs(x, given, k, count, slabs.part(out, cls, k, start, count))

    @classmethod
    def _decode(cls, blocks: Bytes, out: NDArray[np.float32]) -> None:
        from llmconv.quant.kernels import iq4

        iq4.decode_iq4_xs(blocks.reshape(-1), out.reshape(-1))
