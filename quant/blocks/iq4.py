"""Four bits a weight on an uneven scale: sixteen values, dense near zero, times a scale for 32 weights.

Byte j of 32 weights holds the indices of weights j (low bits) and j + 16.
"""

from __future__ import annotations

import numpy as np

from llmconv.quant.kernels import iq4
from llmconv.quant.slabs import Abreast


class IQ4_NL(Abreast):
    """32 weights under a float16 scale."""

    name, ggml_id, block_size, kernels = "IQ4_NL", 20, 32, iq4
    layout = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
    uses_importance = True


class IQ4_XS(Abreast):
    """Eight times 32 weights under 6-bit scales (minus 32) times one float16.

    A scale's low four bits are in `scales_l` (two a byte), its high two in `scales_h`.
    """

    name, ggml_id, block_size, kernels = "IQ4_XS", 23, 256, iq4
    layout = np.dtype([("d", "<f2"), ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", (8, 16))])
    uses_importance = True
