"""Which layers attend only to a window: `layer_types` of a config.json, an array in a GGUF, a pattern by default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.pieces import Pieces
from llmconv.errors import BadFile, Unsupported

__all__ = ["every_nth", "usual_windows", "window_keys", "windows_config"]

_LAYERS = 1 << 16
PATTERN = "attention.sliding_window_pattern"
_KINDS = {"sliding_attention": True, "full_attention": False}


def usual_windows(pieces: Pieces, n_layer: int) -> list[bool]:
    """The layers with a window in a model of the family that has one and does not say where."""
    every = pieces.get("window_pattern")
    return [False] * n_layer if every is None else every_nth(every, pieces, n_layer)


def every_nth(every: int, pieces: Pieces, n_layer: int) -> list[bool]:
    """The layers with a window, where every n-th has none: the last of n, or the first; 0: all have one."""
    full = 0 if pieces.get("window_first") else every - 1
    return [not every or i % every != full for i in range(n_layer)]


def window_keys(own: dict[str, Any], config: Mapping[str, Any], pieces: Pieces, source: str) -> None:
    """Add the pattern to a GGUF's (bare) keys, where the windows are not where the family usually has them."""
    blocks = int(own.get("block_count", 0)) - int(own.get("nextn_predict_layers", 0))
    n_layer, kinds = min(blocks, _LAYERS), config.get("layer_types")
    every = config.get("sliding_window_pattern", config.get("_sliding_window_pattern"))
    if isinstance(kinds, list):
        unknown = next((kind for kind in kinds if not isinstance(kind, str) or kind not in _KINDS), None)
        if unknown is not None:
            raise Unsupported(f"{source}: layer_types has {unknown!r:.60}; known: {', '.join(_KINDS)}")
        if len(kinds) < n_layer:
            raise BadFile(f"{source}: layer_types has {len(kinds)} entries, expected {n_layer}, one for each layer")
        windows = [_KINDS[kind] for kind in kinds[:n_layer]]
    elif PATTERN in own:
        return  # counted in the family's own way
    elif isinstance(every, int) and not isinstance(every, bool) and every > 0:
        windows = [(i + 1) % every != 0 for i in range(n_layer)]
    else:
        return
    if not int(own.get("attention.sliding_window", 0)):
        return
    stated = own.get(PATTERN)
    if isinstance(stated, np.integer) and windows == every_nth(int(stated), pieces, n_layer):
        return
    if PATTERN in own or windows != usual_windows(pieces, n_layer):
        further = np.atleast_1d(own.get(PATTERN, [])).tolist()[n_layer:]  # layers for further tokens
        own[PATTERN] = np.asarray([*windows, *further], np.bool_)


def windows_config(config: dict[str, Any], own: Mapping[str, Any], pieces: Pieces) -> None:
    """The way back: `layer_types` from a GGUF's (bare) keys, where it has a pattern of its own."""
    pattern = own.get(PATTERN)
    if isinstance(pattern, np.ndarray | list | tuple):
        config["layer_types"] = ["sliding_attention" if on else "full_attention" for on in pattern]
    elif isinstance(pattern, int | np.integer) and pattern > 0:
        n_layer = min(int(own.get("block_count", 0)), _LAYERS)
        windows = every_nth(int(pattern), pieces, n_layer)
        config["layer_types"] = ["sliding_attention" if on else "full_attention" for on in windows]
    elif pieces.get("window_pattern") and PATTERN not in own:
        windows = usual_windows(pieces, min(int(own.get("block_count", 0)), _LAYERS))
        config["layer_types"] = ["sliding_attention" if on else "full_attention" for on in windows]
    if not own.get("attention.sliding_window", pieces.get("window")) and pieces.get("window_pattern"):
        config["layer_types"] = ["full_attention"] * min(int(own.get("block_count", 0)), _LAYERS)
        if pieces.get("rope_layers") == "windowed if any":  # which transformers asks of the window, not of the list
            config["sliding_window"] = None
