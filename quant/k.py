"""K block types: super-blocks of 256 weights with integer scales for sub-blocks of 16 or 32.

Source of the layouts: ggml's `ggml-common.h`; of the search for scales: its `ggml-quants.c`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmconv.quant.block import BlockType, Bytes, Floats
from llmconv.quant.kernels.fields import BY_BOTH, BY_IMPORTANCE, BY_RMS, BY_SIZE, BY_SQUARE

_F2 = "<f2"


class _K(BlockType):
    block_size = 256
    uses_importance = True


class Q2_K(_K):
    """Sub-blocks of 16: a 4-bit scale and a 4-bit minimum, 2-bit integers."""

    name, ggml_id = "Q2_K", 10
    layout = np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", _F2), ("dmin", _F2)])

    @classmethod
    def _encode(cls, rows: Floats, importance: NDArray[np.float32] | None, out: Bytes) -> None:
        from llmconv.quant.kernels import kquants, search, slabs

        for x, k, start, count in slabs.slabs(rows, importance, 256):
            found, weighted = slabs.room(x, 16), importance is not None
            if importance is None:
                mode, means, trials = (BY_SIZE, slabs.NONE, (-0.5, 0.1, 15, True))
            else:
                mode, means, trials = (BY_BOTH, slabs.means(x, k, 256, 1), (-0.9, 0.05, 36, False))
            search.search_affine(
                x, k, 256, 16, mode, slabs.NONE if importance is None else importance, means, 256, 3, *trials, found
            )
            kquants.pack_q2_k(x, k, count, found, weighted, slabs.part(out, cls, k, start, count))

    @classmethod
    def _decode(cls, blocks: Bytes, out: NDArray[np.float32]) -> None:
        from llmconv.quant.kernels import kquants

        kquants.decode_q2_k(blocks.reshape(-1), out.reshape(-1))


class Q3_K(_K):
    """Sub-blocks of 16: a 6-bit scale, 3-bit integers whose high bits are kept apart."""

    name, ggml_id = "Q3_K", 11
    layout = np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", _F2)])

    @classmethod
    def _encode(cls, rows: Floats, importance: NDArray[np.float32] | None, out: Bytes) -> None:
        from llmconv.quant.kernels import q3, search, slabs

        for x, k, start, count in slabs.slabs(rows, importance, 256):
            blocks = slabs.part(out, cls, k, start, count)
            if importance is None:
                q3.encode_q3_k(x, count, blocks)
            else:
                found, means = slabs.room(x, 16), slabs.means(x, k, 256, 2)
                search.search_symmetric(x, k, 256, 16, BY_BOTH, importance, means, 256, 4, found)
                q3.pack_q3_k(x, k, count, found, blocks)

    @classmethod
    def _decode(cls, blocks: Bytes, out: NDArray[np.float32]) -> None:
        from llmconv.quant.kernels import kquants

        kquants.decode_q3_k(blocks.reshape(-1), out.reshape(-1))


class _Q45(_K):
    """Sub-blocks of 32: a 6-bit scale and a 6-bit minimum."""

    width: int

    @classmethod
    def _encode(cls, rows: Floats, importance: NDArray[np.float32] | None, out: Bytes) -> None:
        from llmconv.quant.kernels import kquants, search, slabs

        for x, k, start, count in slabs.slabs(rows, importance, 256):
            found, weighted = slabs.room(x, 32), importance is not None
            if importance is not None:
                mode, means, trials = BY_BOTH, slabs.means(x, k, 256, 2), (-0.9, 0.05, 36)
            elif cls.width == 4:
                mode, means, trials = BY_RMS, slabs.NONE, (-1.0, 0.1, 20)
            else:
                mode, means, trials = BY_RMS, slabs.NONE, (-0.5, 0.1, 15)
            weights = slabs.NONE if importance is None else importance
            top = 2**cls.width - 1
            search.search_affine(x, k, 256, 32, mode, weights, means, 256, top, *trials, False, found)
            kquants.pack_q45_k(x, k, count, found, weighted, cls.width, slabs.part(out, cls, k, start, count))

    @classmethod
    def _decode(cls, blocks: Bytes, out: NDArray[np.float32]) -> None:
        from llmconv.quant.kernels import kquants

        kquants.decode_q45_k(blocks.reshape(-1), cls.width, out.reshape(-1))


class Q4_K(_Q45):
    name, ggml_id, width = "Q4_K", 12, 4
    layout = np.dtype([("d", _F2), ("dmin", _F2), ("scales", "u1", 12), ("qs", "u1", 128)])


class Q5_K(_Q45):
    name, ggml_id, width = "Q5_K", 13, 5
    layout = np.dtype([("d", _F2), ("dmin", _F2), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)])


class Q6_K(_K):
    """Sub-blocks of 16: a signed 8-bit scale, 6-bit integers."""

    name, ggml_id = "Q6_K", 14
    layout = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", _F2)])

    @classmethod
    def _encode(cls, rows: Floats, importance: NDArray[np.float32] | None, out: Bytes) -> None:
        from llmconv.quant.kernels import kquants, search, slabs

        for x, k, start, count in slabs.slabs(rows, importance, 256):
            found = slabs.room(x, 16)
            if importance is None:
                search.search_symmetric(x, k, 256, 16, BY_SQUARE, slabs.NONE, slabs.NONE, 256, 32, found)
            else:
                search.search_symmetric(x, k, 256, 16, BY_IMPORTANCE, importance, slabs.NONE, 256, 32, found)
            kquants.pack_q6_k(x, k, count, found, slabs.part(out, cls, k, start, count))

    @classmethod
    def _decode(cls, blocks: Bytes, out: NDArray[np.float32]) -> None:
        from llmconv.quant.kernels import kquants

        kquants.decode_q6_k(blocks.reshape(-1), out.reshape(-1))
