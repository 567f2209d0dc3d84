"""Codebook types: eight or four weights at a time are an entry of a fixed grid, their signs stored apart.

All have 256 weights under one float16 and small integer scales for 16 or 32 of them.  IQ1 has no signs (its
entries hold -1, 0, 1) but a shift of 1/8 up or down.  Where signs take seven bits for eight weights, an even
number of weights is negative.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.quant.block import Bytes
from llmconv.quant.blocks import iq_tables
from llmconv.quant.kernels import iq1_encode, iq_decode, iq_encode
from llmconv.quant.slabs import Abreast, Slab


class Codebook(Abreast):
    """Common base; the kernels take the codebook beside the rows or blocks."""

    block_size = 256
    uses_importance = True
    kernels = iq_encode

    @classmethod
    def _encode_slab(cls, slab: Slab, out: Bytes) -> None:
        given = {"importance": slab.importance, "columns": slab.k, "out": out}
        cls._kernel("encode")(slab.x[: slab.count * slab.k], **given, **iq_tables.search(cls.name)._asdict())

    @classmethod
    def _decode(cls, blocks: Bytes, out: NDArray[np.float32]) -> None:
        kernel = getattr(iq_decode, f"decode_{cls.name.lower()}")
        kernel(blocks.reshape(-1), iq_tables.values(cls.name), out.reshape(-1))


def _layout(*fields: Any) -> np.dtype[Any]:
    return np.dtype(list(fields))


class IQ2_XXS(Codebook):
    """`qs`: for 32 weights four entries (a byte each), then 4 x 7 signs and a 4-bit scale in 32 bits."""

    name, ggml_id = "IQ2_XXS", 16
    layout = _layout(("d", "<f2"), ("qs", "<u2", 32))
    needs_importance = True


class IQ2_XS(Codebook):
    """`qs`: an entry (9 bits) and seven signs; `scales`: 4 bits for 16 weights."""

    name, ggml_id = "IQ2_XS", 17
    layout = _layout(("d", "<f2"), ("qs", "<u2", 32), ("scales", "u1", 8))
    needs_importance = True


class IQ2_S(Codebook):
    """An entry's low 8 bits in `qs`, its high 2 in `qh`; `scales`: 4 bits for 16 weights."""

    name, ggml_id = "IQ2_S", 22
    layout = _layout(("d", "<f2"), ("qs", "u1", 32), ("signs", "u1", 32), ("qh", "u1", 8), ("scales", "u1", 8))


class IQ3_XXS(Codebook):
    """An entry of four weights a byte of `qs`; 4 x 7 signs and a 4-bit scale for 32 weights."""

    name, ggml_id = "IQ3_XXS", 18
    layout = _layout(("d", "<f2"), ("qs", "u1", 64), ("scales_and_signs", "<u4", 8))


class IQ3_S(Codebook):
    """An entry's low 8 bits in `qs`, its high one in `qh`; `scales`: 4 bits for 32 weights."""

    name, ggml_id = "IQ3_S", 21
    layout = _layout(("d", "<f2"), ("qs", "u1", 64), ("qh", "u1", 8), ("signs", "u1", 32), ("scales", "u1", 4))


class IQ1_S(Codebook):
    """An entry's low 8 bits in `qs`; `qh`: for 32 weights, 4 x 3 high bits, a 3-bit scale and the shift's sign."""

    name, ggml_id, kernels = "IQ1_S", 19, iq1_encode
    layout = _layout(("d", "<f2"), ("qs", "u1", 32), ("qh", "<u2", 8))
    needs_importance = True


class IQ1_M(Codebook):
    """An entry's low 8 bits in `qs`; `qh`: for 16 weights, twice 3 high bits and a shift's sign.

    `scales`: 16-bit words of four 3-bit scales; the four top bits of the four words are the float16 scale.
    """

    name, ggml_id, kernels = "IQ1_M", 29, iq1_encode
    layout = _layout(("qs", "u1", 32), ("qh", "u1", 16), ("scales", "<u2", 4))
