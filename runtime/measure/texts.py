"""What a model is measured on: a text, or pairs of texts, from a file or from memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmconv.errors import BadFile, at, cut
from llmconv.formats.files import open_regular

__all__ = ["Passage", "Text", "TextSource", "each_of", "read", "unknown"]


class Text(str):
    """A text itself, where a function otherwise takes the path of one: `perplexity(model, Text("Once upon …"))`."""

    __slots__ = ()


TextSource = str | os.PathLike[str]
"""A path, or a `Text`."""


def each_of(texts: TextSource | Sequence[TextSource]) -> list[TextSource]:
    """One or several, as a list."""
    return [texts] if isinstance(texts, str | os.PathLike) else list(texts)


@dataclass(frozen=True)
class Passage:
    """What was read.  name: as messages call it.  pairs: (input, target), where it is a JSON list of those."""

    name: str
    text: str
    pairs: list[tuple[str, str]] | None = None


def read(source: TextSource) -> Passage:
    """A file's text, UTF-8, or the `Text` itself; a name that ends in .json may hold pairs.

    `BadFile` for a file that is missing or something else.
    """
    if isinstance(source, Text):
        return Passage("the text", str(source))
    path = Path(source)
    if isinstance(source, str) and ("\n" in source or "\0" in source or len(source) > 4096):
        raise BadFile(f"{cut(source)} is no path of a file; a text itself is given as llmconv.Text(...)")
    with open_regular(path, "a text file") as file:
        data = file.read()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} is {data[error.start]:#04x}"
        raise BadFile(f"{at(path)}: is no UTF-8 text ({byte}); convert it") from None
    return Passage(at(path), text, _pairs(path, text))


def _pairs(path: Path, text: str) -> list[tuple[str, str]] | None:
    """The pairs of a JSON list of {"input", "target"} objects (or two-element lists); None for any other text."""
    if path.suffix.lower() != ".json":
        return None
    import orjson

    try:
        found = orjson.loads(text)
    except ValueError:
        return None
    if not isinstance(found, list) or not found or not isinstance(found[0], dict | list):
        return None
    return [_pair(path, i, item) for i, item in enumerate(found)]


def _pair(path: Path, i: int, item: Any) -> tuple[str, str]:
    both = (item.get("input"), item.get("target")) if isinstance(item, dict) else item
    if not isinstance(both, tuple | list) or len(both) != 2 or not all(isinstance(part, str) for part in both):
        raise BadFile(f'{at(path)}: entry {i} is no pair of texts; expected {{"input": …, "target": …}}')
    return both[0], both[1]


def unknown(tokenizer: Any, name: str, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> list[str]:
    """Sentences on what of `texts`, which became `ids`, the vocabulary does not know: counted, with examples."""
    notes = []
    lost: dict[str, int] = {}
    for text in texts:
        for part, count in tokenizer.dropped(text).items():
            lost[part] = lost.get(part, 0) + count
    if lost:
        some = ", ".join(cut(part, 20) for part in sorted(lost, key=lambda part: -lost[part])[:3])
        kind = "characters" if all(len(part) == 1 for part in lost) else "words"
        notes.append(f"{name}: {sum(lost.values()):,} {kind} that the vocabulary lacks were left out (such as {some})")
    total = sum(map(len, ids))
    count = sum(row.count(tokenizer.unk) for row in map(list, ids)) if tokenizer.unk is not None else 0
    if count:
        token = tokenizer.vocab.tokens[tokenizer.unk]
        notes.append(f"{name}: {count:,} of {total:,} tokens stand for what the vocabulary lacks ({cut(token, 20)})")
    return notes
