"""WordPiece, BERT's: GGUF writes "▁word" for the start of a word and "continuation" for BERT's "##continuation"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llmconv.convert.vocab.base import WORDPIECE, TokenType, Vocab
from llmconv.convert.vocab.spm import SPACE
from llmconv.errors import BadFile

if TYPE_CHECKING:
    from llmconv.convert.vocab.sources import Folder

__all__ = ["build", "plain", "read"]

_SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def build(folder: Folder, tokens: list[str], types: Any, prefix: str = "##") -> Vocab:
    """A WordPiece vocabulary from BERT's own spelling of the tokens."""
    from llmconv.convert.vocab.bpe import add

    added = folder.added()
    tokens, types = add(tokens, types, added.values(), folder.size(len(tokens)))
    special = {}
    texts = {t: i for i, t in enumerate(tokens)}
    for role, text in _SPECIAL.items():
        if text in texts:
            special[role] = texts[text]
            if not added:
                types[texts[text]] = TokenType.CONTROL
    normal = (types == TokenType.NORMAL).tolist()
    written = [
        t if not n else t.removeprefix(prefix) if prefix and t.startswith(prefix) else SPACE + t
        for t, n in zip(tokens, normal, strict=True)
    ]
    vocab = Vocab(WORDPIECE, written, types, pre="default", special=special)
    if folder.json("tokenizer_config.json").get("do_lower_case") is False:
        vocab.flags["lowercase"] = False
    return vocab


def plain(vocab: Vocab) -> list[str]:
    """BERT's spelling of the tokens: "word" and "##continuation"."""
    types = np.full(len(vocab), TokenType.NORMAL) if vocab.types is None else vocab.types
    return [
        t if type != TokenType.NORMAL else t[1:] if t.startswith(SPACE) else "##" + t
        for t, type in zip(vocab.tokens, types.tolist(), strict=True)
    ]


def read(folder: Folder) -> Vocab:
    """A vocabulary from vocab.txt: one token a line, id = line number."""
    try:
        lines = folder.files["vocab.txt"].decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise BadFile(f"vocab.txt: is not valid UTF-8 (byte {error.start})") from None
    if lines and not lines[-1]:
        lines.pop()
    tokens = [line.removesuffix("\r") for line in lines]
    if not tokens:
        raise BadFile("vocab.txt: is empty, expected one token a line")
    return build(folder, tokens, np.full(len(tokens), TokenType.NORMAL, np.int32))
