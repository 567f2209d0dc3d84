"""A folder's vocabulary, with the tokens that only its configuration speaks of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmconv.convert import vocab
from llmconv.convert.tables.architecture import Architecture
from llmconv.convert.tables.config import normalized, usable
from llmconv.formats.checkpoint import Checkpoint

__all__ = ["words_of"]


def words_of(
    arch: Architecture, folder: Checkpoint, config: Mapping[str, Any], pre: str | None = None
) -> vocab.Vocab | None:
    """None for a folder without tokenizer files."""
    flat = {**config, **{k: v for k, v in normalized(config).items() if k == "vocab_size"}}
    found = vocab.from_files(folder.files, flat, pre=pre)
    if found is None or arch.named is None:
        return found
    with usable(config, f"{folder.where}: config.json"):
        named: vocab.Vocab = arch.named(normalized(config), found)
    return named
