"""Floats of four bits (E2M1) under scales of their own: NVFP4 and MXFP4, two in a byte, the first in its low half.

| stored as | a layer's tensors |
|---|---|
| NVFP4 (compressed-tensors) | `weight_packed` U8 (n, k / 2), `weight_scale` E4M3 (n, k / 16), divided by `weight_global_scale` |
| NVFP4 (ModelOpt) | `weight` U8 (n, k / 2), `weight_scale` E4M3 (n, k / 16), multiplied by `weight_scale_2` |
| MXFP4 (compressed-tensors) | `weight_packed` U8 (n, k / 2), `weight_scale` U8 (n, k / 32), exponents of two, 127 is none |
| MXFP4 (DeepSeek V4's own files) | `weight` I8 (n, k / 2), `scale` E8M0 (n, k / 32) |

A number has a sign, two bits of exponent, one of mantissa.  Sources: the compressed-tensors package
(`compressors/nvfp4`, `mxfp4`), ModelOpt's `NVFP4QTensor`, the OCP microscaling format.
"""  # noqa: E501

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.scaled.bits import unpacked
from llmconv.convert.scaled.coded import Coded
from llmconv.convert.scaled.grid import Grid
from llmconv.convert.scaled.scheme import Layer, Scheme, Settings
from llmconv.convert.scaled.stored import exponents
from llmconv.errors import BadFile, MissingTensor, cut, shown
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain

__all__ = ["E2M1", "Mxfp4", "Mxfp4Beside", "Nvfp4", "Nvfp4Beside", "floats_of_four_bits", "one_number"]

E2M1 = np.zeros(256, np.float32)
"""What the sixteen codes stand for."""
E2M1[:8] = 0, 0.5, 1, 1.5, 2, 3, 4, 6
E2M1[8:16] = -E2M1[:8]
_BYTES = (plain.U8, plain.I8)
_EXPONENTS = (plain.U8, plain.F8_E8M0)


class Nvfp4(Scheme):
    """As compressed-tensors packs it."""

    name = "NVFP4"
    methods = ("compressed-tensors",)
    marks = ("_packed",)
    parts = ("_scale", "_global_scale")

    def fits(self, parts: Mapping[str, Tensor], settings: Settings) -> bool:
        scale = parts.get("_scale")
        return parts["_packed"].type in _BYTES and scale is not None and scale.type is plain.F8_E4M3

    def coded(self, layer: Layer) -> Coded:
        made = floats_of_four_bits(layer, layer.parts["_packed"], layer.parts["_scale"], 16)
        return dataclasses.replace(made, divisor=one_number(layer, "_global_scale"))


class Nvfp4Beside(Scheme):
    """As ModelOpt stores it."""

    name = "NVFP4"
    methods = ("modelopt", "modelopt_fp4", "nvfp4")
    marks = ("_scale_2",)
    parts = ("", "_scale")

    def fits(self, parts: Mapping[str, Tensor], settings: Settings) -> bool:
        return "" in parts and parts[""].type is plain.U8

    def coded(self, layer: Layer) -> Coded:
        scale = layer.parts.get("_scale")
        if scale is None:
            raise MissingTensor(layer.settings.where, f"{layer.weight}_scale", "its weight needs it; fetch it again")
        return dataclasses.replace(
            floats_of_four_bits(layer, layer.parts[""], scale, 16), factor=one_number(layer, "_scale_2")
        )


class Mxfp4(Scheme):
    """As compressed-tensors packs it."""

    name = "MXFP4"
    methods = ("compressed-tensors",)
    marks = ("_packed",)
    parts = ("_scale",)

    def fits(self, parts: Mapping[str, Tensor], settings: Settings) -> bool:
        scale = parts.get("_scale")
        return parts["_packed"].type in _BYTES and scale is not None and scale.type in _EXPONENTS

    def coded(self, layer: Layer) -> Coded:
        return floats_of_four_bits(layer, layer.parts["_packed"], layer.parts["_scale"], 32)


class Mxfp4Beside(Scheme):
    """As DeepSeek's own programs name it: `weight` and `scale` in one module."""

    name = "MXFP4"
    marks = (".scale",)
    parts = (".weight",)

    def weight(self, stem: str) -> str:
        return f"{stem}.weight"

    def fits(self, parts: Mapping[str, Tensor], settings: Settings) -> bool:
        weight, scale = parts.get(".weight"), parts[".scale"]
        packed = weight is not None and weight.type in _BYTES and scale.type is plain.F8_E8M0
        return packed and weight is not None and scale.shape == (*weight.shape[:-1], weight.shape[-1] // 16)

    def coded(self, layer: Layer) -> Coded:
        return floats_of_four_bits(layer, layer.parts[".weight"], layer.parts[".scale"], 32)


def floats_of_four_bits(layer: Layer, packed: Tensor, scale: Tensor, group: int) -> Coded:
    """Numbers two in a byte, with a scale for each `group` of a row."""
    *lead, n, half = packed.shape if len(packed.shape) > 1 else (0, 0)
    k = half * 2
    if k == 0 or scale.shape != (*lead, n, k // group) or k % group:
        raise BadFile(
            f"{layer.settings.where}: tensor {cut(scale.name)} of shape {shown(scale.shape)} does not scale groups of "
            f"{group} of {cut(packed.name)} of shape {shown(packed.shape)}; the model is damaged"
        )
    values = exponents(scale) if scale.type in _EXPONENTS else scale
    flat = values.reshaped((values.n_rows, values.row_len))

    def codes(start: int, stop: int) -> NDArray[np.uint8]:
        return unpacked(packed.blocks(start, stop).view(np.uint8), 4, k)

    grid = Grid(flat, n, k, 1, group, stacked=bool(lead))
    return Coded(layer.weight, (*lead, n, k), codes, 0, 15, grid, table=E2M1)


def one_number(layer: Layer, end: str) -> NDArray[np.float32]:
    """A float32 that a whole weight shares."""
    found = layer.parts.get(end)
    if found is None:
        raise MissingTensor(layer.settings.where, layer.weight + end, "its weight needs it; fetch the model again")
    if found.n_elements != 1 or found.type.dtype is None:
        raise BadFile(
            f"{layer.settings.where}: tensor {cut(found.name)} has shape {shown(found.shape)}, expected one number"
        )
    number: NDArray[np.float32] = found.numpy().reshape(()).astype(np.float32)
    if not np.isfinite(number) or number == 0:
        raise BadFile(
            f"{layer.settings.where}: tensor {cut(found.name)} is {number:g}, expected a number that all weights of "
            f"{cut(layer.weight)} can be scaled with; the model is damaged"
        )
    return number
