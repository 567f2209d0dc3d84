"""Modules over stored weights: linear layers, experts, embeddings.

Each has a `weight` that is a Parameter of plain numbers, or a uint8 buffer of blocks with its `block_type`;
either way the state dict's key is the tensor's name in a GGUF.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llmconv.quant import abreast
from llmconv.quant.block import BlockType
from llmconv.quant.kernels.compiling.cache import really
from llmconv.runtime import products
from llmconv.runtime.reading import room

__all__ = ["Embedding", "ExpertLinear", "Linear", "Stored"]


class Stored(nn.Module):
    """Common base: `weight`, its block type (None: plain numbers), and an optional bias.

    shape: of the weight in numbers, (..., out, in).
    """

    weight: Tensor
    bias: Tensor | None
    activations = "float"
    """How inputs meet blocks: see `products.matmul`."""
    rounds: type[BlockType] | None = None
    """In training, the type that the weight's numbers are rounded to as they are used (see `training.grid`)."""
    laid: Tensor | None = None
    """What `abreast` made of the blocks; `weight` is then made of it again by whoever asks."""
    watch: Callable[[Tensor, Tensor | None, int | None], None] | None = None
    """Told of every product its inputs, its results (None: it was made another way) and which expert's or head's."""

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

    @property
    def device(self) -> torch.device:
        return self.weight.device if self.laid is None else self.laid.device

    def abreast(self) -> Tensor:
        """The blocks as single inputs are multiplied with them (see `quant.abreast`), on the CPU; no longer in rows."""
        weight, kind = self._buffers.get("weight"), self.block_type
        if weight is not None:
            assert kind is not None
            self.laid = room((-(-len(weight) // abreast.ROWS) * abreast.ROWS, weight.shape[1]), torch.uint8)
            with really():
                abreast.lay(kind, weight.numpy(), self.laid.numpy())
            self._buffers.pop("weight", None)
        assert self.laid is not None
        return self.laid

    def _settle(self) -> None:
        """Blocks lie in rows again."""
        if self.laid is not None:
            self._buffers["weight"] = self.weight
            self.laid = None

    def __getattr__(self, name: str) -> Any:
        if name != "weight" or self._buffers.get(name) is not None or self.laid is None or self.block_type is None:
            return super().__getattr__(name)
        weight = torch.empty(self.shape[0], self.laid.shape[1], dtype=torch.uint8)
        abreast.take_back(self.block_type, self.laid.numpy(), weight.numpy())
        return weight

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._settle()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *given: Any) -> None:
        self._settle()
        super()._load_from_state_dict(*given)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.laid is not None:
            destination[f"{prefix}weight"] = self.weight

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight as numbers, in `shape`."""
        return products.dense(self.weight, self.block_type, dtype)

    def product(self, x: Tensor, weight: Tensor, part: int | None = None) -> Tensor:
        """x (..., in) times the weight or, of a stack, the matrix `part` of it: (..., out)."""
        if self.rounds is not None:
            weight = products.straight_through(weight, self.rounds)
        y = products.matmul(x, weight, self.block_type, self.activations)
        if self.watch is not None:
            self.watch(x, y, part)
        return y

    def extra_repr(self) -> str:
        stored = self.block_type.name if self.block_type else str(self.weight.dtype).removeprefix("torch.")
        return f"{'x'.join(map(str, self.shape))}, {stored}{', bias' if self.bias is not None else ''}"


class Linear(Stored):
    """(..., in) -> (..., out)."""

    scaled = False
    """Whether its result is multiplied by a number, `scale`, that the model has learned."""
    scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x, self.weight)
        y = y if self.bias is None else y + self.bias.to(y.dtype)
        return y * self.scale.to(y.dtype) if self.scaled else y


class ExpertLinear(Stored):
    """The matrices of all experts, (experts, out, in); a call uses one of them."""

    one: Callable[[int], Tensor] | None = None
    """Gives the stored matrix of an expert, where they are left in the file."""

    def forward(self, x: Tensor, expert: int) -> Tensor:
        y = self.product(x, self.weight[expert] if self.one is None else self.one(expert), expert)
        return y if self.bias is None else y + self.bias[expert].to(y.dtype)


class Embedding(Stored):
    """Token ids -> rows of `dtype`; `project` uses the same matrix as a head."""

    watch_rows: Callable[[Tensor, Tensor], None] | None = None
    """Told the ids that are looked up and the rows that they get."""

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        if self.laid is None or self.block_type is None:
            rows = products.embed(ids, self.weight, self.block_type, dtype)
        else:
            few = abreast.rows(self.block_type, self.laid.numpy(), ids.flatten().tolist())
            rows = products.dense(torch.from_numpy(few), self.block_type, dtype).view(*ids.shape, -1)
        if self.rounds is not None:
            rows = products.straight_through(rows.flatten(0, -2), self.rounds).view_as(rows)
        if self.watch_rows is not None:
            self.watch_rows(ids, rows)
        return rows

    def project(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight)
