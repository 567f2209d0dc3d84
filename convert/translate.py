"""From one ecosystem's names and shapes to another's, always by way of the canonical dialect, GGUF's.

A dialect is a module with two functions, `to_gguf(checkpoint, **options)` and `from_gguf(checkpoint, **options)`, each
giving a new lazy `Checkpoint`.  `_DIALECTS` is the one place to add one.
"""

from __future__ import annotations

import importlib
from typing import Any

from llmconv.convert.tables import own_keys
from llmconv.errors import UsageError, about
from llmconv.formats.checkpoint import Checkpoint
from llmconv.quant.entry_points import problems

__all__ = ["translate"]

_DIALECTS = {
    "hf": "llmconv.convert.dialects.hf",
    "json": "llmconv.convert.dialects.documents",
    "plain": "llmconv.convert.dialects.training_files",
    "llama2c": "llmconv.convert.dialects.llama2c",
}


def translate(checkpoint: Checkpoint, to: str, **options: Any) -> Checkpoint:
    """The same model in the dialect `to` ("gguf", "hf", "json" or "plain"), lazily.

    Options go to the dialect that knows them (`layout` for JSON, `strict` for Hugging Face, ...).
    """
    for dialect in (checkpoint.dialect, to):
        if dialect != "gguf" and dialect not in _DIALECTS:
            raise UsageError(f"unknown dialect {dialect!r}; known: gguf, {', '.join(_DIALECTS)}")
    if checkpoint.dialect == to:
        return checkpoint
    with about(checkpoint.source):
        return _translated(checkpoint, to, options)


def _translated(checkpoint: Checkpoint, to: str, options: dict[str, Any]) -> Checkpoint:
    kept = {k: v for k, v in checkpoint.metadata.items() if k.startswith(own_keys.JSON) and isinstance(v, str)}
    if checkpoint.dialect != "gguf":
        checkpoint = importlib.import_module(_DIALECTS[checkpoint.dialect]).to_gguf(checkpoint, **options)
        checkpoint.metadata |= kept
        kept = {k: v for k, v in checkpoint.metadata.items() if k.startswith(own_keys.JSON)}
    if to != "gguf":
        checkpoint = importlib.import_module(_DIALECTS[to]).from_gguf(checkpoint, **options)
    if to != "json":
        checkpoint.metadata |= kept
    checkpoint.notes += [said for said in problems() if said not in checkpoint.notes]
    return checkpoint
