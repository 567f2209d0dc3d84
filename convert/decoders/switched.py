"""Adapters in a model's weights that tokens of its vocabulary turn on (Granite Switch)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Switch", "switch_of"]


@dataclass(frozen=True, slots=True)
class Switch:
    """tokens: that turn adapters on, in their order, adapter 1 first.   instead: what is embedded in their place.
    gain: what a token's vote for its adapter is the exponential of, and another's for none of minus it."""

    tokens: tuple[int, ...]
    instead: tuple[int, ...]
    gain: float


def switch_of(read: Any, vocab_size: int) -> Switch | None:
    """read: a reader of `decoders.reader`."""
    if not (count := read.count("adapters.count", 0)):
        return None
    tokens, instead = (
        tuple(read.per_layer(f"adapters.token_ids_{name}", count, -1)) for name in ("activate", "substitute")
    )
    if not all(0 <= token < vocab_size for token in (*tokens, *instead)):
        raise read.bad(f"key '{read.arch}.adapters.token_ids_activate'", f"has a token that is none of {vocab_size}")
    return Switch(tokens, instead, read.number("adapters.router_gain", 15.0))
