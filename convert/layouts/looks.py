"""Documents that look like a known layout and break its rules: refused by name, since as plain arrays they would lose
what makes them that model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from llmconv.convert import layouts
from llmconv.convert.layouts.base import Layout
from llmconv.errors import cut
from llmconv.formats.tensor import Tensor

__all__ = ["broken"]

_CONFIGS = ("config", "metadata", "cfg", "hyperparameters", "hyperParameters", "hparams", "model_config", "model_args")

_DEEPEST, _FEW = 3, 32  # levels around a document, and keys of one that is an envelope


def broken(document: Any, tensors: Mapping[str, Tensor]) -> str | None:
    """What is wrong with a document that no table recognises though it looks like one's, in words; None otherwise."""
    for other, found, what in _repaired(document, tensors):
        table = layouts.recognise(other, found)
        if table is not None:
            return f"looks like the layout {table.name}, but {what}"
    for table in layouts.all():
        missing = table.missing(document, tensors)
        if missing and _has_weights(table, tensors) and not any(_is_weight(table, path) for path in missing):
            lacks = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
            return f"looks like the layout {table.name}, but lacks {lacks}"
    if isinstance(document, dict) and tensors:
        for key in _CONFIGS[:1]:
            if isinstance(document.get(key), str | list):
                return f"has a {key} that is {_kind(document[key])}, expected an object"
    return None


def _repaired(
    document: Any, tensors: Mapping[str, Tensor], inside: tuple[str, ...] = ()
) -> Iterator[tuple[Any, Mapping[str, Tensor], str]]:
    """The document with the usual faults undone, and what these are.   inside: what it was found in."""
    out = f"is inside {' in '.join(inside)}; take it out" if inside else ""
    if isinstance(document, dict):
        if inside:
            yield document, tensors, out
        for key in _CONFIGS:
            if (read := _config(document.get(key))) is not None:
                what = f"its {key} is a {'text of JSON' if isinstance(document[key], str) else 'list'}"
                told = f"{out}, and {what}" if inside else what
                yield {**document, key: read}, tensors, f"{told}, expected an object"
    if len(inside) < _DEEPEST:
        for place, inner, start in _inner(document):
            below = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
            if below:
                yield from _repaired(inner, below, (place, *inside))


def _inner(document: Any) -> Iterator[tuple[str, Any, str]]:
    """What a document may be inside of: where, the inner one, and how its tensors' names begin."""
    if isinstance(document, list) and document and isinstance(document[0], dict | list):
        yield f"a list of {len(document)}", document[0], "[0]" if isinstance(document[0], list) else "[0]."
    elif isinstance(document, dict) and len(document) <= _FEW:
        for key, inner in document.items():
            if isinstance(inner, list) and inner and isinstance(inner[0], dict):
                yield f"a list of {len(inner)} in {cut(key)}", inner[0], f"{key}[0]."
            elif isinstance(inner, dict):
                yield cut(key), inner, f"{key}."


def _config(value: Any) -> dict[str, Any] | None:
    """The settings in a text of JSON, or in a list."""
    if isinstance(value, list):
        return value[0] if value and isinstance(value[0], dict) else None
    try:
        read = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) else None


def _kind(value: Any) -> str:
    return "a text" if isinstance(value, str) else "a list"


def _is_weight(table: Layout, path: str) -> bool:
    patterns = (pattern for row in table.rows for form in row.forms for pattern in form.patterns)
    return any(path == spelt.replace("{i}", "0") for pattern in patterns for spelt in table.spelt(pattern))


def _has_weights(table: Layout, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the weights among a table's marks are there, two of them at least."""
    marks = [table.spelt(mark) for mark in table.marks if _is_weight(table, table.spelt(mark)[0])]
    return len(marks) > 1 and all(any(path in tensors for path in spelt) for spelt in marks)
