"""Which row of which stored layer each row of a file is: translated beside the weights, told by where it ends up.

Rows change places on the way to a GGUF (heads, joined and stacked matrices), and what they are compared with follows.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.quantizing.proving.by_codes import Same, record_for, same
from llmconv.convert.scaled.coded import Coded
from llmconv.convert.scaled.grid import Grid
from llmconv.convert.scaled.ordered import Folding
from llmconv.errors import Unsupported
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant.block import BlockType, Bytes

__all__ = ["compared_by_place", "is_places", "places"]

_LAYER = 40  # bits of a row's number; the layer's is above them
_NEAR = 1 << 11
"""How far rows may have moved among each other to be read with those between them."""

Rows = Callable[[int, int], NDArray[Any]]


class _Places(BlockType):
    """A row is a block: its place.  Translating moves it whole, or not at all."""

    @classmethod
    def decode(cls, blocks: Bytes, out: Any = None) -> Any:
        raise Unsupported("the columns of a place can't be moved")


@functools.cache
def _type(k: int) -> BlockClass:
    class Places(_Places):
        block_size, layout = k, np.dtype([("place", "<i8")])

    Places.name = "places"
    return Places


def places(coded: Coded, layer: int) -> Tensor:
    """Those of a layer's rows, by its number."""
    first = layer << _LAYER

    def read(start: int, stop: int) -> Bytes:
        return np.arange(first + start, first + stop, dtype="<i8").view(np.uint8).reshape(stop - start, 8)

    return Tensor(coded.weight, coded.shape, _type(coded.shape[-1]), read)


def is_places(tensor: Tensor) -> bool:
    return issubclass(tensor.type, _Places)


def compared_by_place(written: Tensor, where: Tensor, layers: Sequence[Coded]) -> Same | None:
    """What says of rows whether they are as those of the layers at these places; None where not all can be compared."""
    found = where.blocks().reshape(-1).view("<i8")
    layer, row = found >> _LAYER, found & ((1 << _LAYER) - 1)
    ends = [0, *(np.flatnonzero(np.diff(layer)) + 1).tolist(), len(found)]
    parts: list[tuple[int, int, Same]] = []
    for start, stop in itertools.pairwise(ends):
        coded = _taken(layers[int(layer[start])], row[start:stop]) if stop > start else None
        part = written if (start, stop) == (0, written.n_rows) else _part(written, start, stop)
        records = [None if given is None else record_for(given, written.type) for given in (coded, part)]
        if records[0] is None or records[1] is None:
            return None
        parts.append((start, stop, same(records[1], records[0])))

    def compared(start: int, stop: int) -> bool:
        return all(
            ask(max(start, low) - low, min(stop, high) - low) for low, high, ask in parts if low < stop and high > start
        )

    return compared


def _part(tensor: Tensor, start: int, stop: int) -> Tensor:
    read = tensor.read
    shape = (stop - start, tensor.row_len)
    return Tensor(tensor.name, shape, tensor.type, lambda low, high: read(start + low, start + high))


def _taken(coded: Coded, rows: NDArray[np.int64]) -> Coded | None:
    """A layer's rows in that order; None where its scales aren't those of single rows."""
    count = int(np.prod(coded.shape[:-1]))
    moved = rows - np.arange(len(rows))
    if not moved.any() and len(rows) == count:
        return coded
    if moved.max() - moved.min() > _NEAR:
        whole = len(rows) == count and (np.bincount(rows, minlength=count) == 1).all()
        return Folding(rows.astype(np.intp), True).coded(coded) if whole else None
    scale, zero, bias = (_of_rows(numbers, rows, count) for numbers in (coded.scale, coded.zero, coded.bias))
    if scale is None or zero is None or (bias is None and coded.bias is not None):
        return None
    return dataclasses.replace(
        coded, shape=(len(rows), coded.shape[-1]), codes=_near(coded.codes, rows), scale=scale, zero=zero, bias=bias,
        words=None if coded.words is None else _near(coded.words, rows),
    )  # fmt: skip


def _of_rows(numbers: Any, rows: NDArray[np.int64], count: int) -> Any:
    if not isinstance(numbers, Grid):
        return numbers if isinstance(numbers, int) else None
    values = numbers.values
    if numbers.rows != 1 or values.n_rows != count:
        return None
    taken = Tensor(values.name, (len(rows), values.row_len), values.type, _near(values.read, rows))
    return dataclasses.replace(numbers, values=taken, n=len(rows))


def _near(given: Rows, rows: NDArray[np.int64]) -> Rows:
    """Those rows in their order, read with what is between them."""

    def read(start: int, stop: int) -> NDArray[Any]:
        wanted = rows[start:stop]
        if not len(wanted):
            return given(0, 0)
        low, high = int(wanted.min()), int(wanted.max()) + 1
        found = given(low, high)
        as_they_are = high - low == len(wanted) and (np.diff(wanted) == 1).all()
        return found if as_they_are else found[wanted - low]

    return read
