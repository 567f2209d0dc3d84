"""Tensors through `pickle`, and so to other processes: where their bytes lie, or else the bytes.

A tensor that is read from a file goes as its place there, which must not have changed when it is read; any other (cast,
permuted, made in memory) is computed and goes with its data.
"""

from __future__ import annotations

import copyreg
from typing import Any

from llmconv.formats.source import Source
from llmconv.formats.tensor import Extent, Tensor
from llmconv.quant.block import Bytes, by_name

__all__: list[str] = []


def _reduced(tensor: Tensor) -> tuple[Any, ...]:
    place = tensor.extent if tensor.extent is not None and tensor.extent.stamp is not None else tensor.blocks()
    return _restored, (tensor.name, tensor.shape, tensor.type.name, place)


def _restored(name: str, shape: tuple[int, ...], type_name: str, place: Extent | Bytes) -> Tensor:
    kind = by_name(type_name)
    if isinstance(place, Extent):
        assert place.stamp is not None
        return Source(place.path, place.stamp[0], place.stamp).tensor(name, shape, kind, place.offset)
    return Tensor(name, shape, kind, lambda start, stop: place[start:stop])


copyreg.pickle(Tensor, _reduced)
