"""What all layers of a decoder share."""

from __future__ import annotations

import numpy as np

from llmconv.convert.decoders.reader import Reader, short
from llmconv.convert.tables.pieces import Pieces, activation
from llmconv.convert.tables.windows import every_nth

__all__ = ["Shared"]


class Shared:
    """What all layers of a decoder share, read once."""

    def __init__(self, read: Reader, pieces: Pieces, n_layers: int, dim: int):
        self.read, self.pieces, self.n, self.dim = read, pieces, n_layers, dim
        self.positions = positions_of(read, pieces, n_layers)
        self.heads = read.per_layer("attention.head_count", n_layers, 1)
        self.heads_kv = [
            kv or h for kv, h in zip(read.per_layer("attention.head_count_kv", n_layers, 0), self.heads, strict=True)
        ]
        self.window = read.count("attention.sliding_window", pieces.get("window", 0))
        if self.window and pieces.get("window_both_sides"):
            self.window = self.window // 2 + 1
        self.windowed = self._windowed()
        self.parallel = bool(read.flag("use_parallel_residual", pieces.get("parallel", False)))
        self.activation = self._activation()

    def _windowed(self) -> list[bool]:
        """Which layers see only a window."""
        usual = self.pieces.get("window_pattern")
        pattern = self.read.get("attention.sliding_window_pattern", usual)
        if not self.window or pattern is None:
            return [False] * self.n
        kinds = self.read.config.get("layer_types") if pattern is usual and usual else None
        if isinstance(kinds, list) and len(kinds) >= self.n:  # a GGUF of before the pattern was written
            return [kind == "sliding_attention" for kind in kinds[: self.n]]
        key = "attention.sliding_window_pattern"
        if isinstance(pattern, np.ndarray | list | tuple):
            return self.read.flags(key, self.n) or []
        return every_nth(self.read.count(key, usual), self.pieces, self.n)

    def _activation(self) -> str:
        own = str(self.pieces.get("activation", "silu"))
        stated = self.read.text("hidden_activation", self.read.text("activation"))
        setting = self.pieces.get("activation_key", "hidden_act")
        if stated is None and setting and own != "swiglu_oai":
            stated = self.read.config.get(setting)
        return own if stated is None else activation(stated)


_STATED = {"sinusoidal-interleaved": "sinusoidal"}
"""Kinds of positions that files call otherwise."""


def positions_of(read: Reader, pieces: Pieces, n_layers: int) -> str:
    """ "rope", "learned", "sinusoidal", "alibi" or "none": a stated ALiBi bias decides, then what the file states."""
    stated = str(read.text("position_embedding", pieces.get("positions", "rope")))
    stated = _STATED.get(stated, stated)
    if stated not in ("rope", "learned", "sinusoidal", "alibi", "none"):
        raise read.bad(f"key '{read.arch}.position_embedding'", f"is {short(stated)}, which is no kind known here")
    if "positions_when" in pieces and read.flag(pieces["positions_when"]) is False:
        return "none"
    usual = pieces.get("alibi_bias", 8.0) if stated == "alibi" else 0
    if read.number("attention.max_alibi_bias", usual) or pieces.get("alibi_at") == n_layers:
        return "alibi"
    if stated == "alibi":
        return "learned" if "position_embd.weight" in read.shapes else "none"
    return stated
