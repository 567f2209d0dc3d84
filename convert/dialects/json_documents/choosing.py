"""Which layout a document has, and what it lacks of the nearest."""

from __future__ import annotations

import re
from typing import Any

from llmconv.convert import layouts
from llmconv.convert.dialects import named_tensors
from llmconv.convert.layouts.base import Layout
from llmconv.convert.layouts.looks import broken
from llmconv.errors import BadFile, cut as cut_short
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.documents.document import join

__all__ = ["choose", "nearest_said"]


def choose(checkpoint: Checkpoint, layout: str | None, where: str) -> Layout | None:
    """The table that fits; None: plain or named."""
    document, tensors = checkpoint.metadata["document"], checkpoint.tensors
    if layout in (layouts.PLAIN, layouts.NAMED):
        return None
    if layout is not None:
        table = layouts.by_name(layout)
        missing = table.missing(document, tensors)
        if missing:
            raise BadFile(f"{where}: is not of the layout {table.name}: {_list(missing)} missing")
        return table
    found = None if named_tensors.is_known(document) else layouts.recognise(document, tensors)
    if found is None and (problem := broken(document, tensors)) is not None:
        raise BadFile(f"{where}: {problem}; --layout plain converts its arrays under their own names")
    if found is not None or named_tensors.choose(document) is not None:
        return found
    if not tensors and (path := _texts_of_numbers(document, "")):
        raise BadFile(
            f"{where}: {cut_short(path)} has its numbers as texts, expected numbers; write them without quotes"
        )
    near, kin = layouts.nearest(document, tensors), ""
    if near is not None:
        table, shared, lacks = near
        kin = f"; the nearest is {table.name!r}, which has {_list(shared)} too, from which it lacks {_list(lacks)}"
    raise BadFile(
        f"{where}: is no model of a known layout{kin}; --layout plain converts any file of rectangular numeric arrays"
    )


def _texts_of_numbers(node: Any, path: str) -> str:
    """The path of a list of nothing but numbers written as texts, "" when there is none."""
    if isinstance(node, list) and len(node) > 1 and all(isinstance(x, str) and _NUMBER.fullmatch(x) for x in node):
        return path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return next((found for key, child in items if (found := _texts_of_numbers(child, join(path, key)))), "")


_NUMBER = re.compile(r"[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?")


def nearest_said(checkpoint: Checkpoint) -> list[str]:
    """A note on a document that keeps its own names and has most of what a known layout has."""
    document = checkpoint.metadata["document"]
    near = None if named_tensors.is_known(document) else layouts.nearest(document, checkpoint.tensors)
    if near is None:
        return []
    table, shared, lacks = near
    has = f"has {_list(shared)} as the layout {table.name}, but not {_list(lacks)}"
    return [f"{has}: its tensors keep their own names, and it is not run"]


def _list(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
