"""Legacy block types: 32 weights with one float16 scale, or scale and minimum.  Source: ggml's `ggml-common.h`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from llmconv.quant.block import BlockType, Bytes, Floats
from llmconv.quant.kernels.fields import BY_BOTH


class _Quants(BlockType):
    """Common base of the types of 4 and 5 bits: scale, then minimum (`_1`), then fifth bits, then nibbles."""

    block_size = 32
    uses_importance = True
    width: ClassVar[int]
    affine: ClassVar[bool] = False

    @classmethod
    def _encode(cls, rows: Floats, importance: NDArray[np.float32] | None, out: Bytes) -> None:
        from llmconv.quant.kernels import flat, legacy

        if importance is None:
            encode = legacy.encode_affine if cls.affine else legacy.encode_signed
            encode(flat(rows), cls.width, out.reshape(-1))
        else:
            cls._encode_weighted(rows, importance, out)

    @classmethod
    def _encode_weighted(cls, rows: Floats, importance: NDArray[np.float32], out: Bytes) -> None:
        from llmconv.quant.kernels import legacy, search, slabs

        for x, k, start, count in slabs.slabs(rows, importance, 32):
            found, means = slabs.room(x, 32), slabs.means(x, k, k, 1)
            if cls.affine:
                search.search_affine(
                    x, k, 32, 32, BY_BOTH, importance, means, k, 2**cls.width - 1, -0.9, 0.05, 36, False, found
                )
            else:
                top = 2 ** (cls.width - 1)
                search.search_symmetric(x, k, 32, 32, BY_BOTH, importance, means, k, top, found)
            legacy.pack(x, k, count, cls.width, cls.affine, found, slabs.part(out, cls, k, start, count))

    @classmethod
    def _decode(cls, blocks: Bytes, out: NDArray[np.float32]) -> None:
        from llmconv.quant.kernels import legacy

        legacy.decode_quants(blocks.reshape(-1), cls.width, cls.affine, out.reshape(-1))


class Q4_0(_Quants):
    name, ggml_id, width = "Q4_0", 2, 4
    layout = np.dtype([("d", "<f2"), ("qs", "u1", 16)])


class Q4_1(_Quants):
    name, ggml_id, width, affine = "Q4_1", 3, 4, True
    layout = np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)])


class Q5_0(_Quants):
    name, ggml_id, width = "Q5_0", 6, 5
    layout = np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])


class Q5_1(_Quants):
    name, ggml_id, width, affine = "Q5_1", 7, 5, True
    layout = np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])


class Q8_0(BlockType):
    """Eight-bit integers and a scale; importance changes nothing."""

    name, ggml_id, block_size = "Q8_0", 8, 32
    layout = np.dtype([("d", "<f2"), ("qs", "i1", 32)])

    @classmethod
    def _encode(cls, rows: Floats, importance: NDArray[np.float32] | None, out: Bytes) -> None:
        from llmconv.quant.kernels import flat, legacy

        legacy.encode_q8_0(flat(rows), out.reshape(-1))

    @classmethod
    def _decode(cls, blocks: Bytes, out: NDArray[np.float32]) -> None:
        from llmconv.quant.kernels import legacy

        legacy.decode_q8_0(blocks.reshape(-1), out.reshape(-1))
