"""What a model folder says in two ways that do not agree: which of them is followed is said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llmconv.convert.tables.config import text_config
from llmconv.errors import cut
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain

__all__ = ["contradictions"]


def contradictions(config: Mapping[str, Any], out: Mapping[str, Tensor]) -> Iterator[str]:
    """Notes about a config.json, and the GGUF's tensors that were made of its folder's."""
    text = text_config(config)
    parameters, scaling = text.get("rope_parameters"), text.get("rope_scaling")
    if parameters and scaling and parameters != scaling:
        yield f"config.json: rope_parameters is followed; rope_scaling says otherwise ({cut(scaling, 60)})"
    rope = parameters or scaling
    if isinstance(rope, Mapping):
        theta, other = rope.get("rope_theta"), text.get("rope_theta")
        if theta is not None and other is not None and theta != other:
            within, outside = cut(theta, 30), cut(other, 30)
            yield f"config.json: the rope_theta within, {within}, is followed, not the one outside, {outside}"
        kind, old = rope.get("rope_type"), rope.get("type")
        if kind is not None and old is not None and kind != old:
            yield f"config.json: the rope_type {cut(kind, 30)} is followed, not the type {cut(old, 30)}"
    if text.get("tie_word_embeddings") and _differ(out.get("token_embd.weight"), out.get("output.weight")):
        yield (
            "config.json ties the head to the embeddings, but the file has another head, which is kept; releases of "
            "transformers before 5 take the embeddings"
        )


def _differ(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether both are there and hold other numbers; slab by slab, up to the first that differs."""
    if one is None or other is None or one.shape != other.shape:
        return one is not None and other is not None
    if one.type is not other.type:
        one, other = one.astype(plain.F32), other.astype(plain.F32)
    return any(one.rows(a, b).tobytes() != other.rows(a, b).tobytes() for a, b in one.slabs())
