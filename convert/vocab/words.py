"""Vocabularies of whole words, and of characters.

Words: lower-case the text, split it at single spaces, trim, drop the empty, look up.  That is what simple-llm does
(`text.toLowerCase().split(' ')`, then `trim()`); a newline inside a word stays in it.
Characters: each is a token; those that aren't in the list are the unknown token, or left out where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmconv.convert.vocab.model import CHARACTERS, WORDS, TokenType, Vocab
from llmconv.errors import BadFile

__all__ = ["SPACES", "SPLIT", "from_words", "split"]

SPACES = "\t\n\v\f\r \xa0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff" + "".join(map(chr, range(0x2000, 0x200B)))
"""What JavaScript's trim() removes (ECMAScript: WhiteSpace and LineTerminator)."""

SPLIT: dict[str, Any] = {"type": "Split", "pattern": {"Regex": r"[^ ]+"}, "behavior": "Removed", "invert": True}
"""The pre-tokenizer that tokenizer.json has for this."""


def from_words(
    words: Sequence[str], unk: str | None = "[UNK]", lowercase: bool = True, characters: bool = False
) -> Vocab:
    """A vocabulary of words, or of `characters`; id = position.

    unk: the word for all others, if it is in the list.   `BadFile` for a word given twice or not a string.
    """
    seen: dict[str, int] = {}
    for i, word in enumerate(words):
        if not isinstance(word, str):
            raise BadFile(f"vocabulary: entry {i} is {type(word).__name__}, expected a string")
        if word in seen:
            raise BadFile(f"vocabulary: entries {seen[word]} and {i} are both {word!r}, expected each word once")
        seen[word] = i
    types = np.full(len(words), TokenType.NORMAL, np.int32)
    vocab = Vocab(CHARACTERS if characters else WORDS, list(words), types, flags={"lowercase": lowercase})
    for role, token in (("unk", unk), ("pad", "[PAD]"), ("bos", "[BOS]"), ("eos", "[EOS]")):
        if token is not None and token in seen:
            vocab.special[role] = seen[token]
            types[seen[token]] = TokenType.UNKNOWN if role == "unk" else TokenType.CONTROL
    return vocab


def split(text: str, lowercase: bool = True) -> list[str]:
    """The words of a text."""
    return [w for part in (text.lower() if lowercase else text).split(" ") if (w := part.strip(SPACES))]
