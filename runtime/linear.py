"""Modules over stored weights: linear layers, experts, embeddings.

Each has a `weight` that is a Parameter of plain numbers, or a uint8 buffer of blocks with its `block_type`;
either way the state dict's key is the tensor's name in a GGUF.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmconv.quant.block import BlockType
from llmconv.runtime import products

__all__ = ["Embedding", "ExpertLinear", "Linear", "Stored"]


class Stored(nn.Module):
    """Common base: `weight`, its block type (None: plain numbers), and an optional bias.

    shape: of the weight in numbers, (..., out, in).
    """

    weight: Tensor
    bias: Tensor | None
    activations = "float"
    """How inputs meet blocks: see `products.matmul`."""

    def __init__(
        self,
        shape: tuple[int, ...],
        block_type: type[BlockType] | None = None,
        bias: tuple[int, ...] | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.shape, self.block_type = tuple(shape), block_type
        if block_type is None:
            self.weight = nn.Parameter(torch.empty(shape, dtype=dtype))
        else:
            blocks = torch.empty(*shape[:-1], block_type.row_bytes(shape[-1]), dtype=torch.uint8)
            self.register_buffer("weight", blocks)
        self.bias = None if bias is None else nn.Parameter(torch.zeros(bias, dtype=dtype))

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight as numbers, in `shape`."""
        return products.dense(self.weight, self.block_type, dtype)

    def extra_repr(self) -> str:
        stored = self.block_type.name if self.block_type else str(self.weight.dtype).removeprefix("torch.")
        return f"{'x'.join(map(str, self.shape))}, {stored}{', bias' if self.bias is not None else ''}"


class Linear(Stored):
    """(..., in) -> (..., out)."""

    def forward(self, x: Tensor) -> Tensor:
        y = products.matmul(x, self.weight, self.block_type, self.activations)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class ExpertLinear(Stored):
    """The matrices of all experts, (experts, out, in); a call uses one of them."""

    def forward(self, x: Tensor, expert: int) -> Tensor:
        y = products.matmul(x, self.weight[expert], self.block_type, self.activations)
        return y if self.bias is None else y + self.bias[expert].to(y.dtype)


class Embedding(Stored):
    """Token ids -> rows of `dtype`; `project` uses the same matrix as a head."""

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return products.embed(ids, self.weight, self.block_type, dtype)

    def project(self, x: Tensor) -> Tensor:
        return products.matmul(x, self.weight, self.block_type, self.activations)
