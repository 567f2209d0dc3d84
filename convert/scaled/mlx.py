"""MLX: integers of 2 to 8 bits in words of 32, a value is code * scale + bias; and its floats of four or eight bits.

`weight` U32 (n, k * bits / 32), lowest bits first, one stream of bits a row; `scales` and, for integers, `biases`
(n, k / group).  Modes mxfp4 and mxfp8 have exponents for scales, in U8, nvfp4 E4M3.  config.json's `quantization` says
bits, group_size and mode, for all layers or under a module's name.  Source: MLX's `mx.quantize`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.scaled.bits import stored_words, unpacked
from llmconv.convert.scaled.coded import Coded
from llmconv.convert.scaled.four_bit_floats import E2M1
from llmconv.convert.scaled.grid import Grid
from llmconv.convert.scaled.scheme import Layer, Scheme, Settings
from llmconv.convert.scaled.stored import exponents, factors
from llmconv.errors import BadFile, MissingTensor, Unsupported, cut, shown
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain

__all__ = ["Mlx"]

_BITS = (2, 3, 4, 5, 6, 8)
_FLOATS = {"mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}
"""Bits of a number and group, by mode."""
_E4M3 = np.arange(256, dtype=np.uint8).view(plain.F8_E4M3.dtype).astype(np.float32)


class Mlx(Scheme):
    """Integers with scales and biases."""

    name = "MLX"
    marks = (".scales",)
    parts = (".weight", ".biases")

    def weight(self, stem: str) -> str:
        return f"{stem}.weight"

    def fits(self, parts: Mapping[str, Tensor], settings: Settings) -> bool:
        return ".weight" in parts and parts[".weight"].type in (plain.U32, plain.I32)

    def coded(self, layer: Layer) -> Coded:
        packed, scales, biases = (layer.parts.get(end) for end in (".weight", ".scales", ".biases"))
        assert packed is not None and scales is not None
        said = _said(layer)
        mode = said.get("mode") or ("affine" if biases is not None or scales.type is not plain.U8 else "mxfp4")
        if mode not in ("affine", *_FLOATS):
            raise Unsupported(
                f"{layer.settings.where}: tensor {cut(packed.name)} is quantized by MLX in the mode {cut(mode)}, which "
                "can't be read; give the original model"
            )
        bits, group = _FLOATS.get(mode) or (said.get("bits"), said.get("group_size"))
        *lead, n, words = packed.shape if len(packed.shape) > 1 else (0, 0)
        across = scales.row_len
        bits, group = _of_shapes(words, across, bits, group)
        if biases is None and mode == "affine":
            raise MissingTensor(layer.settings.where, f"{packed.name.removesuffix('.weight')}.biases", "fetch it again")
        if any(t is not None and (t.type is plain.U8) is (mode == "affine") for t in (scales, biases)):
            raise BadFile(
                f"{layer.settings.where}: tensor {cut(scales.name)} is {scales.type.name} beside the codes of "
                f"{cut(packed.name)} in MLX's mode {mode}, expected {'floats' if mode == 'affine' else 'U8'} in it and "
                "its biases; the model is damaged"
            )
        whole = bits in _BITS and words and scales.shape == (*lead, n, across) and words * 32 == across * group * bits
        if not whole or (mode == "affine" and (biases is None or biases.shape != scales.shape)):
            raise BadFile(
                f"{layer.settings.where}: tensor {cut(packed.name)} of shape {shown(packed.shape)} does not go with "
                f"scales of shape {shown(scales.shape)} in {bits} bits and groups of {group}; the model is damaged"
            )
        k = across * group

        def codes(start: int, stop: int) -> NDArray[np.uint8]:
            return unpacked(packed.blocks(start, stop), bits, k)

        def grid(tensor: Tensor) -> Grid:
            return Grid(tensor.reshaped((tensor.n_rows, across)), n, k, 1, group, stacked=bool(lead))

        shape, high = (*lead, n, k), (1 << bits) - 1
        if mode == "affine":
            assert biases is not None
            scale, bias = grid(factors(layer, scales)), grid(factors(layer, biases))
            rows = stored_words(packed, bits, k)
            return Coded(layer.weight, shape, codes, 0, high, scale, bias=bias, words=rows)
        table = E2M1 if bits == 4 else _E4M3
        return Coded(layer.weight, shape, codes, 0, high, grid(_small(scales, mode)), table=table)


def _said(layer: Layer) -> Mapping[str, Any]:
    """The settings of a layer: its module's own, else those for all."""
    values, module = layer.settings.values, layer.weight.removesuffix(".weight")
    own = values.get(module)
    if own is None:  # under another prefix than the tensor: language_model.model.layers, model.language_model.layers
        tail = module[module.index("layers.") :] if "layers." in module else module.rpartition(".")[2]
        others = [key for key, said in values.items() if isinstance(said, dict) and f".{key}".endswith(f".{tail}")]
        own = values[others[0]] if len(others) == 1 else None
    return {**values, **own} if isinstance(own, dict) else values


def _of_shapes(words: int, across: int, bits: Any, group: Any) -> tuple[int, int]:
    """Bits and group, one from the other where only one is said; 4 bits where neither is."""
    total = words * 32 // max(across, 1)  # bits of a group
    if type(group) is int and group > 0 and type(bits) is not int:
        return total // group, group
    bits = bits if type(bits) is int and bits > 0 else 4
    return bits, group if type(group) is int and group > 0 else total // bits


def _small(scales: Tensor, mode: str) -> Tensor:
    """The scales of a mode, as floats."""
    if mode != "nvfp4":
        return exponents(scales)
    return Tensor(scales.name, scales.shape, plain.F32, lambda a, b: _E4M3[scales.blocks(a, b)].view(np.uint8))
