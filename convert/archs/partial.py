"""Rotary embeddings over a part of each head: configs give the fraction, GGUF the number of dimensions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.config import look_up
from llmconv.convert.tables.ops import Dims
from llmconv.errors import BadFile

__all__ = ["Finish", "partial_rotary"]

Finish = Callable[[dict[str, Any], Mapping[str, Any], Dims], None]
"""What `Architecture.finish` and `rebuild` are."""


def partial_rotary(names: str, default: float) -> tuple[Finish, Finish]:
    """The `finish` and `rebuild` of a family; `names` are the configuration's, "a|b", the first written back."""
    wanted = tuple(names.split("|"))

    def finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
        fraction = look_up(config, wanted)
        fraction = default if fraction is None else fraction
        if not isinstance(fraction, int | float) or not 0 < fraction <= 1:
            raise BadFile(f"config.json: {wanted[0]} is {fraction!r}, expected a number above 0 and at most 1")
        own["rope.dimension_count"] = np.uint32(int(fraction * dims["head_dim"]))

    def rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
        if dims["head_dim"]:
            config[wanted[0]] = dims["n_rot"] / dims["head_dim"]

    return finish, rebuild
