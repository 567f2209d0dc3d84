"""Per-tensor scales of a GGUF (`blk.0.ffn_up.scale` beside `blk.0.ffn_up.weight`), as NVFP4 models have them.

A scale is part of its weight: readers of GGUF multiply it in.  No other ecosystem here has such tensors, so `folded`
multiplies them in where a GGUF becomes something else, and `unfolded` takes the same scales out again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from typing import Any

import numpy as np

from llmconv.errors import BadFile, WrongShape
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain
from llmconv.quant.block import Bytes

__all__ = ["folded", "scales_of", "unfolded"]


def scales_of(tensors: Mapping[str, Tensor], own: Container[str] = ()) -> dict[str, str]:
    """The weights that have a scale beside them, by their scales' names.

    own: tensors of the family's table that are only called so (Gemma 4's), with `{i}` for the layer.
    """
    pairs = {name: f"{name.removesuffix('.scale')}.weight" for name in tensors if name.endswith(".scale")}
    pairs = {scale: weight for scale, weight in pairs.items() if _LAYER.sub("blk.{i}.", scale) not in own}
    return {scale: weight for scale, weight in pairs.items() if weight in tensors}


_LAYER = re.compile(r"^blk\.\d+\.")


def folded(tensors: Mapping[str, Tensor], where: str, own: Container[str] = ()) -> dict[str, Tensor]:
    """The tensors with weights multiplied by their scales (in F32); the scales stay among them."""
    return _scaled(tensors, scales_of(tensors, own), where, np.multiply)


def unfolded(tensors: Mapping[str, Tensor], where: str, own: Container[str] = ()) -> dict[str, Tensor]:
    """The tensors with weights divided by the scales that are among them: the inverse of `folded`, but for rounding."""
    return _scaled(tensors, scales_of(tensors, own), where, np.divide)


def _scaled(
    tensors: Mapping[str, Tensor], scales: Mapping[str, str], where: str, by: Callable[..., Any]
) -> dict[str, Tensor]:
    out = dict(tensors)
    for scale, weight in scales.items():
        out[weight] = _times(tensors[weight], tensors[scale], where, by)
    return out


def _times(weight: Tensor, scale: Tensor, where: str, by: Callable[..., Any]) -> Tensor:
    """A scale is one number for the whole weight, or one for each expert (its first dimension)."""
    if scale.n_elements not in (1, weight.shape[0] if len(weight.shape) == 3 else 1):
        raise WrongShape(where, scale.name, scale.shape, (1,), f"by {weight.name}")
    if not all(np.isfinite(numbers := scale.numpy().reshape(-1).astype(np.float64)) & (numbers != 0)):
        raise BadFile(
            f"{where}: tensor {scale.name!r} is {numbers[0]:g}, expected a number that can be taken out again"
        )
    rows_each = weight.n_rows // max(scale.n_elements, 1)
    wide = weight if weight.type in (plain.F32, plain.F64) else weight.astype(plain.F32)

    def read(start: int, stop: int) -> Bytes:
        rows = np.asarray(wide.rows(start, stop), np.float64)
        each = numbers[np.arange(start, stop) // max(rows_each, 1)] if numbers.size > 1 else numbers
        with np.errstate(all="ignore"):
            return wide.type.encode(by(rows, each.reshape(-1, 1)).astype(wide.type.dtype))

    return Tensor(weight.name, weight.shape, wide.type, read)
