"""Decoding blocks in torch operations, for devices that the numpy kernels can't reach.

`DECODERS` has the types whose weights stay quantized there; anything else is decoded when it is loaded.  Layouts: see
the types in `quant/`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from llmconv.quant.block import BlockType

__all__ = ["DECODERS", "decode", "matmul"]

DECODERS: dict[str, Callable[[Tensor], Tensor]] = {}


def decode(rows: Tensor, type: type[BlockType], dtype: torch.dtype) -> Tensor:
    """(N, row bytes) uint8 -> (N, in) of `dtype`."""
    raise NotImplementedError


def matmul(x: Tensor, weight: Tensor, type: type[BlockType]) -> Tensor:
    """x (N, in) times blocks (out, row bytes), transposed: (N, out)."""
    return F.linear(x, decode(weight, type, x.dtype))
