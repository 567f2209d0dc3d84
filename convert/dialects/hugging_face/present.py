"""What both ways between a folder and GGUF ask of a folder's tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from llmconv.convert.tables.architecture import Architecture
from llmconv.convert.tables.config import Settings
from llmconv.errors import UnknownTensor

__all__ = ["as_present", "matches", "unknown_tensors"]


def matches(patterns: Iterable[str], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def unknown_tensors(where: str, arch: Architecture, names: list[str]) -> UnknownTensor:
    why = f"is none that a {arch.gguf} model has; --no-strict leaves such tensors out"
    return UnknownTensor(where, names, why)


def as_present(config: dict[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without layers for further tokens, which it states of many models that come without them."""
    first = f"layers.{config.get('num_hidden_layers')}."
    if config.get("num_nextn_predict_layers") and not any(first in name for name in tensors):
        return Settings({**config, "num_nextn_predict_layers": 0})
    further = {  # what Qwen, and behind "model." MiMo, call them
        name.partition("mtp.layers.")[2].split(".")[0]
        for name in tensors
        if name.startswith(("mtp.layers.", "model.mtp.layers."))
    }
    if further or config.get("mtp_num_hidden_layers"):
        return Settings({**config, "mtp_num_hidden_layers": len(further)})
    return config
