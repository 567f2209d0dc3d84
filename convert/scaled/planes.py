"""Weights whose rows lie one upon another: a byte holds numbers of rows that are far apart.  BitNet's ternary, HQQ.

| stored by | a layer's tensors |
|---|---|
| BitNet (transformers) | `weight` U8 (n / 4, k): bits 2i and 2i + 1 of a byte are row i * n / 4 + its own, each number plus 1; `weight_scale`, one number, by which the loader's BitLinear divides and its AutoBitLinear multiplies |
| HQQ | `W_q` of the weight as (groups, group) or, axis 0, (group, groups), its first part of the rows in the highest bits; `scale`, `zero` floats, one a group; `shape`, `nbits`, `group_size`, `axis`; 3 bits: ten numbers in an I32 |

Sources: `transformers.integrations.bitnet`, the hqq package (`core/bitpack`, `core/quantize`).
"""  # noqa: E501

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.scaled.coded import Coded, Numbers
from llmconv.convert.scaled.four_bit_floats import one_number
from llmconv.convert.scaled.grid import Grid
from llmconv.convert.scaled.scheme import Layer, Scheme, Settings
from llmconv.errors import BadFile, MissingTensor, Unsupported, cut, shown
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain

__all__ = ["BitNet", "Hqq", "Planes"]


@dataclass(frozen=True)
class Planes:
    """Numbers of `bits` bits; row r is in `packed`'s row r % its rows, as high as `shifts[r // its rows]` says."""

    packed: Tensor
    bits: int
    shifts: tuple[int, ...]

    def rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        each = self.packed.shape[0]
        out = np.empty((stop - start, self.packed.row_len), np.uint8)
        row = start
        while row < stop:
            plane, first = divmod(row, each)
            count = min(each - first, stop - row)
            numbers = self.packed.rows(first, first + count) >> self.shifts[plane]
            out[row - start : row - start + count] = numbers & ((1 << self.bits) - 1)
            row += count
        return out


class BitNet(Scheme):
    """-1, 0 and 1."""

    name = "BitNet"
    methods = ("bitnet",)
    marks = ("_scale",)
    parts = ("",)

    def fits(self, parts: Mapping[str, Tensor], settings: Settings) -> bool:
        return "" in parts and parts[""].type is plain.U8 and settings.method == "bitnet"

    def coded(self, layer: Layer) -> Coded:
        packed, where = layer.parts[""], layer.settings.where
        if len(packed.shape) != 2:
            raise BadFile(f"{where}: tensor {cut(packed.name)} has shape {shown(packed.shape)}, expected a matrix")
        n, k = packed.shape[0] * 4, packed.shape[1]
        planes = Planes(packed, 2, (0, 2, 4, 6))

        def codes(start: int, stop: int) -> NDArray[np.int8]:
            found = planes.rows(start, stop)
            if found.max(initial=0) > 2:
                raise BadFile(
                    f"{where}: tensor {cut(packed.name)} holds a 3, expected 0, 1 and 2; the model is damaged"
                )
            return found.view(np.int8) - np.int8(1)

        scale = one_number(layer, "_scale")
        multiplies = layer.settings.values.get("linear_class") == "autobitlinear"
        factor = scale if multiplies else np.float32(1) / scale
        one = Tensor.from_array(layer.weight, np.asarray(factor, np.float32).reshape(1, 1))
        return Coded(layer.weight, (n, k), codes, -1, 1, Grid(one, n, k, n, k))


class Hqq(Scheme):
    """Integers whose zero points are floats."""

    name = "HQQ"
    methods = ("hqq",)
    marks = (".W_q",)
    parts = (".scale", ".zero", ".shape", ".nbits", ".group_size", ".axis")

    def weight(self, stem: str) -> str:
        return f"{stem}.weight"

    def fits(self, parts: Mapping[str, Tensor], settings: Settings) -> bool:
        return True

    def coded(self, layer: Layer) -> Coded:
        packed, where = layer.parts[".W_q"], layer.settings.where
        scale, zero, shape = (layer.parts.get(end) for end in (".scale", ".zero", ".shape"))
        stem = packed.name.removesuffix(".W_q")
        for end, found in ((".scale", scale), (".zero", zero), (".shape", shape)):
            if found is None:
                raise MissingTensor(where, stem + end, f"{cut(layer.weight)} needs it; save the model again")
        assert scale is not None and zero is not None and shape is not None
        n, k = _shape(layer, shape)
        bits, axis = _number(layer, "nbits", 4), _number(layer, "axis", 1)
        group = _number(layer, "group_size", k)
        each, whole = (10, plain.I32) if bits == 3 else (8 // bits if bits in (1, 2, 4, 8) else 0, plain.U8)
        if not each or packed.type is not whole or axis not in (0, 1):
            raise Unsupported(
                f"{where}: tensor {cut(packed.name)} is {packed.type.name} in {bits} bits, which can't be read, only "
                "1, 2, 3, 4 or 8 bits in bytes or (3 bits) words; give the original model"
            )
        down, across = (n * k // max(group, 1), group) if axis else (group, n * k // max(group, 1))
        fits = group > 0 and n * k % group == 0 and packed.shape == (-(-down // each), across)
        if not fits or any(t.n_elements != n * k // group or not t.type.is_float for t in (scale, zero)):
            raise BadFile(
                f"{where}: tensor {cut(packed.name)} of shape {shown(packed.shape)} does not hold weights of shape "
                f"{shown((n, k))} in {bits} bits and groups of {group} with scales of shape {shown(scale.shape)}; the "
                "model is damaged"
            )
        planes = Planes(packed, bits, tuple((each - 1 - i) * bits for i in range(each)))

        def codes(start: int, stop: int) -> NDArray[np.uint8]:
            first, last = start * k // across, -(-stop * k // across)
            flat = planes.rows(first, last).reshape(-1)
            skip = start * k - first * across
            return flat[skip : skip + (stop - start) * k].reshape(stop - start, k)

        def shared(numbers: Tensor) -> _Flat:
            return _Flat(numbers.numpy().reshape(-1).astype(np.float32), k, across, bool(axis))

        return Coded(layer.weight, (n, k), codes, 0, (1 << bits) - 1, shared(scale), shared(zero))


@dataclass(frozen=True)
class _Flat(Numbers):
    """A number for each row or each column of the matrix into which a weight was reshaped."""

    values: NDArray[np.float32]
    k: int
    across: int
    by_row: bool

    def for_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        flat = np.arange(start * self.k, stop * self.k)
        place = flat // self.across if self.by_row else flat % self.across
        return self.values[place].reshape(stop - start, self.k)

    def by_group(self, start: int, stop: int) -> NDArray[np.float32]:
        own = self.values[start * self.k // self.across : stop * self.k // self.across]
        return own.reshape(stop - start, self.k // self.across)

    def span(self, k: int) -> int:
        return self.across if self.by_row and k % self.across == 0 else 0


def _shape(layer: Layer, given: Tensor) -> tuple[int, int]:
    found = [int(n) for n in given.numpy().reshape(-1)] if not given.type.is_float and given.n_elements == 2 else []
    if len(found) != 2 or min(found) < 1 or math.prod(found) > layer.parts[".W_q"].n_elements * 10:
        raise BadFile(
            f"{layer.settings.where}: tensor {cut(given.name)} is no shape of a matrix that {layer.weight!r} can have; "
            "the model is damaged"
        )
    return found[0], found[1]


def _number(layer: Layer, name: str, default: int) -> int:
    """A setting of a layer: its own tensor, else config.json's for all."""
    given = layer.parts.get(f".{name}")
    if given is not None and given.n_elements == 1 and not given.type.is_float:
        return int(given.numpy().reshape(()))
    values: Any = layer.settings.values
    said = values.get("quant_config") or values
    said = said.get("weight_quant_params", said) if isinstance(said, dict) else {}
    found = said.get(name) if isinstance(said, dict) else None
    return found if type(found) is int else default
