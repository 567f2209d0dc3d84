"""The Q types with blocks of 32 weights: a float16 scale, or scale and minimum.  Source: ggml's `ggml-common.h`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from llmconv.quant.block import BlockType, Bytes, Floats
from llmconv.quant.kernels import flat, q32
from llmconv.quant.kernels.terms.fields import BY_BOTH
from llmconv.quant.slabs import Abreast, Slab, Trials, Weighing

_WEIGHING = Weighing(BY_BOTH, 1)
_TRIALS = Trials(-0.9, 0.05, 36)


class _Quants(Abreast):
    """Common base of the types of 4 and 5 bits: scale, then minimum (`_1`), then fifth bits, then nibbles."""

    block_size = 32
    finite_by_scales = True
    uses_importance = True
    kernels = q32
    width: ClassVar[int]
    affine: ClassVar[bool] = False

    @classmethod
    def _encode(cls, rows: Floats, importance: NDArray[np.float32] | None, out: Bytes) -> None:
        if importance is None:
            cls._kernel("encode")(flat(rows), out.reshape(-1))
        else:
            super()._encode(rows, importance, out)

    @classmethod
    def _encode_slab(cls, slab: Slab, out: Bytes) -> None:
        if cls.affine:
            found = slab.affine(32, 2**cls.width - 1, _WEIGHING, _TRIALS)
        else:
            found = slab.symmetric(32, 2 ** (cls.width - 1), _WEIGHING)
        q32.pack(slab.x, k=slab.k, n_rows=slab.count, width=cls.width, affine=cls.affine, found=found, out=out)

    @classmethod
    def _decode(cls, blocks: Bytes, out: NDArray[np.float32]) -> None:
        q32.decode_quants(blocks.reshape(-1), cls.width, cls.affine, out.reshape(-1))


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

    name, ggml_id, block_size, kernels = "Q8_0", 8, 32, q32
    finite_by_scales = True
    layout = np.dtype([("d", "<f2"), ("qs", "i1", 32)])
