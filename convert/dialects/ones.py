"""Dimensions of one, which ggml does not count: a quantizer writes a classifier of one label as a vector.

A table of one token type (XLM-R's), a head of one number (a reranker's), a bias of one row (ERNIE 4.5's), convolutions
(Kimi's): each is given the shape of its architecture's table again wherever a table reads the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from llmconv.convert import archs
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.rows import Slot
from llmconv.errors import LlmconvError
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

__all__ = ["in_shapes", "shapes_of", "with_ones"]


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
    return in_shapes(gguf, shapes_of(arch.slots(dims)))


def shapes_of(slots: Iterable[Slot]) -> dict[str, tuple[int, ...]]:
    """The shapes that a table says of its tensors."""
    return {name: shape for slot in slots for name, shape in zip(slot.gguf, slot.shapes, strict=True)}


def in_shapes(gguf: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> Checkpoint:
    """A GGUF with its tensors in these shapes, where all that they lack are leading ones."""
    made: dict[str, Tensor] = {}
    for name, tensor in gguf.tensors.items():
        shape = shapes.get(name, ())
        lacking = len(shape) - len(tensor.shape)
        if lacking > 0 and shape == (1,) * lacking + tensor.shape:
            made[name] = tensor.reshaped(shape)
    return gguf.but(tensors=gguf.tensors | made) if made else gguf
