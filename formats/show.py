"""How results look in a notebook: a base for the result dataclasses."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping
from typing import Any

__all__ = ["Shown", "html_table"]

MOST = 60
"""Rows of a list that are shown."""


def html_table(head: list[str], rows: list[list[str]]) -> str:
    """A table; the cells are HTML already."""
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
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
        return html_table([], [[html.escape(str(k)), _cell(v)] for k, v in list(value.items())[:MOST]])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
    if isinstance(value, list | tuple):
        if value and all(dataclasses.is_dataclass(v) for v in value):
            names = [f.name for f in dataclasses.fields(value[0])]
            rows = [[_cell(getattr(v, name)) for name in names] for v in value[:MOST]]
            more = f"<p>… {len(value) - MOST} more</p>" if len(value) > MOST else ""
            return html_table(names, rows) + more
        return ", ".join(_cell(v) for v in value[:MOST])
    return html.escape(str(value))


def _fields(value: Any) -> str:
    return html_table([], [[html.escape(f.name), _cell(getattr(value, f.name))] for f in dataclasses.fields(value)])


class Shown:
    """A dataclass that a notebook shows as a table of its fields."""

    def _repr_html_(self) -> str:
        return f"<p>{type(self).__name__}</p>{_fields(self)}"
