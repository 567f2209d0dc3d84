"""WordPiece's two spellings: GGUF's "▁word" and "continuation", BERT's "word" and "##continuation"."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmconv.convert.vocab.model import SPACE, TokenType, Vocab

__all__ = ["marked", "plain"]


def marked(tokens: list[str], types: Any, prefix: str = "##") -> list[str]:
    """GGUF's spelling of BERT's tokens, whose continuations begin with `prefix`."""
    normal = (types == TokenType.NORMAL).tolist()
    return [
        t if not n else t.removeprefix(prefix) if prefix and t.startswith(prefix) else SPACE + t
        for t, n in zip(tokens, normal, strict=True)
    ]


def plain(vocab: Vocab) -> list[str]:
    """BERT's spelling of the tokens: "word" and "##continuation"."""
    types = np.full(len(vocab), TokenType.NORMAL) if vocab.types is None else vocab.types
    return [
        t if type != TokenType.NORMAL else t[1:] if t.startswith(SPACE) else "##" + t
        for t, type in zip(vocab.tokens, types.tolist(), strict=True)
    ]
