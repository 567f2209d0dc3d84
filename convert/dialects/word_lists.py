"""Small files beside a model, and the vocabularies in them: lists, texts of characters, maps either way round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmconv.convert.layouts.base import Words, look, look_loosely
from llmconv.errors import BadFile, at
from llmconv.formats import limits
from llmconv.formats.documents.cutting import cut
from llmconv.formats.documents.document import inline, replace_slots
from llmconv.formats.documents.json_scan import Text, parse
from llmconv.formats.files import open_regular, regular_size

__all__ = ["listed_words", "text_of", "tree_of"]


def tree_of(path: Path) -> Any:
    """The tree of a small JSON file; `BadFile` when it is too big, or none."""
    tree, _ = parse(Text.of(text_of(path).encode()), path)
    document, tensors = cut(tree, path)
    return replace_slots(document, lambda slot: inline(slot, tensors[slot.name]))


def text_of(path: Path) -> str:
    """The text of a small file; `BadFile` when it is too big, or no UTF-8."""
    if regular_size(path) > limits.SIDE_FILE_BYTES:
        raise BadFile(f"{at(path)}: is too big for a configuration, expected at most {limits.SIDE_FILE_BYTES:,} bytes")
    with open_regular(path) as file:
        raw = file.read()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFile(f"{at(path)}: is not valid UTF-8 at byte {error.start}; save it as UTF-8") from None


def listed_words(documents: list[tuple[str, Any]], known: Words) -> tuple[list[str] | None, tuple[int, str]]:
    """The vocabulary that the documents list, the first of which is the model, and where: (which document, path)."""
    before = known.before
    for k, (where, document) in enumerate(documents):
        if k and isinstance(document, list) and all(isinstance(w, str) for w in document):
            return [*before, *document], (k, "")
        paths = {path: look(document, path) for path in known.paths}
        if all(found is None for found in paths.values()):
            paths = {path: look_loosely(document, path) for path in known.paths}
        for path, found in paths.items():
            if isinstance(found, list):
                found = _pairs(found)
            if isinstance(found, dict) and found:
                found = _from_map(found, f"{where}: {path}")
            if isinstance(found, str) and not known.separator:
                found = list(found)
            if isinstance(found, list) and found:
                for i, word in enumerate(found):
                    if not isinstance(word, str):
                        why = "expected a text; write the vocabulary as a list or as a map of texts and numbers"
                        raise BadFile(f"{where}: {path}[{i}] is {str(word)[:40]!r}, {why}")
                return [*before, *found], (k, path)
        if k and isinstance(document, dict) and document and _numbers_all(list(document.values())):
            return [*before, *(_from_map(document, where) or ())], (k, "")
    return None, (0, "")


def _pairs(listed: list[Any]) -> list[Any] | dict[str, Any]:
    """[token, number] pairs, either way round, and {"id": number, "token": token} objects, as a map of them."""
    rows = [tuple(row.values()) if isinstance(row, dict) else row for row in listed]
    if not rows or not all(isinstance(row, list | tuple) and len(row) == 2 for row in rows):
        return listed
    turned = {str(a): b for b, a in rows} if all(type(row[0]) is int for row in rows) else {str(a): b for a, b in rows}
    return turned if len(turned) == len(rows) else listed


def _numbers_all(values: list[Any]) -> bool:
    """Whether the values are the numbers from 0 on, each once."""
    return all(type(v) is int for v in values) and set(values) == set(range(len(values)))


def _from_map(found: dict[str, Any], where: str) -> list[Any] | None:
    """Words in order, from {word: index} or {"index": word}."""
    n = len(found)
    if all(type(v) is int for v in found.values()):
        words = {index: word for word, index in found.items()}
    elif all(key.isdecimal() for key in found):
        words = {int(key): word for key, word in found.items()}
    else:
        return None
    if set(words) != set(range(n)):
        raise BadFile(f"{where} does not number its {n} words from 0 to {n - 1}; expected each number once")
    return [words[i] for i in range(n)]
