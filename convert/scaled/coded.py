"""A weight as it is stored: small integers, and what they stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmconv.formats.tensor import Tensor
from llmconv.quant import plain
from llmconv.quant.block import Bytes

__all__ = ["Coded", "Numbers"]


class Numbers(Protocol):
    """Numbers that weights share: a `Grid`, or whatever else knows the one of each weight."""

    def for_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """The number for each weight of rows start..stop: (rows, k), or (rows, 1) where a row has but one."""


@dataclass(frozen=True)
class Coded:
    """Codes and scales of a weight; a value is (code - zero) * scale, or code * scale + bias.

    weight, shape: as a float model has it.
    codes: gives those of rows start..stop, (rows, k), uint8 or int8.
    low, high: the least and the largest code that there can be.
    zero: a number for all, or one for each group; integers, or floats where a scheme has them so.
    table: what a code stands for, where that is not its own number; 256 floats.
    factor, divisor: what all scales are multiplied or divided by first; after: what the values are multiplied by last.
    """

    weight: str
    shape: tuple[int, ...]
    codes: Callable[[int, int], NDArray[Any]]
    low: int
    high: int
    scale: Numbers
    zero: Numbers | int = 0
    bias: Numbers | None = None
    table: NDArray[np.float32] | None = None
    factor: NDArray[np.float32] | None = None
    divisor: NDArray[np.float32] | None = None
    after: np.float32 | None = None

    def floats(self) -> Tensor:
        """The weight in float32, computed as the models' own loaders do, row by row."""

        def read(start: int, stop: int) -> Bytes:
            codes = self.codes(start, stop)
            values: NDArray[Any] = codes.astype(np.float32) if self.table is None else self.table[codes.view(np.uint8)]
            if not isinstance(self.zero, int):
                values -= self.zero.for_rows(start, stop)
            elif self.zero:
                values -= np.float32(self.zero)
            values *= self.scales(start, stop)
            if self.bias is not None:
                values += self.bias.for_rows(start, stop)
            if self.after is not None:
                values *= self.after
            return values.view(np.uint8)

        return Tensor(self.weight, self.shape, plain.F32, read)

    def scales(self, start: int, stop: int) -> NDArray[np.float32]:
        """The scale for each weight of rows start..stop: (rows, k) or (rows, 1)."""
        scale = self.scale.for_rows(start, stop)
        if self.divisor is not None:
            return scale / self.divisor
        return scale if self.factor is None else scale * self.factor
