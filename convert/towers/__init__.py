"""Towers: what multimodal models have beside their text model, one table per kind, found by being in a folder here.

A file is imported when a class or projector is asked for that its text mentions, as the text families' are.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmconv.convert.tables.tower import Tower

__all__ = ["all", "by_config", "by_gguf", "projectors"]


@functools.cache
def _texts() -> dict[str, str]:
    """The files' texts by module."""
    files = sorted(Path(__file__).parent.glob("*/[!_]*.py"))
    return {f"{__name__}.{path.parent.name}.{path.stem}": path.read_text("utf-8") for path in files}


def _those(name: str) -> Iterator[Tower]:
    """The towers of every file that mentions the name, in quotes."""
    for module, text in _texts().items():
        if f'"{name}"' in text:
            yield from importlib.import_module(module).TOWERS


def all() -> list[Tower]:
    """Every tower."""
    return [tower for module in _texts() for tower in importlib.import_module(module).TOWERS]


def by_config(config: Mapping[str, Any]) -> Tower | None:
    """The tower of a config.json, by its class or its vision model's; None for a model that has none known here."""
    vision = config.get("vision_config")
    inside = vision.get("architectures") if isinstance(vision, Mapping) else None
    for classes in (config.get("architectures"), inside):
        for name in classes if isinstance(classes, list) else ():
            for tower in _those(name) if isinstance(name, str) else ():
                if name in tower.classes and tower.fits(config):
                    return tower
    return None


def projectors(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """The kinds of projectors that an mmproj file names, one or one for each side."""
    keys = ("clip.projector_type", "clip.vision.projector_type", "clip.audio.projector_type")
    return tuple(str(metadata[key]) for key in keys if key in metadata)


def by_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> Tower | None:
    """The tower of an mmproj file that says no more than its keys."""
    named = projectors(metadata)
    found = (t for name in named for t in _those(name) if t.projector in named and t.is_told(tensors))
    return next(found, None)
