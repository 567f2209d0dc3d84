"""Experts as mlx-lm has them: those of a layer in one tensor.

It stacks them itself when it loads a folder, weights with their scales; but of some families it forgets the scales, and
then refuses the folder.  Of those whose names it leaves alone otherwise, experts are written as it has them.  Source:
`sanitize` of mlx-lm's models, version 0.32.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from llmconv.errors import Unsupported, cut
from llmconv.formats.moving.rows import join
from llmconv.formats.tensor import Tensor

__all__ = ["named", "stacked", "unread"]

_STACKED = {"qwen3_moe", "mellum", "ernie4_5_moe"}
"""Families, by model_type, whose experts are written as one."""
_UNREAD = {"lfm2_moe", "minimax", "minimax_m2", "nemotron_h", "qwen3_next"}
"""Those where more than names hangs on how experts are written."""
_EXPERT = re.compile(r"(?P<at>.+\.mlp)\.experts\.(?P<number>\d{1,5})\.(?P<part>(?:gate|up|down)_proj\b.*)")


def named(name: str, config: Mapping[str, Any]) -> str:
    """What mlx-lm calls a tensor or a module; an expert is called as all of its layer are."""
    found = _EXPERT.fullmatch(name) if config.get("model_type") in _STACKED else None
    return f"{found['at']}.switch_mlp.{found['part']}" if found else name


def stacked(tensors: Mapping[str, Tensor], config: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """The tensors, experts of a layer as one; `Unsupported` where they are not alike."""
    layers: dict[str, list[Tensor]] = {}
    for name in sorted(tensors, key=_number):
        layers.setdefault(named(name, config), []).append(tensors[name])
    made: dict[str, Tensor] = {}
    for name in dict.fromkeys(named(name, config) for name in tensors):
        first, *others = layers[name]
        if any(other.shape != first.shape or other.type is not first.type for other in others):
            raise Unsupported(
                f"{where}: experts of {cut(name)} are in several widths or types, and MLX has all of a layer in one; "
                "use W4A16, or a GGUF type"
            )
        made[name] = first if name in tensors else join(layers[name], (len(layers[name]), *first.shape)).renamed(name)
    return made


def _number(name: str) -> int:
    found = _EXPERT.fullmatch(name)
    return int(found["number"]) if found else 0


def unread(weights: Iterable[str], config: Mapping[str, Any]) -> list[str]:
    """A note where mlx-lm will not load these quantized weights."""
    kind = str(config.get("model_type"))
    if kind not in _UNREAD or not any(".experts." in name for name in weights):
        return []
    return [f"mlx-lm 0.32 forgets the scales of {kind}'s experts, so it will not load this folder; llmconv does"]
