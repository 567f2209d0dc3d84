"""Any document: each array under its path or its name; what documents of all layouts keep."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from llmconv.convert import layouts
from llmconv.convert.dialects import named_tensors
from llmconv.convert.layouts.base import look
from llmconv.convert.tables import own_keys
from llmconv.errors import BadFile, cut as cut_short, more
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.documents.document import dumps, join
from llmconv.formats.documents.json_scan import Style
from llmconv.formats.tensor import folded

__all__ = ["as_plain", "name_of", "style_keys"]


def name_of(checkpoint: Checkpoint) -> str:
    name = look(checkpoint.metadata["document"], "metadata.name")
    if isinstance(name, str) and name:
        return name
    return checkpoint.source.stem if checkpoint.source else "model"


def style_keys(checkpoint: Checkpoint) -> dict[str, str]:
    style = checkpoint.metadata.get("style")
    return {own_keys.JSON_STYLE: json.dumps(dataclasses.asdict(style))} if isinstance(style, Style) else {}


def as_plain(checkpoint: Checkpoint, layout: str | None, where: str) -> Checkpoint:
    """Any document: each array under its path (or its name in a map of named tensors)."""
    if layout == layouts.NAMED:
        return named_tensors.to_gguf(
            checkpoint, where, {own_keys.JSON_LAYOUT: layouts.NAMED, **style_keys(checkpoint)}, own_keys.JSON_DOCUMENT
        )
    if not checkpoint.tensors:
        reason = f"; {checkpoint.notes[0]}" if checkpoint.notes else ""
        raise BadFile(f"{where}: holds no array of numbers, so there is nothing to convert{reason}")
    out = checkpoint.derived("gguf")
    out.tensors = {name: folded(t) for name, t in checkpoint.tensors.items()}
    out.notes += _single_numbers(checkpoint.metadata["document"])
    out.metadata = {
        "general.architecture": "plain",
        "general.name": name_of(checkpoint),
        own_keys.LAYOUT: own_keys.PLAIN,
        own_keys.JSON_LAYOUT: layouts.PLAIN,
        own_keys.JSON_DOCUMENT: dumps(checkpoint.metadata["document"]),
        **style_keys(checkpoint),
    }
    return out


_SINGLE = ("bias", "biases", "weight", "weights", "w", "b", "threshold", "gamma", "beta", "scale")


def _single_numbers(document: Any) -> list[str]:
    """A note on weights that are single numbers, which are no tensors: nobody should think that they were quantized."""
    found: list[str] = []

    def walk(node: Any, path: str) -> None:
        if isinstance(node, dict | list):
            for key, child in node.items() if isinstance(node, dict) else enumerate(node):
                if key in _SINGLE and type(child) in (int, float):
                    found.append(join(path, key))
                walk(child, join(path, key))

    walk(document, "")
    return [f"{cut_short(found[0])}{more(found)} is a single number, no array: it stays as it is"] if found else []
