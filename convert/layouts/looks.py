"""Documents that look like a known layout and break its rules: refused by name, since as plain arrays they would lose
what makes them that model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from llmconv.convert import layouts
from llmconv.convert.layouts.base import Layout
from llmconv.formats.tensor import Tensor

__all__ = ["broken"]

_CONFIGS = ("config", "metadata", "cfg", "hyperparameters", "hyperParameters", "hparams", "model_config", "model_args")


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


def _repaired(document: Any, tensors: Mapping[str, Tensor]) -> Iterator[tuple[Any, Mapping[str, Tensor], str]]:
    """The document with one of the usual faults undone, and what the fault is."""
    if isinstance(document, list) and document and isinstance(document[0], dict):
        inside = {name.removeprefix("[0]."): t for name, t in tensors.items() if name.startswith("[0].")}
        yield document[0], inside, f"is inside a list of {len(document)}; take it out"
    if not isinstance(document, dict):
        return
    for key, inner in document.items():
        if isinstance(inner, dict) and len(document) == 1:
            below = {name.removeprefix(f"{key}."): t for name, t in tensors.items() if name.startswith(f"{key}.")}
            yield inner, below, f"is inside {key!r}; take it out"
    for key in _CONFIGS:
        value = document.get(key)
        if isinstance(value, str):
            try:
                read = json.loads(value)
            except (ValueError, RecursionError):
                continue
            if isinstance(read, dict):
                yield {**document, key: read}, tensors, f"its {key} is a text of JSON, expected an object"
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield {**document, key: value[0]}, tensors, f"its {key} is a list, expected an object"


def _kind(value: Any) -> str:
    return "a text" if isinstance(value, str) else "a list"


def _is_weight(table: Layout, path: str) -> bool:
    patterns = (pattern for row in table.rows for form in row.forms for pattern in form.patterns)
    return any(path == spelt.replace("{i}", "0") for pattern in patterns for spelt in table.spelt(pattern))


def _has_weights(table: Layout, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the weights among a table's marks are there, two of them at least."""
    marks = [table.spelt(mark) for mark in table.marks if _is_weight(table, table.spelt(mark)[0])]
    return len(marks) > 1 and all(any(path in tensors for path in spelt) for spelt in marks)
