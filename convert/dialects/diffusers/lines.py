"""The language of `tables`: which tensor of an image model's single file is which of diffusers' folder.

A line is "theirs = ours": `{i}` is a layer's number, `*` weight or bias; rows of several tensors are joined by "+", and
"~" exchanges the halves of the rows, which is how diffusers stores shift and scale of a last norm.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

__all__ = ["Line", "Place", "Table", "lines"]

_LAYER, _END = re.compile(r"\.(\d{1,4})\."), re.compile(r"\.(weight|bias)$")


@dataclass(frozen=True)
class Line:
    """single: a name in the single file.   parts: the names of what diffusers makes of it, in the order of the rows.
    swapped: the halves of the rows are exchanged.   unless: a name of diffusers'; where there is such a tensor, they
    are not (the last block of a model has other norms than those before it)."""

    single: str
    parts: tuple[str, ...]
    swapped: bool = False
    unless: str = ""


def lines(text: str, single: str = "", parts: str = "", unless: str = "") -> tuple[Line, ...]:
    """A line for each of the text's.   single, parts: what stands before all names of a side.
    unless: of the lines that exchange halves."""
    out = []
    for left, _, right in (line.partition("=") for line in text.strip().splitlines()):
        names = right.replace("~", "").split("+")
        swapped = "~" in right
        at = tuple(parts + name.strip() for name in names)
        out.append(Line(single + left.strip(), at, swapped, parts + unless if swapped and unless else ""))
    return tuple(out)


@dataclass(frozen=True)
class Place:
    """A line at a layer, for weight or bias."""

    line: Line
    i: str
    end: str

    def fill(self, pattern: str) -> str:
        return pattern.replace("{i}", self.i).replace("*", self.end)

    @property
    def single(self) -> str:
        return self.fill(self.line.single)

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(map(self.fill, self.line.parts))


@dataclass(frozen=True)
class Table:
    """A model's lines."""

    name: str
    lines: tuple[Line, ...]

    @cached_property
    def _by_part(self) -> Mapping[str, Line]:
        return {part: line for line in self.lines for part in line.parts}

    @cached_property
    def _by_single(self) -> Mapping[str, Line]:
        return {line.single: line for line in self.lines}

    def of_part(self, name: str) -> Place | None:
        """Where a tensor of diffusers' folder belongs; None where it is none of the model's."""
        return _place(self._by_part, name)

    def of_single(self, name: str) -> Place | None:
        """Where a tensor of the single file belongs."""
        return _place(self._by_single, name)


def _place(by_pattern: Mapping[str, Line], name: str) -> Place | None:
    for pattern, i, end in _patterns(name):
        if pattern in by_pattern:
            return Place(by_pattern[pattern], i, end)
    return None


def _patterns(name: str) -> Iterator[tuple[str, str, str]]:
    """What a line may call a name: with or without the first number in it, and its ending, as any."""
    layer, end = _LAYER.search(name), _END.search(name)
    numbered = name if layer is None else f"{name[: layer.start()]}.{{i}}.{name[layer.end() :]}"
    for pattern, i in ((name, ""), (numbered, layer[1] if layer else "")):
        yield pattern, i, ""
        if end is not None:
            yield pattern[: -len(end[1])] + "*", i, end[1]
