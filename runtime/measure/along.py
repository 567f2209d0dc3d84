"""A measure as a picture: along the text, by position in the chunk, by the kind of token."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llmconv.convert.vocab import TokenType
from llmconv.errors import OutputExists, at
from llmconv.formats.writing.checks import check_target
from llmconv.formats.writing.outputs import Output
from llmconv.runtime.measure.charts import Panel, Point, svg
from llmconv.runtime.measure.chunks import Batch

__all__ = ["Along", "kind_of_token"]

_BINS = 80
_SPECIAL = (TokenType.UNKNOWN, TokenType.CONTROL)


def kind_of_token(token: str, special: bool) -> str:
    """What a token is, in the words of the picture."""
    text = token.replace("▁", " ").replace("Ġ", " ").replace("Ċ", "\n")
    bare = text.strip()
    if special:
        return "special"
    if not bare:
        return "white space"
    if bare.isdigit():
        return "number"
    if bare.replace("'", "").isalpha():
        return "word" if text[:1] == " " else "part of a word"
    return "other" if any(c.isalnum() for c in bare) else "punctuation"


class Along:
    """What is gathered for a picture while a measure runs.

    path: of the SVG, None for none; `OutputExists` for one that is there.   names: of the curves along the text.
    measure: what the other two panels show, the last row of what is added.
    """

    def __init__(self, path: str | os.PathLike[str] | None, names: Sequence[str], measure: str):
        self.path, self.names, self.measure = (Path(path) if path is not None else None), names, measure
        self.rows: list[NDArray[np.float64]] = []
        self.places: list[NDArray[np.int64]] = []
        self.tokens: list[NDArray[np.int64]] = []
        if self.path is not None:
            if self.path.exists():
                raise OutputExists(self.path, f"{at(self.path)}: exists already; choose another name")
            check_target(self.path, force=False, inputs=[])

    def add(self, batch: Batch, *rows: Tensor) -> None:
        """Figures of a batch, each (B x S): a curve for each name, then the measure."""
        if self.path is None:
            return
        self.rows.append(np.stack([row.reshape(-1).numpy() for row in rows]))
        width = batch.targets.shape[1]
        first = batch.scored.start or 0
        self.places.append(np.tile(np.arange(first, first + width), len(batch.targets)))
        self.tokens.append(batch.targets.flatten().cpu().numpy())

    def draw(self, tokenizer: Any, title: str) -> None:
        """Write the picture."""
        if self.path is None:
            return
        rows, places = np.concatenate(self.rows, 1), np.concatenate(self.places)
        curves = {name: _line(np.arange(len(places)), row) for name, row in zip(self.names, rows, strict=False)}
        value = rows[-1]
        panels = [
            Panel("Loss along the text", "token", "mean loss, nats", lines=curves),
            Panel(f"{self.measure} by position", "position in the chunk", "nats", lines={"": _line(places, value)}),
        ]
        if tokenizer is not None:
            points = _by_kind(tokenizer.vocab, np.concatenate(self.tokens), value)
            panels.append(Panel(f"{self.measure} by kind of token", "share of the tokens, %", "nats", points))
        data = svg(panels, title).encode()
        with Output(self.path, force=False, size=len(data)) as out:
            out.file.write(data)


def _line(x: NDArray[Any], y: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Means in at most `_BINS` bins of one width."""
    edges = np.linspace(x.min(), x.max() + 1, min(_BINS, int(x.max() - x.min()) + 1) + 1)
    which = np.clip(np.searchsorted(edges, x, "right") - 1, 0, len(edges) - 2)
    count = np.bincount(which, minlength=len(edges) - 1)
    total = np.bincount(which, y, minlength=len(edges) - 1)
    return [(float(edges[i]), float(total[i] / count[i])) for i in np.flatnonzero(count)]


def _by_kind(vocab: Any, tokens: NDArray[np.int64], value: NDArray[np.float64]) -> list[Point]:
    kinds: Mapping[int, str] = {
        id: kind_of_token(vocab.tokens[id], vocab.type_of(id) in _SPECIAL) if id < len(vocab) else "special"
        for id in set(tokens.tolist())
    }
    named = np.array([kinds[id] for id in tokens.tolist()])
    points = []
    for kind in sorted(set(kinds.values())):
        some = value[named == kind]
        error = float(some.std() / np.sqrt(len(some) - 1)) if len(some) > 1 else 0.0
        points.append(Point(100 * len(some) / len(value), float(some.mean()), error, kind))
    return points
