"""Dimensions of one, which ggml does not count: a quantizer writes a classifier of one label as a vector.

A table of one token type (XLM-R's), a head of one number (a reranker's), a bias of one row (ERNIE 4.5's), convolutions
(Kimi's): each is given the shape of its architecture's table again wherever a table reads the file.
"""

from __future__ import annotations

import re

from llmconv.convert import archs
from llmconv.convert.tables import own_keys
from llmconv.errors import LlmconvError
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

__all__ = ["with_ones"]


def with_ones(gguf: Checkpoint) -> Checkpoint:
    """A GGUF with its tensors in the shapes that the table of its architecture has, where they lack leading ones."""
    name = gguf.metadata.get("general.architecture")
    arch = archs.by_gguf(name) if isinstance(name, str) and not own_keys.is_plain(gguf.metadata) else None
    if arch is None:
        return gguf
    try:
        dims = arch.dims_of(arch.modern(gguf.metadata))
    except LlmconvError:
        return gguf  # whoever computes with its sizes says what is wrong with them, and in which file
    layers = [int(found[1]) for n in gguf.tensors if (found := re.match(r"blk\.(\d{1,9})\.", n))]
    dims["n_layer"] = min(dims["n_layer"], max(layers, default=-1) + 1, len(gguf.tensors))  # not what a file claims
    made: dict[str, Tensor] = {}
    for slot in arch.slots(dims):
        for one, shape in zip(slot.gguf, slot.shapes, strict=True):
            tensor = gguf.tensors.get(one)
            lacking = 0 if tensor is None else len(shape) - len(tensor.shape)
            if tensor is not None and lacking > 0 and shape == (1,) * lacking + tensor.shape:
                made[one] = tensor.reshaped(shape)
    return gguf.but(tensors={n: made.get(n, t) for n, t in gguf.tensors.items()}) if made else gguf
