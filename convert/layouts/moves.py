"""A language model by the layers that a program lists: which weight becomes which tensors, and the keys beside them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.decoders.recurrent import ARCH as RECURRENT

__all__ = ["Model", "Move", "Odd"]


@dataclass(frozen=True)
class Move:
    """A weight of a program's, or several that are gates of one, and the tensors of a GGUF that it becomes.

    how: letters; "s": the first two gates change places, "t": it is turned, "p": its two rows are two vectors; "l4",
    "f4": its last (first) two dimensions, the first of them 4, are one; "n1": the gate 1 changes its sign; "c5", "r5":
    its columns (rows) part before the fifth; "w": it is one row, which a quantized file has as a vector.
    "m8": it is a causal mask of 8 tokens, which becomes nothing.
    """

    name: str | tuple[str, ...]
    to: tuple[str, ...]
    how: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,) if isinstance(self.name, str) else self.name

    def _number(self, letter: str) -> int | None:
        found = re.search(rf"{letter}(\d+)", self.how)
        return None if found is None else int(found[1])

    def apply(self, sources: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        if "m" in self.how:
            return []
        turned = self._number("n")
        gates = [-gate if k == turned else gate for k, gate in enumerate(sources)]
        values = gates[0] if len(gates) == 1 else np.concatenate(gates)
        if "l" in self.how:
            values = values.reshape(*values.shape[:-2], -1)
        elif "f" in self.how:
            values = values.reshape(-1, *values.shape[2:])
        parts = list(values) if "p" in self.how else [values]
        if (column := self._number("c")) is not None:
            parts = np.split(values, [column], -1)
        elif (row := self._number("r")) is not None:
            parts = np.split(values, [row])
        parts = [_swapped(part) if "s" in self.how else part for part in parts]
        return [np.ascontiguousarray(part.T if "t" in self.how else part) for part in parts]

    def undo(self, parts: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        if (seen := self._number("m")) is not None:
            return [np.tri(seen, dtype=np.float32)[None]]
        own = [part.T if "t" in self.how else part for part in parts]
        own = [_swapped(part) if "s" in self.how else part for part in own]
        if "r" in self.how or "w" in self.how:
            own = [np.atleast_2d(part) for part in own]
        whole = np.stack(own) if "p" in self.how else np.concatenate(own, -1 if "c" in self.how else 0)
        if (found := re.search(r"([lf])(\d+)", self.how)) is not None:
            axis, first = (whole.ndim - 1 if found[1] == "l" else 0), int(found[2])
            whole = whole.reshape(*whole.shape[:axis], first, -1, *whole.shape[axis + 1 :])
        turned = self._number("n")
        gates = np.split(whole, len(self.names)) if len(self.names) > 1 else [whole]
        return [np.ascontiguousarray(-gate if k == turned else gate) for k, gate in enumerate(gates)]


def _swapped(values: NDArray[Any]) -> NDArray[Any]:
    """The first two of three gates, along the last axis, in each other's place."""
    first, second, third = np.split(values, 3, -1)
    return np.concatenate([second, first, third], -1)


@dataclass
class Model:
    """keys: without the architecture's prefix.   moves: a weight each.   lacks: why it can't be run, "" if it can.

    first: a token that the program has before those that its vocabulary lists, and begins and ends a text with.
    """

    keys: dict[str, Any] = field(default_factory=dict)
    moves: list[Move] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lacks: str = ""
    arch: str = RECURRENT
    first: str = ""


class Odd(Exception):
    """A layer that is not computed here; says what."""
