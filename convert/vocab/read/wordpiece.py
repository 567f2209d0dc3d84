"""WordPiece, BERT's: vocab.txt, or the tokens of a tokenizer.json -> `Vocab`."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmconv.convert.vocab.model import WORDPIECE, TokenType, Vocab
from llmconv.convert.vocab.read.folder import Folder
from llmconv.convert.vocab.read.tokens import add
from llmconv.convert.vocab.wordpiece import marked
from llmconv.errors import BadFile

__all__ = ["build", "read"]

_SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def build(folder: Folder, tokens: list[str], types: Any, prefix: str = "##") -> Vocab:
    """A WordPiece vocabulary from BERT's own spelling of the tokens."""
    added = folder.added()
    tokens, types = add(tokens, types, added.values(), folder.size(len(tokens)))
    special = {}
    texts = {t: i for i, t in enumerate(tokens)}
    for role, text in _SPECIAL.items():
        if text in texts:
            special[role] = texts[text]
            if not added:
                types[texts[text]] = TokenType.CONTROL
    vocab = Vocab(WORDPIECE, marked(tokens, types, prefix), types, pre="default", special=special)
    if folder.json("tokenizer_config.json").get("do_lower_case") is False:
        vocab.flags["lowercase"] = False
    return vocab


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
