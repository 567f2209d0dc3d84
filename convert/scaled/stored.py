"""Numbers of eight bits, floats or integers, under the weight's own name, with scales beside them.

| stored as | a layer's tensors |
|---|---|
| fp8, scales by block (DeepSeek-V3, Qwen3-FP8) | `weight` F8_E4M3 (n, k), `weight_scale_inv` (n / b0, k / b1) |
| fp8, scales by row or tensor (compressed-tensors, FBGEMM, ModelOpt) | `weight` F8, `weight_scale` (n, 1) or one |
| fp8 (DeepSeek's own programs) | `weight` F8_E4M3 (n, k), `scale` by block |
| fp8, exponents for scales (MXFP8) | `weight` F8, `weight_scale` U8 (n, k / 32) |
| fp8 (Mistral's own files) | `weight` F8_E4M3, `qscale_weight`, one |
| fp8, int8 (torchao) | `_weight_qdata`, `_weight_scale`, perhaps `_weight_zero_point` |
| fp8, int8 (quanto) | `weight._data`, `weight._scale` |
| int8 (compressed-tensors' int-quantized) | `weight` I8, `weight_scale` (n, 1), perhaps `weight_zero_point` |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.scaled.coded import Coded
from llmconv.convert.scaled.grid import fitted
from llmconv.convert.scaled.scheme import Layer, Scheme, Settings
from llmconv.errors import BadFile, MissingTensor, cut
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain

__all__ = [
    "TYPES",
    "Stored",
    "StoredBeside",
    "StoredByMistral",
    "StoredByQuanto",
    "StoredByTorchao",
    "exponents",
    "factors",
]

TYPES = (plain.F8_E4M3, plain.F8_E5M2, plain.F8_E4M3FNUZ, plain.F8_E5M2FNUZ, plain.I8)


class Stored(Scheme):
    """fp8 and int8."""

    name = "fp8 or int8"
    methods: ClassVar[tuple[str, ...]] = ("fp8", "compressed-tensors", "fbgemm_fp8", "modelopt")
    marks: ClassVar[tuple[str, ...]] = ("_scale_inv", "_scale")  # `_scale_inv` is a factor too, in spite of its name
    parts: ClassVar[tuple[str, ...]] = ("", "_zero_point")
    stored: ClassVar[str] = ""
    """The ending of the numbers themselves."""
    scales: ClassVar[tuple[str, ...]] = marks
    """The endings of their scales."""

    def fits(self, parts: Mapping[str, Tensor], settings: Settings) -> bool:
        return self.stored in parts and parts[self.stored].type in TYPES and any(end in parts for end in self.scales)

    def coded(self, layer: Layer) -> Coded:
        stored = layer.parts[self.stored]
        assert stored.type.dtype is not None
        table = None
        if stored.type is not plain.I8:
            table = np.arange(256, dtype=np.uint8).view(stored.type.dtype).astype(np.float32)

        scale = factors(layer, next(layer.parts[end] for end in self.scales if end in layer.parts))
        zeros = layer.parts.get("_zero_point")
        if zeros is None and layer.settings.weights.get("symmetric") is False:
            raise MissingTensor(
                layer.settings.where, f"{layer.weight}_zero_point", "config.json says that there is one; fetch it again"
            )
        bits = layer.settings.bits(layer.weight) or 8
        if not 1 <= bits <= 64:
            raise BadFile(
                f"{layer.settings.where}: config.json says {bits} bits of {cut(layer.weight)}, whose numbers have 8; "
                "the model is damaged"
            )
        half = 1 << (bits - 1)
        narrow = table is None and 1 < half < 128

        def codes(start: int, stop: int) -> NDArray[Any]:
            found: NDArray[Any] = stored.blocks(start, stop).view(np.uint8 if table is not None else np.int8)
            if narrow and found.size and not -half <= found.min() <= found.max() < half:
                raise BadFile(
                    f"{layer.settings.where}: tensor {cut(stored.name)} has numbers from {found.min()} to "
                    f"{found.max()}, expected {-half} to {half - 1} as config.json says; the model is damaged"
                )
            return found

        return Coded(
            layer.weight,
            stored.shape,
            codes,
            -half if narrow else -128,
            half - 1 if narrow else 127,
            fitted(layer.weight, stored.shape, scale, layer.settings),
            0 if zeros is None else fitted(layer.weight, stored.shape, zeros, layer.settings),
            table=table,
        )


class StoredBeside(Stored):
    """fp8 as DeepSeek's own programs name it: `weight` and `scale` in one module."""

    marks = (".scale",)
    scales = (".scale",)
    parts = (".weight",)
    stored = ".weight"

    def weight(self, stem: str) -> str:
        return f"{stem}.weight"


class StoredByMistral(StoredBeside):
    """fp8 as Mistral's own files name it."""

    marks = (".qscale_weight",)
    scales = (".qscale_weight",)


class StoredByQuanto(Stored):
    """fp8 and int8 as quanto names them; of fewer bits it does not say the weight's shape."""

    name = "quanto"
    methods: ClassVar[tuple[str, ...]] = ("quanto",)
    marks = ("._data",)
    parts = ("._scale",)
    scales = ("._scale",)
    stored = "._data"


class StoredByTorchao(Stored):
    """fp8 and int8 as torchao flattens its tensors; one of floats for zero points is its packed int4."""

    name = "torchao"
    methods: ClassVar[tuple[str, ...]] = ("torchao",)
    marks = ("_qdata",)
    parts = ("_scale", "_zero_point")
    stored = "_qdata"
    scales = ("_scale",)

    def weight(self, stem: str) -> str:
        module, dot, last = stem.rpartition(".")
        return module + dot + last.removeprefix("_")

    def fits(self, parts: Mapping[str, Tensor], settings: Settings) -> bool:
        zero = parts.get("_zero_point")
        return super().fits(parts, settings) and not (zero is not None and zero.type.is_float)


def factors(layer: Layer, scale: Tensor) -> Tensor:
    """The scales, if they are floats, or exponents of two in bytes."""
    if scale.type is plain.U8:
        return exponents(scale)
    if not scale.type.is_float or scale.type.dtype is None:
        raise BadFile(
            f"{layer.settings.where}: tensor {cut(scale.name)} is {scale.type.name}, expected floats; "
            "the model is damaged"
        )
    return scale


def exponents(scale: Tensor) -> Tensor:
    """Powers of two, stored as exponents more 127, as floats."""
    powers: NDArray[np.float32] = np.ldexp(np.float32(1), np.minimum(np.arange(256), 254) - 127).astype(np.float32)
    powers[255] = np.nan

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        made: NDArray[np.float32] = powers[scale.blocks(start, stop)]
        return made.view(np.uint8)

    return Tensor(scale.name, scale.shape, plain.F32, read)
