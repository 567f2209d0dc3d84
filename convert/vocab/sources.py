"""Tokenizer files of a Hugging Face folder -> `Vocab`.

Which file speaks: a tokenizer.json whose tokens are bytes, word pieces or words speaks alone; beside one in
sentencepiece's style the sentencepiece model is asked, because it has the scores; then vocab.json + merges.txt and
vocab.txt.  Added and special tokens are gathered from all side files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmconv.convert.vocab.base import Vocab, json_object
from llmconv.errors import BadFile
from llmconv.formats import guests

__all__ = ["Folder", "from_files", "special_looking"]

NAMES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files of a folder that belong to its tokenizer."""

SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_MAX_ID = 1 << 24  # no vocabulary comes near; keeps a lying id from costing memory


@dataclass(frozen=True, slots=True)
class Added:
    """A token that a folder adds to its vocabulary, or marks as special."""

    id: int
    content: str
    special: bool


@dataclass
class Folder:
    """Tokenizer files by name, and config.json, with the questions that every kind of tokenizer asks of them."""

    files: dict[str, bytes]
    config: Mapping[str, Any]
    pre: str | None = None

    def json(self, name: str) -> Any:
        """A JSON file's value, {} when there is none."""
        data = self.files.get(name)
        return {} if data is None else json_object(name, data)

    @property
    def tokenizer(self) -> dict[str, Any]:
        if not hasattr(self, "_tokenizer"):
            self._tokenizer: dict[str, Any] = self.json("tokenizer.json")
        return self._tokenizer

    def setting(self, name: str) -> Any:
        """A value of config.json, at its top or in its text part."""
        value = self.config.get(name)
        text = self.config.get("text_config")
        return text.get(name) if value is None and isinstance(text, Mapping) else value

    def size(self, have: int) -> int:
        """How many tokens the model has room for; `have` when it doesn't say."""
        size = self.setting("vocab_size")
        return size if isinstance(size, int) and not isinstance(size, bool) and 0 < size <= _MAX_ID else have

    def added(self, tokenizer_json: bool = True) -> dict[int, Added]:
        """Every added token by id; tokenizer.json, if asked, has the last word."""
        found: dict[int, Added] = {}

        def add(where: str, id: Any, content: Any, special: Any) -> None:
            try:
                number = int(id)
            except (TypeError, ValueError):
                number = -1
            if not 0 <= number < _MAX_ID or not isinstance(content, str):
                raise BadFile(f"{where}: added token {content!r} has id {id!r}, expected a number from 0 up")
            found[number] = Added(number, content, special is True)

        for content, id in self.json("added_tokens.json").items():
            add("added_tokens.json", id, content, False)
        decoder = self.json("tokenizer_config.json").get("added_tokens_decoder") or {}
        for id, entry in decoder.items() if isinstance(decoder, dict) else ():
            if isinstance(entry, dict):
                add("tokenizer_config.json", id, entry.get("content"), entry.get("special"))
        entries = (self.tokenizer.get("added_tokens") or []) if tokenizer_json else []
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict):
                add("tokenizer.json", entry.get("id"), entry.get("content"), entry.get("special"))
        return found

    def finish(self, vocab: Vocab) -> Vocab:
        """Special roles, switches, chat template, side files and padding, for every kind alike."""
        from llmconv.convert.vocab import special

        special.fill(vocab, self)
        vocab.files = self.files
        return vocab.padded(self.size(len(vocab)))


def special_looking(token: str) -> bool:
    """Whether an added token is a control token although its folder doesn't mark it special.

    The reference converter's rule: command-r, deepseek-coder and gemma forget the mark.
    """
    return (
        token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (token.startswith(("<|", "<｜")) and token.endswith(("|>", "｜>")))
        or (token.startswith("<unused") and token.endswith(">"))
    )


def from_files(
    files: Mapping[str, Path | bytes], config: Mapping[str, Any] | None = None, *, pre: str | None = None
) -> Vocab | None:
    """The vocabulary of a model folder, None when it has no tokenizer files.

    files: by name, their path or bytes (`Checkpoint.files`).   config: config.json, for the number of rows in the
    embedding (`vocab_size`) and ids of special tokens.   pre: the pre-tokenizer's name, when it isn't recognised.
    `BadFile` when the files are broken, contradict each other, or hold more tokens than `vocab_size`.
    """
    mine = {
        name: guests.whole(data) if isinstance(data := files[name], Path) else data for name in NAMES if name in files
    }
    try:
        return _read(Folder(mine, config or {}, pre))
    except RecursionError:
        raise BadFile("tokenizer.json: is nested too deep") from None


def _read(folder: Folder) -> Vocab | None:
    from llmconv.convert.vocab import bpe, huggingface, spm, wordpiece

    mine = folder.files
    pieces = next((name for name in SENTENCEPIECE if name in mine), None)
    if "tokenizer.json" in mine and not (pieces and huggingface.like_sentencepiece(folder.tokenizer)):
        vocab = huggingface.read(folder)
    elif pieces:
        vocab = spm.read(folder, pieces)
    elif "vocab.json" in mine and "merges.txt" in mine:
        vocab = bpe.read(folder)
    elif "vocab.txt" in mine:
        vocab = wordpiece.read(folder)
    else:
        return None
    return folder.finish(vocab)


def dense(where: str, tokens: Mapping[str, Any]) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Token texts by id and their types, from a token -> id map; ids without a token become unused [PADi]."""
    from llmconv.convert.vocab.base import TokenType

    top = -1
    for token, id in tokens.items():
        if not isinstance(id, int) or isinstance(id, bool) or not 0 <= id < _MAX_ID:
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
