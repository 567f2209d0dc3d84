"""Integers of two and four bits as torch's own libraries keep them: torchao's int4, quanto's qint2 and qint4.

| stored by | a layer of weights (n, k) |
|---|---|
| torchao (`Int4Tensor`, the plain format) | `_weight_qdata` I8 (n, k / 2), numbers -8 ... 7, the first of two in the low half; `_weight_scale`, `_weight_zero_point` floats (groups, n); a value is number * scale + zero point |
| quanto | `weight._data._data` U8, the weight as (groups, group), its first part of the rows in the lowest bits; `weight._scale`, `weight._shift`, one a group; a value is number * scale - shift, or (number - shift) * scale where shifts are integers |

quanto does not say how long a row is: config.json's hidden size does, which is a layer's inputs or, of the layers that
write back to it, its outputs.  Whoever knows the family checks the shape then.
Sources: the torchao package (`workflows/int4/int4_tensor`, whose packing is fbgemm's), optimum-quanto (`tensor/packed`,
`tensor/qbits`, `nn/qmodule`).
"""  # noqa: E501

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.scaled.bits import transposed, unpacked
from llmconv.convert.scaled.coded import Coded
from llmconv.convert.scaled.grid import Grid
from llmconv.convert.scaled.planes import Planes
from llmconv.convert.scaled.scheme import Layer, Scheme, Settings
from llmconv.convert.scaled.stored import StoredByTorchao, factors
from llmconv.errors import BadFile, MissingTensor, Unsupported, cut, shown
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain

__all__ = ["QuantoBits", "TorchaoInt4"]

_BYTES = (plain.U8, plain.I8)
_BACK = re.compile(r"(^|\.)(o_proj|out_proj|down_proj|w2|wo|fc2|c_proj|dense_4h_to_h|attention\.dense)\.weight$")
"""Layers whose outputs are as many as the hidden size; of the others their inputs are."""


class TorchaoInt4(Scheme):
    """Integers of four bits with scales and zero points that are floats."""

    name = "torchao in 4 bits"
    methods = ("torchao",)
    marks = ("_qdata",)
    parts = ("_scale", "_zero_point")
    weight = StoredByTorchao.weight

    def fits(self, parts: Mapping[str, Tensor], settings: Settings) -> bool:
        scale, zero, codes = parts.get("_scale"), parts.get("_zero_point"), parts["_qdata"]
        if scale is None or zero is None or codes.type not in _BYTES or len(codes.shape) != 2:
            return False
        return scale.type.is_float and zero.type.is_float

    def coded(self, layer: Layer) -> Coded:
        codes, scale, zero = (layer.parts[end] for end in ("_qdata", "_scale", "_zero_point"))
        for part in (scale, zero):
            factors(layer, part)
        n, k = codes.shape[0], 2 * codes.shape[1]
        if scale.shape != zero.shape or scale.shape[1:] != (n,) or not scale.shape[0] or k % scale.shape[0]:
            raise BadFile(
                f"{layer.settings.where}: tensor {cut(codes.name)} of shape {shown(codes.shape)} does not go with "
                f"scales of shape {shown(scale.shape)} and zero points of shape {shown(zero.shape)}; it is damaged"
            )

        def numbers(start: int, stop: int) -> NDArray[np.int8]:
            found = unpacked(codes.blocks(start, stop), 4, k)
            return ((found ^ np.uint8(8)) - np.uint8(8)).view(np.int8)

        def grid(values: Tensor) -> Grid:
            return Grid(transposed(values), n, k, 1, k // values.shape[0])

        return Coded(layer.weight, (n, k), numbers, -8, 7, grid(scale), bias=grid(zero))


class QuantoBits(Scheme):
    """Integers of two or four bits, a byte's of rows that are far apart."""

    name = "quanto in 2 or 4 bits"
    methods = ("quanto",)
    marks = ("._data._data",)
    parts = ("._scale", "._shift")

    def fits(self, parts: Mapping[str, Tensor], settings: Settings) -> bool:
        return True

    def coded(self, layer: Layer) -> Coded:
        packed, where = layer.parts["._data._data"], layer.settings.where
        for end in ("._scale", "._shift"):
            if end not in layer.parts:
                raise MissingTensor(where, layer.weight + end, f"{cut(packed.name)} needs it; fetch the model again")
        scale, shift = factors(layer, layer.parts["._scale"]), layer.parts["._shift"]
        groups, rows = scale.n_elements, packed.shape[0] if len(packed.shape) == 2 else 0
        bits = next((b for b in (4, 2) if rows and -(-groups * b // 8) == rows), 0)
        if not bits or packed.type is not plain.U8 or shift.n_elements != groups:
            raise BadFile(
                f"{where}: tensor {cut(packed.name)} of shape {shown(packed.shape)} does not go with {groups} scales "
                f"and {shift.n_elements} shifts in 2 or 4 bits; the model is damaged"
            )
        each, group = 8 // bits, packed.shape[1]
        n, k = _shape(layer, groups, group)
        across = k // group
        planes = Planes(packed, bits, tuple(bits * i for i in range(each)))

        def codes(start: int, stop: int) -> NDArray[np.uint8]:
            return planes.rows(start * across, stop * across).reshape(stop - start, k)

        def grid(values: Tensor, sign: int = 1) -> Grid:
            flat = Tensor.from_array(values.name, (sign * values.numpy().astype(np.float32)).reshape(n, across))
            return Grid(flat, n, k, 1, group)

        own: Any = grid(scale)
        if shift.type.is_float:
            return Coded(layer.weight, (n, k), codes, 0, (1 << bits) - 1, own, bias=grid(shift, -1))
        return Coded(layer.weight, (n, k), codes, 0, (1 << bits) - 1, own, grid(shift))


def _shape(layer: Layer, groups: int, group: int) -> tuple[int, int]:
    """Of a weight in so many groups."""
    total, hidden = groups * group, layer.settings.hidden
    k = group if hidden is None else total // hidden if _BACK.search(layer.weight) else hidden
    if (hidden is None and groups > 1) or not k or total % k or k % group:
        raise Unsupported(
            f"{layer.settings.where}: nothing says how long a row of {layer.weight!r} is, whose {total} weights quanto "
            "stores in groups; give the original model, or a folder with its config.json"
        )
    return total // k, k
