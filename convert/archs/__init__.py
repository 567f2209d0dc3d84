"""Architectures: one declarative table per model family, a file each, found by being here.

A file is imported when a name is asked for that its text mentions, or when all are listed: a model needs one table, and
all of them take longer than many a conversion.  Another package adds its own by `register`, or by an entry point of the
group `llmconv.architectures`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmconv.convert.tables.architecture import Architecture
from llmconv.convert.tables.config import TEXT_MODELS, text_config
from llmconv.quant.entry_points import Registry

__all__ = ["Architecture", "all", "by_gguf", "by_hf", "register", "unregister"]


def _own(*names: Any) -> Iterator[Architecture]:
    """The tables of every file in a folder below this one, or of those that mention one of the names, in quotes."""
    for module, text in _texts().items():
        if not names or any(f'"{name}"' in text for name in names):
            yield from importlib.import_module(module).ARCHITECTURES


@functools.cache
def _texts() -> dict[str, str]:
    """The files' texts by module, read once: a conversion asks for several names."""
    files = sorted(Path(__file__).parent.glob("*/[!_]*.py"))
    return {f"{__name__}.{path.parent.name}.{path.stem}": path.read_text("utf-8") for path in files}


_REGISTRY = Registry("llmconv.architectures", Architecture, _own, lambda table: table.gguf, some=_own)
register, unregister = _REGISTRY.register, _REGISTRY.unregister


def all() -> list[Architecture]:
    """Every architecture."""
    return list(_REGISTRY.all().values())


def by_gguf(name: str) -> Architecture | None:
    """The architecture that GGUFs call `name`, or None."""
    return _REGISTRY.get(name)


def by_hf(config: Mapping[str, Any]) -> Architecture | None:
    """The architecture of a Hugging Face config.json: by class name, else by model type; None when unknown.

    Where several tables have one (multimodal) class, the type of its text model decides, else the first is taken.
    """
    inner = (config.get(key) for key in TEXT_MODELS)
    texts = [text.get("model_type") for text in inner if isinstance(text, Mapping)]
    classes = config.get("architectures")
    for wanted in classes if isinstance(classes, list) else ():
        for text in (*texts, None):
            found = _REGISTRY.first(lambda table: _has(table, wanted, text, config), wanted)  # noqa: B023
            if found is not None:
                return found
    types = [name for name in (config.get("model_type"), *texts) if isinstance(name, str)]
    if not types:  # a program's own settings; looking through every table would take longer than reading them
        return None
    both = _flat(config)
    return _REGISTRY.first(
        lambda table: any(name.model_type in types for name in table.hf) and table.covers(both), *types
    )


def _flat(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a text model over those around it."""
    inner = text_config(config)
    return config if inner is config else {**config, **inner}


def _has(table: Architecture, cls: Any, model_type: Any, config: Mapping[str, Any]) -> bool:
    """Whether the table covers this class around a text model of this type (None: of any), and the configuration."""
    named = (n for n in table.hf if n.cls == cls)
    fitting = any(n.model_type == model_type or (model_type is None and not n.around) for n in named)
    return fitting and table.covers(_flat(config))
