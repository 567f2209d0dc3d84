"""Architectures: one declarative table per model family, a file each, found by being here."""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Mapping
from typing import Any

from llmconv.convert.tables.architecture import Architecture
from llmconv.convert.tables.registry import gather

__all__ = ["Architecture", "all", "by_gguf", "by_hf"]


def _families() -> list[str]:
    """Every module below this package, "llama.qwen": a family is added by adding its file."""
    found = pkgutil.walk_packages(__path__, __name__ + ".")
    return [
        m.name.removeprefix(__name__ + ".")
        for m in found
        if not m.ispkg and m.name.count(".") > __name__.count(".") + 1
    ]


@functools.cache
def _tables() -> dict[str, Architecture]:
    return gather(__name__, _families(), "ARCHITECTURES", "gguf")


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
