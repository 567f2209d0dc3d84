"""INT8 weights for safetensors: a Hugging Face model whose linear layers are stored as compressed-tensors stores them.

Every matrix of a linear layer becomes int8 with a scale per output channel (`quant.int8`); embeddings, the head, norms,
routers and whatever is no linear layer stay as they are, and config.json's `quantization_config` says so.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert import archs
from llmconv.convert.tables.config import read_config
from llmconv.convert.translate import translate
from llmconv.errors import Unsupported
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor, type_of_dtype
from llmconv.quant import int8, plain
from llmconv.quant.block import Bytes
from llmconv.quant.nonfinite import first_nonfinite

__all__ = ["is_linear", "to_int8"]

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
    config["quantization_config"] = int8.quantization_config(layout, sorted({*ignored, "lm_head"}))
    files: dict[str, Path | bytes] = dict(model.files)
    files["config.json"] = json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
    return dataclasses.replace(model, tensors=tensors, files=files)


def _layer(module: str, tensor: Tensor, layout: str, where: str, allow_nonfinite: bool) -> list[Tensor]:
    """The tensors of one linear layer; each encodes the rows it is asked for."""
    n, k = tensor.shape
    sample = tensor.type.dtype if tensor.type.is_plain() else np.dtype(np.float32)
    scale_dtype = int8.encode(np.zeros((1, 1), sample))[1].dtype

    def encoded(start: int, stop: int) -> tuple[NDArray[np.int8], NDArray[Any]]:
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
