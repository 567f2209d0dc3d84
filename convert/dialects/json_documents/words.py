"""A document's vocabulary, and the files beside it that hold what it lacks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmconv.convert import vocab as vocabularies
from llmconv.convert.dialects.word_lists import listed_words, text_of, tree_of
from llmconv.convert.layouts.base import Layout, look
from llmconv.errors import BadFile
from llmconv.formats.checkpoint import Checkpoint

__all__ = ["TOKENS", "check_words", "files_beside", "token_keys", "words_of"]

TOKENS = "tokenizer.ggml.tokens"


def files_beside(
    checkpoint: Checkpoint, table: Layout, config: str | Path | None, vocab: str | Path | None
) -> list[tuple[Path, Any, str]]:
    """(path, tree, text) of the files that hold what the document lacks."""
    paths = [Path(p) for p in (config, vocab) if p is not None]
    source = checkpoint.source
    if source is not None and table.config:
        given = {config is not None and "config", vocab is not None and "vocab"}
        for kind in table.config:
            if kind in given or (kind == "tokenizer" and vocab is not None):
                continue
            for name in (f"{source.stem}.{kind}.json", f"{source.stem}-{kind}.json", f"{kind}.json"):
                path = source.with_name(name)
                if path.is_file() and path != source:
                    paths.append(path)
                    break
    return [(path, tree_of(path), text_of(path)) for path in dict.fromkeys(paths)]


def words_of(documents: list[tuple[str, Any]], table: Layout, count: int) -> tuple[list[str] | None, tuple[int, str]]:
    """The word list and where it stands: (index of the document, path)."""
    assert table.words is not None
    words, place = listed_words(documents, table.words)
    where, start = start_of(documents, table)
    if start is not None and not 0 <= start < count:
        raise BadFile(f"{where} is {start}, expected the number of one of {count} tokens")
    if words is not None and table.words.extra and len(words) + len(table.words.extra) == count:
        if start not in (None, 0, len(words)):
            raise BadFile(f"{where} is {start}, but {place[1]} lists {len(words)} of {count} tokens; list that one too")
        words = [*table.words.extra, *words] if start == 0 else [*words, *table.words.extra]
    return words, place


def start_of(documents: list[tuple[str, Any]], table: Layout) -> tuple[str, int | None]:
    """The number of the token that a text begins with, where a document states it, and where."""
    for where, document in documents:
        for path in table.words.start if table.words is not None else ():
            if type(number := look(document, path)) is int:
                return f"{where}: {path}", number
    return "", None


def check_words(words: list[str], path: tuple[int, str], dims: Mapping[str, int], where: str) -> None:
    if len(words) != dims["n_vocab"]:
        raise BadFile(
            f"{where}: the vocabulary ({path[1] or 'a file beside it'}) has {len(words)} words, "
            f"expected {dims['n_vocab']} by the configuration"
        )


def token_keys(words: list[str], table: Layout, start: int | None = None) -> dict[str, Any]:
    """The vocabulary's keys.   start: the number of the token that a text begins with, where it is stated."""
    assert table.words is not None
    known = table.words
    found = vocabularies.from_words(words, known.unk, known.lowercase, characters=not known.separator)
    first = next((word for word in (*known.before, *known.starts) if word in words), None)
    if start is not None:
        first = words[start]
    if first is not None:
        found.special["bos"] = words.index(first)
        last = next((word for word in ("[EOS]", "<EOS>", "<eos>") if word in words), first)
        found.special["eos"] = words.index(last)
        found.flags["bos"] = True
        if found.types is not None and not known.before:
            for role in ("bos", "eos"):
                found.types[found.special[role]] = vocabularies.TokenType.CONTROL
    return vocabularies.to_gguf(found)
