"""Architectures: one declarative table per model family.  `_FAMILIES` is the one place to add a file."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from llmconv.convert.tables.architecture import Architecture
from llmconv.convert.tables.registry import gather

__all__ = ["Architecture", "all", "by_gguf", "by_hf"]

_FAMILIES = (
    "llama",
    "qwen",
    "gemma",
    "gpt2",
    "gptneox",
    "phi",
    "stablelm",
    "granite",
    "internlm2",
    "deepseek",
    "gpt_oss",
    "bert",
    "simple_llm",
)


@functools.cache
def _tables() -> dict[str, Architecture]:
    return gather(__name__, _FAMILIES, "ARCHITECTURES", "gguf")


def all() -> list[Architecture]:
    """Every architecture."""
    return list(_tables().values())


def by_gguf(name: str) -> Architecture | None:
    """The architecture that GGUFs call `name`, or None."""
    return _tables().get(name)


def by_hf(config: Mapping[str, Any]) -> Architecture | None:
    """The architecture of a Hugging Face config.json: by class name, else by model type; None when unknown."""
    classes = config.get("architectures")
    for wanted in classes if isinstance(classes, list) else ():
        for table in all():
            if any(name.cls == wanted for name in table.hf):
                return table
    types = {config.get("model_type")}
    for inner in ("text_config", "llm_config"):
        if isinstance(config.get(inner), Mapping):
            types.add(config[inner].get("model_type"))
    for table in all():
        if any(name.model_type in types for name in table.hf):
            return table
    return None
