"""Tokenizer files of a Hugging Face folder -> `Vocab`.

Which file speaks: a tokenizer.json whose tokens are bytes, word pieces or words speaks alone; beside one in
sentencepiece's style the sentencepiece model is asked, because it has the scores; then Mistral's tekken.json,
vocab.json + merges.txt and vocab.txt.  Added and special tokens are gathered from all side files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmconv.convert.vocab.model import Vocab
from llmconv.convert.vocab.read import gpt2, ranks, sentencepiece, special, templates, tokenizer_json, wordpiece
from llmconv.convert.vocab.read.folder import SENTENCEPIECE, Folder, is_mine
from llmconv.convert.vocab.read.steps import like_sentencepiece
from llmconv.convert.vocab.uncollected import uncollected
from llmconv.errors import BadFile
from llmconv.formats import guests

__all__ = ["from_files"]

TOKEN_TYPE_COUNT = "tokenizer.ggml.token_type_count"
"""Of BERT's kind: how many segments a text may have (`type_vocab_size`)."""


@uncollected()
def from_files(
    files: Mapping[str, Path | bytes], config: Mapping[str, Any] | None = None, *, pre: str | None = None
) -> Vocab | None:
    """The vocabulary of a model folder, None when it has no tokenizer files.

    files: by name, their path or bytes (`Checkpoint.files`).   config: config.json, for the number of rows in the
    embedding (`vocab_size`) and ids of special tokens.   pre: the pre-tokenizer's name, when it isn't recognised.
    `BadFile` when the files are broken, contradict each other, or hold more tokens than `vocab_size`.
    """
    mine = {n: guests.whole(data) if isinstance(data, Path) else data for n, data in files.items() if is_mine(n)}
    try:
        return _read(Folder(mine, config or {}, pre))
    except RecursionError:
        raise BadFile("tokenizer.json: is nested too deep") from None


def _read(folder: Folder) -> Vocab | None:
    mine = folder.files
    pieces = next((name for name in SENTENCEPIECE if name in mine), None)
    if "tokenizer.json" in mine and not (pieces and like_sentencepiece(folder.tokenizer)):
        vocab = tokenizer_json.read(folder)
    elif ranks.TEKKEN in mine:  # it says more than a sentencepiece model beside it
        vocab = ranks.tekken(folder)
    elif pieces and ranks.is_tiktoken(mine[pieces]):
        vocab = ranks.tiktoken(folder, pieces)
    elif pieces:
        vocab = sentencepiece.read(folder, pieces)
    elif "vocab.json" in mine and "merges.txt" in mine:
        vocab = gpt2.read(folder)
    elif "vocab.txt" in mine:
        vocab = wordpiece.read(folder)
    else:
        return None
    special.fill(vocab, folder)
    templates.fill(vocab, folder)
    vocab.files = mine
    kinds = folder.setting("type_vocab_size")
    if kinds is None and folder.setting("model_type") == "distilbert":
        kinds = 1  # it has none; llama.cpp wants one of any BERT
    if isinstance(kinds, int) and 0 <= kinds < 1 << 32:
        vocab.extra[TOKEN_TYPE_COUNT] = np.uint32(kinds)
    return vocab.padded(folder.size(len(vocab)))
