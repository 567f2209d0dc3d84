"""Tokens by id and their types, from maps of token -> id and the tokens that a folder adds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from llmconv.convert.vocab.model import TokenType
from llmconv.convert.vocab.read.folder import MAX_ID, Added
from llmconv.errors import BadFile

__all__ = ["add", "dense", "special_looking"]


def dense(where: str, tokens: Mapping[str, Any]) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Token texts by id and their types, from a token -> id map; ids without a token become unused [PADi]."""
    top = -1
    for token, id in tokens.items():
        if not isinstance(id, int) or isinstance(id, bool) or not 0 <= id < MAX_ID:
            raise BadFile(f"{where}: token {token!r} has id {id!r}, expected a number from 0 up")
        top = max(top, id)
    if top >= 4 * len(tokens) + 65536:
        raise BadFile(f"{where}: ids go up to {top}, expected about {len(tokens)}, the number of tokens")
    out: list[str | None] = [None] * (top + 1)
    for token, id in tokens.items():
        if out[id] is not None:
            raise BadFile(f"{where}: tokens {out[id]!r} and {token!r} have the same id {id}")
        out[id] = token
    types = np.fromiter((TokenType.UNUSED if t is None else TokenType.NORMAL for t in out), np.int32, len(out))
    return [f"[PAD{i}]" if t is None else t for i, t in enumerate(out)], types


def add(tokens: list[str], types: Any, added: Iterable[Added], size: int) -> tuple[list[str], Any]:
    """Tokens and types with the added ones put in: control if special (or looking so), else user-defined.

    A user-defined token is written as text, with plain spaces, as llama.cpp matches it.
    """
    by_id = {a.id: a for a in added}
    n = max([len(tokens), *(i + 1 for i in by_id)])
    if n > max(size, len(tokens)) + 65536:
        raise BadFile(
            f"added token {by_id[n - 1].content!r} has id {n - 1}, expected one near the {len(tokens)} tokens"
        )
    tokens = tokens + [f"[PAD{i}]" for i in range(len(tokens), n)]
    grown = np.full(n, TokenType.UNUSED, np.int32)
    grown[: len(types)] = types
    for id, token in by_id.items():
        control = token.special or special_looking(token.content)
        tokens[id] = token.content if control else token.content.replace("▁", " ")
        grown[id] = TokenType.CONTROL if control else TokenType.USER_DEFINED
    return tokens, grown


def special_looking(token: str) -> bool:
    """Whether an added token is a control token although its folder doesn't mark it special.

    The reference converter's rule: command-r, deepseek-coder and gemma forget the mark.
    """
    return (
        token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (token.startswith(("<|", "<｜")) and token.endswith(("|>", "｜>")))
        or (token.startswith("<unused") and token.endswith(">"))
    )
