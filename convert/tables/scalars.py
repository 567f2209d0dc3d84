"""Numbers that models keep as small tensors, and GGUF as keys: one, once or in each layer, or some whole ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.tables.ops import Dims, evaluate
from llmconv.convert.tables.rows import Told
from llmconv.errors import BadFile, MissingTensor, WrongShape, cut
from llmconv.formats.tensor import Tensor

__all__ = ["Scalar", "WholeNumbers", "scalar_keys", "scalar_tensors"]


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


@dataclass(frozen=True)
class WholeNumbers:
    """key: GGUF's, in full, an array of U64.  size: how many; 0: a model without them."""

    key: str
    theirs: str
    size: str

    def names(self, dims: Dims, prefix: str) -> list[str]:
        """The tensor's name, where there is one."""
        layer = dims.get("ple_at", 0)
        return [self.theirs.replace("{p}", prefix).replace("{w}", str(layer - 1))] if layer else []

    def count(self, dims: Dims) -> int:
        return evaluate(self.size, dims)

    def value(self, tensor: Tensor, dims: Dims, told: Told) -> NDArray[np.uint64]:
        """The key; `WrongShape`, and `BadFile` for others than whole numbers from 0."""
        if tensor.shape != (self.count(dims),):
            raise WrongShape(told.where, tensor.name, tensor.shape, (self.count(dims),), told.by)
        if tensor.type.name != "I64" or (tensor.numpy() < 0).any():
            raise BadFile(f"{told.where}: tensor {tensor.name!r} is {tensor.type.name}, expected I64, numbers from 0")
        return tensor.numpy().astype(np.uint64)


Small = Scalar | WholeNumbers


def scalar_keys(
    scalars: Iterable[Small], tensors: Mapping[str, Tensor], dims: Dims, prefix: str, told: Told
) -> tuple[dict[str, Any], list[Tensor]]:
    """The keys, and the tensors that they say; `MissingTensor`, `WrongShape`."""
    keys: dict[str, Any] = {}
    used: list[Tensor] = []
    for scalar in scalars:
        values = []
        for name in scalar.names(dims, prefix):
            if name not in tensors:
                raise MissingTensor(told.where, name, told.why)
            if isinstance(scalar, WholeNumbers):
                keys[scalar.key] = scalar.value(tensors[name], dims, told)
                used.append(tensors[name])
                continue
            if tensors[name].n_elements != 1:
                raise WrongShape(told.where, name, tensors[name].shape, scalar.shape, told.by)
            used.append(tensors[name])
            values.append(np.float32(tensors[name].numpy().reshape(-1)[0]))
        if isinstance(scalar, WholeNumbers):
            continue
        keys[scalar.key] = np.asarray(values, np.float32) if "{i}" in scalar.theirs else values[0]
    return keys, used


def scalar_tensors(scalars: Iterable[Small], metadata: Mapping[str, Any], dims: Dims, prefix: str) -> Iterator[Tensor]:
    """The way back: a float32 tensor for each number; `BadFile` where there are fewer than layers."""
    for scalar in scalars:
        names, value = scalar.names(dims, prefix), metadata.get(scalar.key)
        if isinstance(scalar, WholeNumbers):
            if names:
                yield Tensor.from_array(names[0], _whole(scalar, value, dims))
            continue
        try:
            values = np.broadcast_to(np.asarray(value, np.float32), (len(names),))
        except (TypeError, ValueError):
            raise BadFile(f"key '{scalar.key}' is {cut(value)}, expected {len(names)} numbers") from None
        for name, number in zip(names, values, strict=True):
            yield Tensor.from_array(name, np.full(scalar.shape, number, np.float32))


def _whole(scalar: WholeNumbers, value: Any, dims: Dims) -> NDArray[np.int64]:
    """A key's numbers as a tensor has them."""
    found = np.asarray(value)
    if found.shape != (scalar.count(dims),) or found.dtype.kind not in "ui" or (found.astype(np.int64) < 0).any():
        raise BadFile(f"key '{scalar.key}' is {cut(value)}, expected {scalar.count(dims)} whole numbers from 0")
    return found.astype(np.int64)
