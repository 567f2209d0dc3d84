"""What a model file holds, as plain data for people and programs: no weight is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmconv.convert.towers import which
from llmconv.convert.translate import translate
from llmconv.errors import LlmconvError
from llmconv.formats.checkpoint import Checkpoint

__all__ = ["describe"]

LONG = 16
"""Entries of an array that a report shows."""


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Format, architecture, hyper-parameters, vocabulary, metadata and tensors of a checkpoint.

    A checkpoint in another dialect is translated to say what model it is; when that fails its tensors are listed all
    the same, and a note says why.
    """
    notes: list[str] = []
    model = checkpoint
    if checkpoint.dialect != "gguf":
        try:
            model = translate(checkpoint, "gguf")
        except LlmconvError as error:
            notes.append(str(error))
    metadata = model.metadata if model.dialect == "gguf" else {}
    arch = metadata.get("general.architecture", "")
    own = {k: v for k, v in metadata.items() if k.startswith(f"{arch}.")}
    rest = metadata if checkpoint.dialect == "gguf" else checkpoint.metadata
    return {
        "file": str(checkpoint.source or ""),
        "size": checkpoint.nbytes,
        "format": checkpoint.format,
        "info": {k: v for k, v in checkpoint.info.items() if isinstance(v, str | int) and not isinstance(v, bool)},
        "dialect": checkpoint.dialect,
        "architecture": str(arch),
        "half": _half(checkpoint, model),
        "parameters": sum(t.n_elements for t in checkpoint.tensors.values() if t.type.is_float),
        "types": dict(Counter(t.type.name for t in checkpoint.tensors.values())),
        "hyperparameters": {k.removeprefix(f"{arch}."): _value(v) for k, v in own.items()},
        "vocabulary": _vocabulary(metadata, notes),
        "metadata": {k: _value(v) for k, v in rest.items() if k not in own and k not in ("document", "style")},
        "notes": notes,
        "tensors": [
            {"name": t.name, "type": t.type.name, "shape": list(t.shape), "bytes": t.nbytes}
            for t in checkpoint.tensors.values()
        ],
    }


def _half(checkpoint: Checkpoint, model: Checkpoint) -> dict[str, Any] | None:
    """Which half of a multimodal model a file is, and what its partner is called; None for any whole model."""
    if which.tower_of(checkpoint) is not None:
        return {"is": "both", "partner": "", "there": True}
    is_tower = which.is_tower(model)
    if not is_tower and not which.is_text_half(model):
        return None
    name = checkpoint.source.name if checkpoint.source else "model.gguf"
    partner = name.replace("mmproj-", "", 1) if is_tower else f"mmproj-{name}"
    there = checkpoint.source is not None and partner != name and checkpoint.source.with_name(partner).is_file()
    return {"is": "tower" if is_tower else "text", "partner": partner if partner != name else "", "there": there}


def _value(value: Any) -> Any:
    """A metadata value as JSON has it; long arrays as their length and beginning."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    if isinstance(value, str | int | bool) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(k): _value(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | Sequence):
        first = [_value(v) for v in value[:LONG]]
        return first if len(value) <= LONG else {"length": len(value), "first": first}
    return str(value)


def _vocabulary(metadata: Mapping[str, Any], notes: list[str]) -> dict[str, Any] | None:
    from llmconv.convert import vocab

    try:
        found = vocab.from_gguf(metadata)
    except LlmconvError as error:
        notes.append(str(error))
        return None
    if found is None:
        return None
    special = {role: [id, str(found.tokens[id])] for role, id in found.special.items()}
    return {"size": len(found), "model": found.model, "pre": found.pre, "special": special}
