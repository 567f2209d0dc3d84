"""What a folder has beside its text model where no table here knows its tower: found by names, so that it is said."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from llmconv.errors import cut, more

__all__ = ["left_out", "of_a_tower", "settings_of_towers"]

_WORDS = (
    "vision|visual|image|img|video|pixel|patch|vit|siglip|clip|sam|mm_|multi_?modal|audio|speech|sound|acoustic|whisper"
    "|projector|connector|resampler|perceiver|aligner|qformer"
)
_SETTING = re.compile(rf"\w*(?:{_WORDS})\w*_(?:config|tower)", re.IGNORECASE)
_TENSOR = re.compile(rf"(?:[a-z_]+\.){{0,3}}(?:\w+_)?(?:{_WORDS})\w*(?:\.|$)", re.IGNORECASE)


def settings_of_towers(config: Mapping[str, Any]) -> list[str]:
    """The settings of a config.json that speak of what sees or hears: vision_config, mm_vision_tower, ..."""
    inner = config.get("thinker_config")
    told = {**config, **inner} if isinstance(inner, Mapping) else config
    return [name for name, value in told.items() if _SETTING.fullmatch(name) and value and value is not True]


def of_a_tower(config: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Those of the names that are a tower's, as their beginnings say, before any layer's number; [] where config.json
    speaks of no tower."""
    return [name for name in names if _TENSOR.match(name)] if settings_of_towers(config) else []


def left_out(names: list[str]) -> str:
    """The note about such tensors."""
    return (
        f"the text model alone: its tower is none known here, {len(names)} tensors are left out: "
        f"{cut(names[0])}{more(names)}"
    )
