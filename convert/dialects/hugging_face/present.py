"""What both ways between a folder and GGUF ask of a folder's tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import Architecture
from llmconv.convert.tables.config import Settings
from llmconv.errors import UnknownTensor
from llmconv.formats.checkpoint import Checkpoint

__all__ = ["as_present", "matches", "never_said", "unknown_tensors"]


def matches(patterns: Iterable[str], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def unknown_tensors(where: str, arch: Architecture, names: list[str]) -> UnknownTensor:
    why = f"is none that a {arch.gguf} model has; --no-strict leaves such tensors out"
    return UnknownTensor(where, names, why)


def as_present(config: dict[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without layers for further tokens, which it states of many models that come without them."""
    if config.get("architectures") == ["DeepseekV4DSparkModel"]:
        return _stages(config, tensors)
    first = f"layers.{config.get('num_hidden_layers')}."
    beside = (name for name in tensors if ".hc_head_" not in name)  # which a GGUF without them may keep
    there = any(first in name or name.startswith("mtp.") for name in beside)
    if config.get("num_nextn_predict_layers") and not there:
        return Settings({**config, "num_nextn_predict_layers": 0})
    if any(name.endswith(".mlp.up_gated_layer.weight") for name in tensors):  # Jina's later BERTs, which state it not
        return Settings({**config, "up_gated_layer": True})
    if any(name.endswith("model.mtp.embed_tokens.weight") for name in tensors):  # dots 3's, which no setting states
        return Settings({**config, "num_nextn_predict_layers": 1})
    further = {  # what Qwen, and behind "model." MiMo, call them
        name.partition("mtp.layers.")[2].split(".")[0]
        for name in tensors
        if name.startswith(("mtp.layers.", "model.mtp.layers."))
    }
    if further or config.get("mtp_num_hidden_layers"):
        return Settings({**config, "mtp_num_hidden_layers": len(further)})
    return config


def _stages(config: dict[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """A draft's settings, which are its model's, with how many layers it has itself, and the rank of its chain."""
    numbers = [int(n) for name in tensors if (n := name.removeprefix("mtp.").partition(".")[0]).isdecimal()]
    chain = next((t for name, t in tensors.items() if name.endswith("markov_head.markov_w1.weight")), None)
    rank = {} if chain is None or len(chain.shape) != 2 else {"dspark_markov_rank": chain.shape[1]}
    return Settings({**config, **rank, "num_hidden_layers": 1 + max(numbers, default=-1)})


def never_said(folder: Checkpoint) -> dict[str, Any]:
    """The tokens that generation_config.json says are never to be chosen (Gemma 4's), as a GGUF's key."""
    try:
        found = json.loads(folder.file("generation_config.json") or b"{}").get("suppress_tokens")
        ids = np.asarray(found, np.int32) if isinstance(found, list) and found else None
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        return {}
    return {} if ids is None or ids.ndim != 1 else {"tokenizer.ggml.suppress_tokens": ids}
