"""A weight as it is stored: small integers, and what they stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.formats.tensor import Tensor
from llmconv.quant import plain
from llmconv.quant.block import Bytes
from llmconv.quant.kernels import codes as kernels

__all__ = ["Coded", "Numbers"]

_AT_ONCE = 1 << 20
"""Weights that are computed at a time, so that their codes stay in the processor's cache."""


class Numbers:
    """Numbers that weights share: a `Grid`, or whatever else knows the one of each weight.

    order: the group of each column, where groups' columns do not follow each other.
    """

    order: NDArray[np.intp] | None = None

    def for_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """The number for each weight of rows start..stop: (rows, k), or (rows, 1) where a row has but one."""
        raise NotImplementedError

    def span(self, k: int) -> int:
        """Columns of a row of k that share a number, one group behind another; 0 where they lie otherwise."""
        return 0

    def by_group(self, start: int, stop: int) -> NDArray[np.float32]:
        """The numbers of rows start..stop, one a group: (rows, k / span)."""
        return self.for_rows(start, stop)


@dataclass(frozen=True)
class Coded:
    """Codes and scales of a weight; a value is (code - zero) * scale, or code * scale + bias.

    weight, shape: as a float model has it.
    codes: gives those of rows start..stop, (rows, k), uint8 or int8.
    low, high: the least and the largest code that there can be.
    zero: a number for all, or one for each group; integers, or floats where a scheme has them so.
    table: what a code stands for, where that is not its own number; 256 floats.
    words: gives the same codes less `low` as they are stored, (rows, k / 8) int32, eight of four bits in each, lowest
        first; None where they are stored otherwise, or have been changed.
    factor, divisor: what all scales are multiplied or divided by first; after: what the values are multiplied by last.
    note: what should be known of how it was read, said of all such weights together.
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
    note: str = ""
    words: Callable[[int, int], NDArray[np.int32]] | None = None

    def floats(self) -> Tensor:
        """The weight in float32, computed as the models' own loaders do, row by row."""

        k = self.shape[-1]
        step = max(1, _AT_ONCE // max(1, k))

        def read(start: int, stop: int) -> Bytes:
            out = np.empty((stop - start, k), np.float32)
            for low in range(start, stop, step):
                high = min(stop, low + step)
                part = out[low - start : high - start]
                if not self._compiled(low, high, part):
                    part[:] = self._computed(low, high)
            if self.after is not None:
                out *= self.after
            return out.view(np.uint8)

        return Tensor(self.weight, self.shape, plain.F32, read)

    def _computed(self, start: int, stop: int) -> NDArray[np.float32]:
        """The values of rows start..stop, whatever shares a scale."""
        codes = self.codes(start, stop)
        values: NDArray[Any] = codes.astype(np.float32) if self.table is None else self.table[codes.view(np.uint8)]
        if not isinstance(self.zero, int):
            values -= self.zero.for_rows(start, stop)
        elif self.zero:
            values -= np.float32(self.zero)
        values *= self.scales(start, stop)
        if self.bias is not None:
            values += self.bias.for_rows(start, stop)
        return values

    def _compiled(self, start: int, stop: int, out: NDArray[np.float32]) -> bool:
        """The same into `out`, where so many columns of a row share numbers that a kernel can take them together."""
        k = self.shape[-1]
        shared = [numbers for numbers in (self.scale, self.zero, self.bias) if not isinstance(numbers, int | None)]
        if self.scale.order is not None:
            return self._gathered(start, stop, out)
        spans = {numbers.span(k) for numbers in shared}
        span = min(spans)
        if not span or span % 16 or spans - {span, k}:
            return False
        rows, groups = stop - start, k // span

        def flat(numbers: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.ascontiguousarray(np.broadcast_to(numbers, (rows, groups)), np.float32).reshape(-1)

        scale = self.by_group(start, stop)
        zero = np.asarray(self.zero if isinstance(self.zero, int) else self.zero.by_group(start, stop), np.float32)
        bias = np.empty(0, np.float32) if self.bias is None else flat(self.bias.by_group(start, stop))
        if self.words is not None and self.table is None:
            words, zeros = self.words(start, stop).reshape(-1), flat(zero - np.float32(self.low))
            kernels.words_to_floats(words, span, zeros, flat(scale), bias, out.reshape(-1))
            return True
        given = self.codes(start, stop)
        flip = 128 if given.dtype == np.int8 else 0
        numbers = np.ascontiguousarray(given).view(np.uint8).reshape(-1)
        if self.table is not None:
            kernels.looked_up(numbers, self.table, span, flat(scale), out.reshape(-1))
            return True
        kernels.to_floats(numbers, flip, span, flat(zero), flat(scale), bias, out.reshape(-1))
        return True

    def _gathered(self, start: int, stop: int, out: NDArray[np.float32]) -> bool:
        """The same where columns are out of their groups' order."""
        order, k = self.scale.order, self.shape[-1]
        alike = isinstance(self.zero, int) or self.zero.order is order
        if order is None or k % 16 or not alike or self.bias is not None or self.table is not None:
            return False
        scale = self.by_group(start, stop)
        room = 16 * scale.shape[1]
        zero = np.asarray(self.zero if isinstance(self.zero, int) else self.zero.by_group(start, stop), np.float32)
        zeros = np.ascontiguousarray(np.broadcast_to(zero, scale.shape)).reshape(-1)
        scales, places = np.ascontiguousarray(scale).reshape(-1), order.astype(np.int32)
        if self.words is not None and room <= k:
            words, table = self.words(start, stop).reshape(-1), np.empty(room, np.float32)
            zeros = zeros - np.float32(self.low)
            kernels.words_to_floats_in_order(words, places, scale.shape[1], zeros, scales, table, out.reshape(-1))
            return True
        given = self.codes(start, stop)
        flip, numbers = 128 if given.dtype == np.int8 else 0, np.ascontiguousarray(given).view(np.uint8).reshape(-1)
        kernels.to_floats_in_order(numbers, flip, places, scale.shape[1], zeros, scales, out.reshape(-1))
        return True

    def scales(self, start: int, stop: int) -> NDArray[np.float32]:
        """The scale for each weight of rows start..stop: (rows, k) or (rows, 1)."""
        return self._scaled(self.scale.for_rows(start, stop))

    def by_group(self, start: int, stop: int) -> NDArray[np.float32]:
        """The scales of rows start..stop, one a group: (rows, groups) or (rows, 1)."""
        return self._scaled(self.scale.by_group(start, stop))

    def _scaled(self, scale: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.divisor is not None:
            return scale / self.divisor
        return scale if self.factor is None else scale * self.factor
