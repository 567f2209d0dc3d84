"""The tokenizer files of a Hugging Face folder, and what every kind of tokenizer asks of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmconv.convert.vocab.parsing import json_object
from llmconv.errors import BadFile

__all__ = ["NAMES", "SENTENCEPIECE", "Added", "Folder", "is_mine", "template_name"]

NAMES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
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

_TEMPLATE = re.compile(r"additional_chat_templates/(\w[\w.+-]{0,120})\.jinja")


def is_mine(name: str) -> bool:
    """Whether a file of a folder belongs to its tokenizer: the chat templates by name do too."""
    return name in NAMES or _TEMPLATE.fullmatch(name) is not None


def template_name(file: str) -> str | None:
    """The name of a chat template by its file's, None for any other file."""
    found = _TEMPLATE.fullmatch(file)
    return found[1] if found else None


SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
MAX_ID = 1 << 24  # no vocabulary comes near; keeps a lying id from costing memory


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
        return size if isinstance(size, int) and not isinstance(size, bool) and 0 < size <= MAX_ID else have

    def added(self, tokenizer_json: bool = True) -> dict[int, Added]:
        """Every added token by id; tokenizer.json, if asked, has the last word."""
        found: dict[int, Added] = {}

        def add(where: str, id: Any, content: Any, special: Any) -> None:
            try:
                number = int(id)
            except (TypeError, ValueError):
                number = -1
            if not 0 <= number < MAX_ID or not isinstance(content, str):
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
