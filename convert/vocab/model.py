"""A vocabulary, whatever ecosystem it came from: its tokens, how text becomes tokens, and its special tokens.

Field names and numbers are GGUF's (`tokenizer.ggml.*` of the GGUF specification), because that is the one ecosystem
that writes down every kind of tokenizer in the same few arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.tables import own_keys
from llmconv.convert.vocab import pre
from llmconv.errors import BadFile

__all__ = [
    "BPE",
    "CHARACTERS",
    "GEMMA4",
    "SPACE",
    "SPM",
    "UNIGRAM",
    "WORDPIECE",
    "WORDS",
    "TokenType",
    "Vocab",
    "same_value",
]

# `tokenizer.ggml.model`: the kinds of tokenizer.  The last two are ours; llama.cpp knows the others.
BPE, SPM, WORDPIECE, UNIGRAM, GEMMA4 = "gpt2", "llama", "bert", "t5", "gemma4"
WORDS, CHARACTERS = "words", "characters"


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`, which are sentencepiece's numbers too."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# Role of a special token -> its GGUF key (the specification spells "seperator" so).
ROLES = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "cls": "tokenizer.ggml.cls_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
    "fim_pre": "tokenizer.ggml.fim_pre_token_id",
    "fim_suf": "tokenizer.ggml.fim_suf_token_id",
    "fim_mid": "tokenizer.ggml.fim_mid_token_id",
    "fim_pad": "tokenizer.ggml.fim_pad_token_id",
    "fim_rep": "tokenizer.ggml.fim_rep_token_id",
    "fim_sep": "tokenizer.ggml.fim_sep_token_id",
}
NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""Roles that a folder's settings and templates name: `bos_token`, ..."""
FLAGS = {
    "bos": "tokenizer.ggml.add_bos_token",
    "eos": "tokenizer.ggml.add_eos_token",
    "sep": "tokenizer.ggml.add_sep_token",
    "space_prefix": "tokenizer.ggml.add_space_prefix",
    "remove_extra_whitespaces": "tokenizer.ggml.remove_extra_whitespaces",
    "lowercase": "tokenizer.ggml.normalizer.lowercase",
    "strip_accents": "tokenizer.ggml.normalizer.strip_accents",
    # Ours, for what GGUF has no key for.  Each is stated only where it differs from what the other keys imply.
    "nfc": own_keys.TOKENIZER + "nfc",
    "leading_space": own_keys.TOKENIZER + "leading_space",
    "space_prefix_first": own_keys.TOKENIZER + "space_prefix_first",
    "space_prefix_text": own_keys.TOKENIZER + "space_prefix_text",
}
"""Switches of a tokenizer -> its key.

nfc: a BPE's text is brought into Unicode's form C first.   leading_space: a space is put before a BPE's text.
space_prefix_first, space_prefix_text: `space_prefix` acts at the beginning of a text only, not behind each matched
token too (llama.cpp's rule): where the text begins with a piece, or whatever it begins with (sentencepiece's rule).
"""
TEMPLATE, TEMPLATE_NAMES = "tokenizer.chat_template", "tokenizer.chat_templates"
HF_JSON = "tokenizer.huggingface.json"
CHARSMAP = "tokenizer.ggml.precompiled_charsmap"
SPACE = "▁"
"""How sentencepiece's tokens write a space."""

# What llama.cpp assumes of a kind where the file is silent (llama-vocab.cpp, `load`).
_DEFAULT_FLAGS: dict[str, dict[str, bool]] = {
    SPM: {"bos": True, "space_prefix": True},
    WORDPIECE: {"bos": True, "sep": True, "lowercase": True},
    UNIGRAM: {"eos": True},
    GEMMA4: {"bos": True},
    WORDS: {"lowercase": True},
}


@dataclass(eq=False, repr=False)
class Vocab:
    """Tokens and the tokenizer that makes them.

    model: `tokenizer.ggml.model`: "gpt2" (byte-level BPE), "llama" (sentencepiece's BPE, by scores), "bert"
        (WordPiece), "t5" (Unigram), "gemma4" (BPE by merges over text with "▁"), "words" and "characters" (ours), or
        another name, kept but not runnable here.
    tokens: the text of each id.  GGUF's conventions: byte-level BPE in GPT-2's byte alphabet, "▁" for a space in the
        others, a WordPiece as "▁word" or "continuation".
    types: (n,) int32 `TokenType`, or None: all normal.   scores: (n,) float32, or None.
    merges: "left right" by rank, or None.   pre: name of the pre-tokenizer, "" when unknown.
    special: role ("bos", "eos", "unk", ...) -> id.   flags: "bos", "eos", "space_prefix", ... where stated.
    chat_template: Jinja text.   json: a whole tokenizer.json, where it says more than the rest can.
    files: the folder's own tokenizer files, by name.   extra: other `tokenizer.*` keys, kept as they are.
    notes: sentences a user should read.
    """

    model: str
    tokens: Sequence[str]
    types: NDArray[np.int32] | None = None
    scores: NDArray[np.float32] | None = None
    merges: Sequence[str] | None = None
    pre: str = ""
    special: dict[str, int] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)
    chat_template: str | None = None
    json: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"<Vocab {self.model}{f'/{self.pre}' if self.pre else ''}, {len(self)} tokens>"

    @property
    def bos(self) -> int | None:
        return self.special.get("bos")

    @property
    def eos(self) -> int | None:
        return self.special.get("eos")

    @property
    def unk(self) -> int | None:
        return self.special.get("unk")

    def flag(self, name: str) -> bool:
        """A switch of the tokenizer as stated, else as llama.cpp assumes it for this kind."""
        if name in self.flags:
            return self.flags[name]
        if name in ("bos", "nfc") and self.model == BPE and (row := pre.by_name(self.pre)):
            return row.add_bos if name == "bos" else row.nfc
        return _DEFAULT_FLAGS.get(self.model, {}).get(name, False)

    @property
    def over_bytes(self) -> bool:
        """Whether it is a BPE whose tokens are written in GPT-2's byte alphabet, not in characters with "▁"."""
        return self.model == BPE and self.pre not in pre.OVER_TEXT

    def twice(self) -> list[str]:
        """A note where a token's text has several ids, which llama.cpp and most tokenizer files have no place for."""
        if len(set(self.tokens)) == len(self.tokens):
            return []
        ids: dict[str, int] = {}
        again = [(token, ids[token], id) for id, token in enumerate(self.tokens) if ids.setdefault(token, id) != id]
        if not again:
            return []
        token, first, id = again[0]
        more = f" (and {len(again) - 1} more such)" if len(again) > 1 else ""
        return [
            f"token {token!r} has two ids, {first} and {id}{more}: llama.cpp refuses such a vocabulary, and a "
            "tokenizer.json has room for one of them"
        ]

    def type_of(self, id: int) -> int:
        return TokenType.NORMAL if self.types is None else int(self.types[id])

    def padded(self, n: int) -> Vocab:
        """The same vocabulary for an embedding of `n` rows: unused tokens [PADi] fill it up.

        `BadFile` when it has more tokens than that.
        """
        have = len(self)
        if have > n:
            raise BadFile(
                f"the vocabulary has {have} tokens, expected at most {n}, the rows of the token embedding; "
                "remove the added tokens or resize the embedding"
            )
        if have == n:
            return self
        types = np.full(n, TokenType.UNUSED, np.int32)
        types[:have] = TokenType.NORMAL if self.types is None else self.types
        scores = None
        if self.scores is not None:
            scores = np.full(n, -10000.0, np.float32)
            scores[:have] = self.scores
        tokens = [*self.tokens, *(f"[PAD{i}]" for i in range(have, n))]
        return dataclasses.replace(self, tokens=tokens, types=types, scores=scores)


def same_value(a: Any, b: Any) -> bool:
    """Whether two values of GGUF keys are the same, whatever type of number either is stored in."""
    if isinstance(a, str | bool) or isinstance(b, str | bool):
        return type(a) is type(b) and bool(a == b)
    many = [isinstance(v, Sequence | np.ndarray) for v in (a, b)]
    if not all(many):
        return not any(many) and bool(a == b)
    if len(a) != len(b):
        return False
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return bool(np.array_equal(a, b))
    return all(same_value(x, y) for x, y in zip(a, b, strict=True))
