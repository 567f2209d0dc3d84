"""Numbers that models keep as tensors of one element, once or in each layer, and GGUF as a key (xIELU's, Talkie's)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmconv.convert.tables.ops import Dims
from llmconv.convert.tables.rows import Told
from llmconv.errors import BadFile, MissingTensor, WrongShape
from llmconv.formats.tensor import Tensor

__all__ = ["Scalar", "scalar_keys", "scalar_tensors"]


@dataclass(frozen=True)
class Scalar:
    """key: GGUF's, in full; an array where `theirs` has `{i}`.  shape: of each tensor."""

    key: str
    theirs: str
    shape: tuple[int, ...] = (1,)

    def names(self, dims: Dims, prefix: str) -> list[str]:
        """The tensors' names, one a layer."""
        name = self.theirs.replace("{p}", prefix)
        layers = range(dims["n_layer"] - dims["n_nextn"]) if "{i}" in name else (0,)
        return [name.replace("{i}", str(i)) for i in layers]


def scalar_keys(
    scalars: Iterable[Scalar], tensors: Mapping[str, Tensor], dims: Dims, prefix: str, told: Told
) -> tuple[dict[str, Any], list[Tensor]]:
    """The keys, and the tensors that they say; `MissingTensor`, `WrongShape`."""
    keys: dict[str, Any] = {}
    used: list[Tensor] = []
    for scalar in scalars:
        values = []
        for name in scalar.names(dims, prefix):
            if name not in tensors:
                raise MissingTensor(told.where, name, told.why)
            if tensors[name].n_elements != 1:
                raise WrongShape(told.where, name, tensors[name].shape, scalar.shape, told.by)
            used.append(tensors[name])
            values.append(np.float32(tensors[name].numpy().reshape(-1)[0]))
        keys[scalar.key] = np.asarray(values, np.float32) if "{i}" in scalar.theirs else values[0]
    return keys, used


def scalar_tensors(scalars: Iterable[Scalar], metadata: Mapping[str, Any], dims: Dims, prefix: str) -> Iterator[Tensor]:
    """The way back: a float32 tensor for each number; `BadFile` where there are fewer than layers."""
    for scalar in scalars:
        names, value = scalar.names(dims, prefix), metadata.get(scalar.key)
        try:
            values = np.broadcast_to(np.asarray(value, np.float32), (len(names),))
        except (TypeError, ValueError):
            raise BadFile(f"key '{scalar.key}' is {value!r:.60}, expected {len(names)} numbers") from None
        for name, number in zip(names, values, strict=True):
            yield Tensor.from_array(name, np.full(scalar.shape, number, np.float32))
