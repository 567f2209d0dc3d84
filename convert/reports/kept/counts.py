"""What the counts of all pieces share: of how many tokens, in which numbers, and how norms and products count."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from llmconv.convert.decoders.facts import Decoder, Layer

__all__ = ["FULL", "Counts", "Piece"]

FULL = 4
"""Bytes of a float32."""


@dataclass(frozen=True)
class Piece:
    """A layer, and the shapes of its tensors by their names within it, ".weight" left out."""

    index: int
    facts: Layer
    shapes: Mapping[str, tuple[int, ...]]

    def rows(self, name: str) -> int:
        """Rows of a matrix, 0 where there is none."""
        return self.shapes[name][-2] if name in self.shapes else 0


@dataclass(frozen=True)
class Counts:
    """Of `tokens` tokens in sequences of `context`, computed in numbers of `width` bytes."""

    decoder: Decoder
    tokens: int
    context: int
    width: int

    @property
    def dim(self) -> int:
        return self.decoder.dim

    @property
    def narrow(self) -> bool:
        """Whether products are computed in 16 bits."""
        return self.width < FULL

    @property
    def sequences(self) -> int:
        return self.tokens // self.context

    def norm(self, numbers: int, rows: int = 1, *, bare: bool = False, apart: bool = False) -> int:
        """Bytes a token of a norm: its input, each row's mean and spread; the formula of RMS norms on a CPU, and any
        with weights for each head (`apart`), also the normed one, if weights are multiplied with it (not `bare`)."""
        rms = self.decoder.norm.kind == "rms"
        each = 2 * FULL if (rms and not bare) or apart else FULL
        return numbers * each + rows * (FULL if rms else 2 * FULL)

    def fed(self, piece: Piece, *names: str, numbers: int = 0) -> int:
        """Bytes a token of what goes into these matrices, of `numbers` (the model's width): once, but autocast makes
        each its own 16-bit copy."""
        there = sum(name in piece.shapes for name in names)
        return self.width * (numbers or self.dim) * (there if self.narrow else min(1, there))

    def copies(self, shapes: Iterable[tuple[int, ...]]) -> int:
        """Bytes of matrices' 16-bit copies."""
        return self.width * sum(math.prod(dims) for dims in shapes if len(dims) > 1) if self.narrow else 0

    def chunked(self, most: int) -> tuple[int, float]:
        """Tokens of a chunk of at most so many, and how many tokens there are in whole chunks, for each that is."""
        length = min(most, self.context)
        return length, -(-self.context // length) * length / self.context
