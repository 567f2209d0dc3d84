"""Layouts of JSON models: one table per family.  `_FAMILIES` is the one place to add a file."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from llmconv.convert.layouts.base import Layout
from llmconv.convert.tables.registry import gather
from llmconv.errors import UnknownName
from llmconv.formats.tensor import Tensor

__all__ = ["NAMED", "PLAIN", "Layout", "all", "by_name", "for_arch", "names", "nearest", "recognise"]

_FAMILIES = ("simple_llm", "small")

PLAIN, NAMED = "plain", "named"
"""Two layouts that are no tables: every array under its JSON path; name -> {shape, data} maps under their names."""


@functools.cache
def _tables() -> dict[str, Layout]:
    return gather(__name__, _FAMILIES, "LAYOUTS", "name")


def all() -> list[Layout]:
    """Every layout table."""
    return list(_tables().values())


def names() -> list[str]:
    """What `--layout` takes."""
    return [*_tables(), NAMED, PLAIN]


def by_name(name: str) -> Layout:
    found = _tables().get(name)
    if found is None:
        raise UnknownName("layout", name, names())
    return found


def recognise(document: Any, tensors: Mapping[str, Tensor]) -> Layout | None:
    """The first layout all of whose marks the document has."""
    return next((table for table in all() if not table.missing(document, tensors)), None)


def nearest(document: Any, tensors: Mapping[str, Tensor]) -> tuple[Layout, list[str]]:
    """The layout of which the document has the greatest part, and what is missing from it."""
    missing = {table.name: table.missing(document, tensors) for table in all()}
    best = min(all(), key=lambda table: len(missing[table.name]) / len(table.marks))
    return best, missing[best.name]


def for_arch(arch: str, has: Mapping[str, Any]) -> Layout | None:
    """A layout in which a model of this architecture can be written anew; `has` are its tensors."""
    fitting = [table for table in all() if table.arch == arch and table.build is not None]
    for table in fitting:
        needed = {row.gguf[0].replace("{i}", "0") for row in table.weights if not row.optional and not row.when}
        there = {name for name in has if name.startswith("blk.0.") or not name.startswith("blk.")}
        if needed == there:
            return table
    return None
