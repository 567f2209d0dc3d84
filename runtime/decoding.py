"""Products with blocks on devices that the numpy kernels can't reach: Triton's kernels on CUDA, torch operations else.

`gpu.DECODERS` has the types whose weights stay quantized there; anything else is decoded when it is loaded.
"""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor
from torch.nn import functional as F

from llmconv.quant import gpu
from llmconv.quant.block import BlockType

__all__ = ["decode", "matmul", "triton_runs"]

MATVEC_TOKENS = 4
"""Up to so many tokens a fused product reads the blocks once a token; beyond, decoding once is cheaper."""


@functools.cache
def triton_runs() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def decode(rows: Tensor, type: type[BlockType], dtype: torch.dtype) -> Tensor:
    """(N, row bytes) uint8 -> (N, in) of `dtype`, by the fastest way that there is."""
    if rows.device.type == "cuda" and triton_runs():
        from llmconv.runtime import triton_kernels

        if type.name in triton_kernels.PARTS:
            return triton_kernels.decode(rows, type, dtype)
    return gpu.decode(rows, type.name, dtype)


def matmul(x: Tensor, weight: Tensor, type: type[BlockType]) -> Tensor:
    """x (N, in) times blocks (out, row bytes), transposed: (N, out)."""
    if x.shape[0] <= MATVEC_TOKENS and x.device.type == "cuda" and triton_runs():
        from llmconv.runtime import triton_kernels

        if type.name in triton_kernels.PARTS:
            return triton_kernels.matvec(x, weight, type)
    return F.linear(x, decode(weight, type, x.dtype))
