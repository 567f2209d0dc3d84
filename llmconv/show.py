"""How results look at a prompt and in a notebook: a base for the result dataclasses."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

from llmconv.errors import worded

__all__ = ["Shown", "escaped", "for_json", "html_table", "log_written"]

MOST = 60
"""Rows of a list that a notebook shows."""
FEW = 8
"""Items of a list or mapping that a repr shows in full; of a longer one, half as many."""


def escaped(text: str) -> str:
    """The text as HTML."""
    import html  # for notebooks alone

    return html.escape(text)


def html_table(head: list[str], rows: list[list[str]]) -> str:
    """A table; the cells are HTML already."""
    top = "".join(f"<th>{escaped(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<thead><tr>{top}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    """A value as HTML: numbers with separators, mappings and lists of results as tables of their own."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return html_table([], [[escaped(str(k)), _cell(v)] for k, v in list(value.items())[:MOST]])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
    if isinstance(value, list | tuple):
        if value and all(dataclasses.is_dataclass(v) for v in value):
            names = [f.name for f in dataclasses.fields(value[0])]
            rows = [[_cell(getattr(v, name)) for name in names] for v in value[:MOST]]
            more = f"<p>… {len(value) - MOST} more</p>" if len(value) > MOST else ""
            return html_table(names, rows) + more
        return ", ".join(_cell(v) for v in value[:MOST])
    if isinstance(value, np.ndarray):
        return _cell(value.reshape(-1)[:MOST].tolist())
    return escaped(str(value))


def _fields(value: Any) -> str:
    return html_table([], [[escaped(f.name), _cell(getattr(value, f.name))] for f in dataclasses.fields(value)])


def _few(value: Any) -> str:
    """A value's repr, cut where it has many items."""
    if isinstance(value, Mapping):
        texts = [f"{k!r}: {_few(v)}" for k, v in itertools.islice(value.items(), FEW + 1)]
        ends = "{}"
    elif isinstance(value, list | tuple):
        if len(value) > 1 and all(dataclasses.is_dataclass(v) for v in value):
            return f"[{len(value)} x {type(value[0]).__name__}]"
        texts = [_few(v) for v in value[: FEW + 1]]
        ends = "[]" if isinstance(value, list) else "()"
    else:
        return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else repr(value)
    if len(texts) > FEW:
        texts = [*texts[: FEW // 2], f"… {len(value) - FEW // 2} more"]
    return f"{ends[0]}{', '.join(texts)}{',' if ends == '()' and len(texts) == 1 else ''}{ends[1]}"


def _line(value: Any) -> str:
    fields = ", ".join(f"{f.name}={_few(getattr(value, f.name))}" for f in dataclasses.fields(value))
    return f"{type(value).__name__}({fields})"


def for_json(value: Any) -> Any:
    """A value as JSON has it: dataclasses as objects, paths as text, arrays as lists, no NaN or infinity but null."""
    if isinstance(value, Mapping):
        return {str(k): for_json(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: for_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple | set | frozenset):
        return [for_json(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return for_json(value.tolist())
    if isinstance(value, PurePath):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def log_written(paths: Iterable[PurePath], types: Mapping[str, int], notes: Iterable[str]) -> None:
    """What `-v` says of a result, to the logger "llmconv" at INFO, for programs."""
    log = logging.getLogger("llmconv")
    for path in paths:
        log.info("wrote %s", path)
    log.info("types: %s", ", ".join(f"{count} {name}" for name, count in types.items()))
    for note in notes:
        log.info("note: %s", note)


class Shown:
    """A dataclass whose repr is a line however much it holds, and that a notebook shows as a table of its fields.

    Its notes and warnings speak of keyword arguments to a program, of options to the command.
    """

    def __post_init__(self) -> None:
        for name in ("notes", "warnings"):
            said = getattr(self, name, ())
            if isinstance(said, list | tuple) and (now := [worded(str(note)) for note in said]) != list(said):
                object.__setattr__(self, name, type(said)(now))

    def as_dict(self) -> dict[str, Any]:
        """The fields for JSON: see `for_json`."""
        return dict(for_json(self))

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__repr__" not in cls.__dict__:  # before `dataclass` makes one that prints everything
            cls.__repr__ = _line  # type: ignore[method-assign]

    def _repr_html_(self) -> str:
        return f"<p>{type(self).__name__}</p>{_fields(self)}"
