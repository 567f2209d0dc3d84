"""Rows that are asked for more than once: a weight is written, and then compared with what it was made of."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.scaled.coded import Coded

__all__ = ["in_chunks", "remembered", "with_codes_remembered"]

_CHUNK, _CHUNKS = 1 << 23, 8  # weights, whose scales and zero points are looked at together; how many are kept
_REMEMBERED = 4

Rows = TypeVar("Rows", bound=Callable[[int, int], NDArray[Any]])
Arrays = tuple[NDArray[Any], ...]


class _Here(threading.local):
    def __init__(self) -> None:
        self.kept: dict[Any, tuple[int, int, NDArray[Any]]] = {}


_here = _Here()


def remembered(rows: Rows) -> Rows:
    """The same, without reading again the rows that this thread asked for last."""

    def read(start: int, stop: int) -> NDArray[Any]:
        kept = _here.kept
        low, high, found = kept.get(rows, (0, -1, None))
        if found is None or (low, high) != (start, stop):
            kept.pop(rows, None)
            found = rows(start, stop)
            kept[rows] = start, stop, found
            if len(kept) > _REMEMBERED:
                del kept[next(iter(kept))]
        return found

    return read  # type: ignore[return-value]


def with_codes_remembered(coded: Coded) -> Coded:
    """A layer whose codes are `remembered`."""
    words = None if coded.words is None else remembered(coded.words)
    return dataclasses.replace(coded, codes=remembered(coded.codes), words=words)


class _Chunks:
    """The arrays computed last, for all threads."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[Any, int], Arrays] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, make: Callable[[int, int], Arrays], start: int, stop: int) -> Arrays:
        with self._lock:
            key = make, start
            found = self._found.pop(key, None) or make(start, stop)
            self._found[key] = found
            if len(self._found) > _CHUNKS:
                self._found.popitem(last=False)
            return found


_chunks = _Chunks()


def in_chunks(make: Callable[[int, int], Arrays], shape: tuple[int, ...]) -> Callable[[int, int], Arrays]:
    """The same, computed for many rows at a time: what is shared by weights is so little that calls are what it costs.

    make: gives flat arrays, of which each row has as many.   shape: of the weight.
    """
    rows = int(np.prod(shape[:-1]))
    step = 1 << (max(1, _CHUNK // max(1, shape[-1])).bit_length() - 1)

    def read(start: int, stop: int) -> Arrays:
        first = start // step * step
        last = min(rows, first + step)
        if not start < stop <= last:
            return make(start, stop)
        found = _chunks.get(make, first, last)
        each = last - first
        return tuple(a[len(a) // each * (start - first) : len(a) // each * (stop - first)] for a in found)

    return read
