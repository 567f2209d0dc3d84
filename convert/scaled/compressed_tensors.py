"""compressed-tensors' integers: packed ones read, INT8 written.

Read: `weight_packed` I32 (n, words), numbers of 1, 2, 4 or 8 bits, lowest first, stored as number + 2^(bits - 1), with
`weight_scale` (n, 1) or (n, groups), `weight_shape`, for asymmetric ones `weight_zero_point` packed down the rows, and
`weight_g_idx`, the group of each column, where their order was changed.  Source: the compressed-tensors package
(`compressors/pack_quantized`).  Integers that are not packed are read by `stored`.

Written: every matrix of a linear layer becomes int8 with a scale per output channel (`quant.int8`); embeddings, the
head, norms, routers and whatever is no linear layer stay as they are, and config.json's `quantization_config` says so.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert import archs
from llmconv.convert.quantizing import joined
from llmconv.convert.scaled.bits import stored_words, unpacked
from llmconv.convert.scaled.coded import Coded
from llmconv.convert.scaled.gptq import ordered
from llmconv.convert.scaled.grid import Grid, fitted
from llmconv.convert.scaled.scheme import Layer, Scheme, Settings
from llmconv.convert.scaled.stored import factors
from llmconv.convert.tables.config import read_config
from llmconv.convert.translate import translate
from llmconv.errors import BadFile, MissingTensor, Unsupported, cut, shown
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor, type_of_dtype
from llmconv.quant import int8, plain
from llmconv.quant.block import Bytes
from llmconv.quant.nonfinite import first_nonfinite

if TYPE_CHECKING:
    from llmconv.quant.rounding.groups import Rows8

__all__ = ["Packed", "is_linear", "to_int8"]


class Packed(Scheme):
    """Integers in words of 32 bits."""

    name = "compressed-tensors' pack-quantized"
    methods = ("compressed-tensors",)
    marks = ("_packed",)
    parts = ("_scale", "_shape", "_zero_point", "_g_idx")

    def fits(self, parts: Mapping[str, Tensor], settings: Settings) -> bool:
        return parts["_packed"].type is plain.I32

    def coded(self, layer: Layer) -> Coded:
        where, packed = layer.settings.where, layer.parts["_packed"]
        for end in ("_scale", "_shape"):
            if end not in layer.parts:
                raise MissingTensor(where, layer.weight + end, f"{cut(packed.name)} needs it; fetch the model again")
        stated = layer.parts["_shape"]
        if stated.type.is_float or stated.n_elements > 8:
            raise BadFile(f"{where}: tensor {cut(stated.name)} is no shape; the model is damaged, fetch it again")
        shape = tuple(int(n) for n in stated.numpy().reshape(-1))
        bits = _bits(packed, shape, layer.settings)
        scale = fitted(layer.weight, shape, factors(layer, layer.parts["_scale"]), layer.settings)
        zeros = layer.parts.get("_zero_point")
        zero: Grid | int = 0
        if zeros is not None:
            zero = dataclasses.replace(scale, values=_zero_points(layer, zeros, scale, bits))
        elif layer.settings.weights.get("symmetric") is False:
            raise MissingTensor(where, f"{layer.weight}_zero_point", "config.json says that there is one")
        own = layer.parts.get("_g_idx")
        unused = own is not None and not own.type.is_float and bool((own.numpy() == -1).all())  # as it is made at first
        order = None if unused else ordered(layer, shape[1], scale.values.row_len, "_g_idx")
        if order is not None:
            scale = dataclasses.replace(scale, order=order)
            zero = dataclasses.replace(zero, order=order) if isinstance(zero, Grid) else zero
        half = 1 << (bits - 1)

        def codes(start: int, stop: int) -> NDArray[np.int8]:
            return _numbers(packed.rows(start, stop), bits, shape[1])

        rows = stored_words(packed, bits, shape[1])
        return Coded(layer.weight, shape, codes, -half, half - 1, scale, zero, words=rows)


def _bits(packed: Tensor, shape: tuple[int, ...], settings: Settings) -> int:
    """Bits of a number: those whose words are as many as there are, and what config.json says."""
    stated = settings.weights.get("num_bits")
    fitting = [] if len(shape) != 2 or len(packed.shape) != 2 else [
        bits for bits in (8, 4, 2, 1) if packed.shape == (shape[0], -(-shape[1] * bits // 32))
    ]  # fmt: skip
    if stated in fitting or (stated is None and len(fitting) == 1):
        return stated or fitting[0]
    raise BadFile(
        f"{settings.where}: tensor {cut(packed.name)} of shape {shown(packed.shape)} does not hold weights of shape "
        f"{shown(shape)} in {stated or '8'} bits; only INT8 and 1, 2 or 4 bits can be read, give the original model"
    )


def _numbers(words: NDArray[np.int32], bits: int, k: int) -> NDArray[np.int8]:
    """(n, words) -> (n, k): the numbers in the words, lowest bits first, their offset taken off."""
    raw = np.ascontiguousarray(words, "<i4").view(np.uint8)
    return unpacked(raw, bits, k, 1 << (bits - 1)).view(np.int8)


def _zero_points(layer: Layer, zeros: Tensor, scale: Grid, bits: int) -> Tensor:
    """Zero points for the scales: as they are, or packed down the rows."""
    if zeros.type is plain.I32:
        down, across = scale.values.shape
        rows = -(-down * bits // 32)
        if zeros.shape[:1] != (rows,) or zeros.n_elements != rows * across:
            raise BadFile(
                f"{layer.settings.where}: tensor {cut(zeros.name)} of shape {shown(zeros.shape)} does not hold "
                f"the zero points of {shown(scale.values.shape)} scales; the model is damaged"
            )
        words = zeros.numpy().reshape(rows, across)
        return Tensor.from_array(zeros.name, np.ascontiguousarray(_numbers(words.T, bits, down).T))
    half = 1 << (bits - 1)
    for start, stop in zeros.slabs():
        numbers = zeros.rows(start, stop).astype(np.float32)
        if numbers.size and not -half <= numbers.min() <= numbers.max() < half:
            raise BadFile(
                f"{layer.settings.where}: tensor {cut(zeros.name)} has zero points from {numbers.min():g} to "
                f"{numbers.max():g}, expected {-half} to {half - 1} beside codes of {bits} bits; the model is damaged"
            )
    return fitted(layer.weight, (scale.n, scale.k), zeros, layer.settings).values


_NOT_LINEAR = re.compile(r"(^|[._])(embed\w*|wte|wpe|\w*norm\w*|ln_\w+|lm_head|router|gate|score|classifier|conv1d)$")
"""Last part of a module's name: embeddings, norms and the head; routers, which decide too much for what they weigh."""


def is_linear(tensor: Tensor) -> bool:
    """Whether a tensor in the dialect "hf" is the weight of a linear layer that is worth quantizing."""
    module, dot, last = tensor.name.rpartition(".")
    return (
        bool(dot) and last == "weight" and len(tensor.shape) == 2 and tensor.type.is_float
    ) and not _NOT_LINEAR.search(module)


def to_int8(checkpoint: Checkpoint, layout: str = int8.LAYOUTS[0], allow_nonfinite: bool = False) -> Checkpoint:
    """A model in any dialect -> dialect "hf", its linear layers INT8, lazily.

    layout: one of `quant.int8.LAYOUTS`.  Raises `Unsupported` for a model that is quantized in another way already, or
    whose matrices are not those of linear layers (GPT-2's Conv1D).
    """
    model = translate(checkpoint, "hf")
    where = checkpoint.where
    config = read_config(model)
    if not config:
        raise Unsupported(f"{where}: INT8 needs a config.json to say so; give a model folder or a GGUF")
    if "quantization_config" in config:
        raise Unsupported(f"{where}: is quantized already (quantization_config); give the original model")
    arch = archs.by_hf(config)
    if arch is not None and arch.decoder.get("conv1d"):
        raise Unsupported(
            f"{where}: GPT-2's layers are Conv1D, which compressed-tensors does not load; use a GGUF type"
        )
    tensors: dict[str, Tensor] = {}
    ignored = []
    for tensor in model.tensors.values():
        module = tensor.name.rpartition(".")[0]
        if not is_linear(tensor):
            tensors[tensor.name] = tensor
            if len(tensor.shape) == 2 and tensor.name.endswith(".weight") and not re.search("embed|norm", module):
                ignored.append(module)
            continue
        for made in _layer(module, tensor, layout, where, allow_nonfinite):
            tensors[made.name] = made
    stacks = [name for name, tensor in tensors.items() if len(tensor.shape) == 3]
    left = sorted({*ignored, "lm_head"}) + joined.ignored(stacks, tensors.keys() - set(stacks))
    config["quantization_config"] = int8.quantization_config(layout, left)
    files: dict[str, Path | bytes] = dict(model.files)
    files["config.json"] = json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
    return dataclasses.replace(model, tensors=tensors, files=files)


def _ready(tensor: Tensor) -> type[Rows8] | None:
    """The type of rows that are in 8 bits already (`groups.Rows8`); None of others."""
    if tensor.type.is_plain():
        return None
    from llmconv.quant.rounding import groups  # makes the tables of the codebook types

    return tensor.type if issubclass(tensor.type, groups.Rows8) else None


def _layer(module: str, tensor: Tensor, layout: str, where: str, allow_nonfinite: bool) -> list[Tensor]:
    """The tensors of one linear layer; each encodes the rows it is asked for."""
    n, k = tensor.shape
    ready = _ready(tensor)
    sample = tensor.type.dtype if tensor.type.is_plain() else np.dtype(np.float32)
    scale_dtype = int8.encode(np.zeros((1, 1), sample))[1].dtype if ready is None else ready.scales

    def encoded(start: int, stop: int) -> tuple[NDArray[np.int8], NDArray[Any]]:
        if ready is not None:
            return ready.numbers(tensor.blocks(start, stop))
        rows = tensor.rows(start, stop)
        index = None if allow_nonfinite else first_nonfinite(rows)
        if index is not None:
            place = [start + index // k, index % k]
            raise Unsupported(
                f"{where}: tensor {tensor.name!r}: weight {place} is {rows.reshape(-1)[index]}; "
                "repair the model, or let it through with --allow-nonfinite"
            )
        return int8.encode(rows)

    def scales(start: int, stop: int) -> Bytes:
        return encoded(start, stop)[1].view(np.uint8)

    made = [Tensor(f"{module}.weight_scale", (n, 1), type_of_dtype(scale_dtype), scales)]
    if layout == "int-quantized":
        made.insert(0, Tensor(tensor.name, (n, k), plain.I8, lambda a, b: encoded(a, b)[0].view(np.uint8)))
    else:
        words = -(-k // 4)
        packed = Tensor(
            f"{module}.weight_packed", (n, words), plain.I32, lambda a, b: int8.pack(encoded(a, b)[0]).view(np.uint8)
        )
        made = [packed, *made, Tensor.from_array(f"{module}.weight_shape", np.array([n, k], np.int64))]
    return made
