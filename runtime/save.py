"""From a model back to a checkpoint, so that what was trained or loaded can be written in any format."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from llmconv.convert import further
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant.block import Bytes, by_name
from llmconv.runtime.layers.norms import Norm
from llmconv.runtime.linear import Stored
from llmconv.runtime.model import Model

__all__ = ["NAMES", "checkpoint_of"]

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""torch's dtype -> the type that stores it."""


def checkpoint_of(model: torch.nn.Module, metadata: dict[str, Any] | None = None) -> Checkpoint:
    """A checkpoint in GGUF's dialect over a model's weights as they are now.

    model: a `Model`, or a module that wraps one's state dict (compiled, DDP: their prefixes are taken off).
    metadata: GGUF keys; the model's own when None.

    Layers for further tokens are not run, so not there; nor is what keys say of them.
    The tensors read the model's memory when they are written: nothing is copied before, and training on changes them.
    """
    inner = model
    for name in ("module", "_orig_mod"):
        inner = getattr(inner, name, inner)
    if metadata is None:
        metadata = dict(inner.metadata) if isinstance(inner, Model) else {}
    stored = {name: module for name, module in inner.named_modules() if isinstance(module, Stored)}
    bare = {name for name, module in inner.named_modules() if isinstance(module, Norm) and module.bare}
    out = Checkpoint(metadata=metadata, dialect="gguf", format="")
    for key, value in inner.state_dict().items():
        name = key if "." in key else f"{key}.weight"  # rope_freqs is a buffer under its bare name
        module = stored.get(name.rpartition(".")[0])
        name = name.rpartition(".")[0] if name.rpartition(".")[0] in bare else name
        if module is not None and name.endswith(".weight"):
            kind = module.block_type or by_name(NAMES[value.dtype])
            shape = module.shape[1:] if name.endswith("ffn_gate_inp_shexp.weight") else module.shape
        else:
            kind, shape = by_name(NAMES[value.dtype]), tuple(value.shape)
        out.add(_tensor(name, shape, kind, value.detach()))
    return further.without(out) if further.count(out) else out  # which no model in memory has


def _tensor(name: str, shape: tuple[int, ...], kind: Any, value: torch.Tensor) -> Tensor:
    width = shape[-1] if shape else 1
    rows = value.reshape(-1, kind.row_bytes(width) if value.dtype == torch.uint8 else width)

    def read(start: int, stop: int) -> Bytes:
        part = rows[start:stop].contiguous().cpu()
        if not part.numel():
            return np.empty((stop - start, kind.row_bytes(width)), np.uint8)
        return part.view(torch.uint8).numpy()

    return Tensor(name, shape, kind, read)
