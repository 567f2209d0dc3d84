"""Layouts of JSON models: one table per family, in `families/`.  `_FAMILIES` is the one place to add a file.

Another package adds its own by `register`, or by an entry point of the group `llmconv.layouts`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from llmconv.convert.layouts.base import Layout
from llmconv.errors import UnknownName
from llmconv.formats.tensor import Tensor
from llmconv.quant.entry_points import Registry

__all__ = [
    "NAMED",
    "PLAIN",
    "Layout",
    "all",
    "by_name",
    "for_arch",
    "names",
    "nearest",
    "recognise",
    "register",
    "unregister",
]

_FAMILIES = ("simple_llm", "desde_cero", "forge", "blocks", "dotted", "recurrent", "gpt", "flat")
"""In the order of asking; `flat` is known by settings alone, which documents with weights by name have too."""

PLAIN, NAMED = "plain", "named"
"""Two layouts that are no tables: every array under its JSON path; name -> {shape, data} maps under their names."""


def _own() -> Iterator[Layout]:
    for family in _FAMILIES:
        yield from importlib.import_module(f"{__name__}.families.{family}").LAYOUTS


_REGISTRY = Registry("llmconv.layouts", Layout, _own, lambda table: table.name)
register, unregister = _REGISTRY.register, _REGISTRY.unregister


def all() -> list[Layout]:
    """Every layout table."""
    return list(_REGISTRY.all().values())


def names() -> list[str]:
    """What `--layout` takes."""
    return [*_REGISTRY.all(), NAMED, PLAIN]


def by_name(name: str) -> Layout:
    found = _REGISTRY.get(name)
    if found is None:
        raise UnknownName("layout", name, names())
    return found


def recognise(document: Any, tensors: Mapping[str, Tensor]) -> Layout | None:
    """The first layout all of whose marks the document has."""
    return _REGISTRY.first(lambda table: not table.missing(document, tensors))


def nearest(document: Any, tensors: Mapping[str, Tensor]) -> tuple[Layout, list[str], list[str]] | None:
    """The layout of which the document has the greatest part, what they share and what is missing; None: no kinship.

    Half of the marks make kin, two of them at least.
    """
    missing = {table.name: table.missing(document, tensors) for table in all()}
    best = min(all(), key=lambda table: len(missing[table.name]) / len(table.marks))
    lacks = missing[best.name]
    shared = [name for mark in best.marks if (name := mark if isinstance(mark, str) else mark[0]) not in lacks]
    return (best, shared, lacks) if len(shared) > 1 and 2 * len(shared) >= len(best.marks) else None


def for_arch(arch: str, has: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Layout | None:
    """A layout in which a model of this architecture can be written anew; `has` are its tensors."""
    fitting = [table for table in all() if table.arch == arch and table.build is not None and table.default]
    for table in fitting:
        if table.suits is not None:
            if not table.suits(metadata, table.dims(metadata), has):
                return table
            continue
        if table.spells:
            return table
        needed = {row.gguf[0].replace("{i}", "0") for row in table.rows if not row.optional and not row.when}
        there = {name for name in has if name.startswith("blk.0.") or not name.startswith("blk.")}
        if needed == there:
            return table
    return None
