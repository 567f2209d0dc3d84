"""ggml's tensor types by number, among them those this project only carries.

A type that `quant/` knows is decoded and encoded there.  For the others the size of a block is enough to carry
their bytes from file to file unchanged.  Sizes: ggml's `type_traits` (ggml/src/ggml.c), tested against the `gguf`
package's table.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.errors import Unsupported
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import by_ggml_id
from llmconv.quant.block import BlockType, Bytes

__all__ = ["CARRIED", "REMOVED", "Carried", "carried", "ggml_type", "swap_bytes", "swapped"]

CARRIED: dict[int, tuple[str, int, int]] = {
    # number: (name, weights in a block, bytes of a block)
    9: ("Q8_1", 32, 36),  # the operand of dot products; the gguf package still counts its layout of 2023, 40
    15: ("Q8_K", 256, 292),
}
"""What ggml has and `quant/` does not."""

REMOVED = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8"}
REMOVED |= {36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8"}
"""Numbers that ggml gave away once and took back; no current program reads them."""


class Carried(BlockType):
    """Common base of types whose blocks are copied but not understood.  Not in the registry."""

    is_float = False

    @classmethod
    def _decode(cls, blocks: Bytes, out: NDArray[np.float32]) -> None:
        raise Unsupported(f"{cls.name} is carried unchanged but can't be decoded; keep the tensor's type")


@functools.cache
def carried(name: str, block_size: int, block_bytes: int, number: int | None = None) -> BlockClass:
    """The type `name` for carrying: `block_size` elements in `block_bytes` bytes."""
    fields: dict[str, Any] = {"ggml_id": number, "block_size": block_size, "layout": np.dtype((np.void, block_bytes))}
    made: BlockClass = type(name, (Carried,), fields)
    made.name = name  # set afterwards: a class body with a name would enter the registry
    return made


def ggml_type(number: int) -> BlockClass | None:
    """The type with that number: the registered one, else one for carrying, else None."""
    found = by_ggml_id(number)
    if found is None and number in CARRIED:
        found = carried(*CARRIED[number], number)
    return found


def swap_bytes(tensor: Tensor, blocks: Bytes) -> Bytes:
    """Rows of `tensor` with every number of every block in the other byte order."""
    layout = tensor.type.layout
    if layout.itemsize == 1:
        return blocks
    if layout.fields is None and (tensor.type.dtype is None or issubclass(tensor.type, Carried)):
        raise Unsupported(f"tensor {tensor.name!r}: {tensor.type.name} can't change its byte order; keep it as it is")
    out = np.array(blocks)  # a fresh, contiguous copy
    if layout.fields is None:
        _swap(out.reshape(-1).view(f"V{layout.itemsize}"), layout)
    else:
        _swap_fields(out.reshape(-1).view(layout), layout)
    return out


def _swap_fields(array: Any, layout: np.dtype[Any]) -> None:
    for name in layout.names or ():
        field_type = layout[name].base
        if field_type.names:
            _swap_fields(array[name], field_type)
        elif field_type.itemsize > 1 and field_type.kind != "V":
            array[name].byteswap(inplace=True)


def _swap(array: Any, dtype: np.dtype[Any]) -> None:
    size = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
    array.view(f"u{size}").byteswap(inplace=True)


def swapped(tensor: Tensor) -> Tensor:
    """The tensor with its stored bytes in the other byte order."""
    if tensor.type.layout.itemsize == 1:
        return tensor
    return Tensor(tensor.name, tensor.shape, tensor.type, lambda a, b: swap_bytes(tensor, tensor.read(a, b)))
