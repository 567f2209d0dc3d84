"""Act-order folded into the model: a down projection's columns in their groups' order, and its inputs' rows with them.

GPTQ with `desc_act` rounds columns in an order of its own, so that a group's columns lie anywhere.  What goes into a
down projection is made row by row by the gate and up projections beside it: when their rows are put in the same order
as its columns, the model computes the same, and groups are whole again.  Inputs of the other layers come from elsewhere
(the residual stream, heads), where each layer has another order, and can't be reordered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.scaled.coded import Coded
from llmconv.convert.scaled.grid import Grid
from llmconv.formats.tensor import Tensor
from llmconv.quant.block import Bytes

__all__ = ["Folding", "foldings"]

Order = NDArray[np.intp]
_WAYS = (("down_proj", ("gate_proj", "up_proj")), ("w2", ("w1", "w3")))
"""A down projection, and what its inputs are the products of, element by element."""


@dataclass(frozen=True)
class Folding:
    """A new order of a weight's columns, or of its rows."""

    order: Order
    by_rows: bool

    def coded(self, given: Coded) -> Coded | None:
        """The layer in that order; None where its scales don't follow its groups then."""
        codes, order = given.codes, self.order
        if self.by_rows:
            scale, zero, bias = (_taken_rows(n, order) for n in (given.scale, given.zero, given.bias))
            if scale is None or zero is None or (given.bias is not None and bias is None):
                return None
            taken = _gathered(codes, order)
            return dataclasses.replace(given, codes=taken, scale=scale, zero=zero, bias=bias)
        numbers = [_in_order(n, len(order)) for n in (given.scale, given.zero)]
        if any(n is None for n in numbers) or given.bias is not None:
            return None
        scale, zero = numbers
        return dataclasses.replace(given, codes=lambda a, b: codes(a, b)[:, order], scale=scale, zero=zero)

    def floats(self, given: Tensor) -> Tensor:
        """A weight in floats, in that order."""
        if self.by_rows:
            return dataclasses.replace(given, read=_gathered(given.read, self.order), extent=None)

        def read(start: int, stop: int) -> Bytes:
            return np.ascontiguousarray(given.rows(start, stop)[:, self.order]).view(np.uint8)

        return dataclasses.replace(given, read=read, extent=None)


def foldings(coded: Mapping[str, Coded], tensors: Mapping[str, Tensor]) -> dict[str, Folding]:
    """How to reorder weights so that down projections are in their groups' order; by weight.

    Only where a module holds nothing but its projections: a bias or a norm between them would have to follow.
    """
    found: dict[str, Folding] = {}
    inside: dict[str, set[str]] = {}
    for name in tensors:
        module, _, own = name.removesuffix(".weight").rpartition(".")
        inside.setdefault(module, set()).add(own if name.endswith(".weight") else name)
    for name, layer in coded.items():
        module, _, own = name.removesuffix(".weight").rpartition(".")
        before = next((inputs for down, inputs in _WAYS if down == own), None)
        scale = layer.scale
        if before is None or not isinstance(scale, Grid) or scale.order is None or inside[module] != {own, *before}:
            continue
        names = [f"{module}.{part}.weight" for part in before]
        if any(n not in coded or coded[n].shape[:-1] != (layer.shape[-1],) for n in names):
            continue
        order = np.argsort(scale.order, kind="stable")
        found[name] = Folding(order, False)
        found |= {n: Folding(order, True) for n in names}
    return found


def _in_order(numbers: Any, k: int) -> Any:
    """Numbers of groups whose columns follow each other from now on."""
    if not isinstance(numbers, Grid):
        return numbers if isinstance(numbers, int) else None
    groups = numbers.values.row_len
    return dataclasses.replace(numbers, order=None, columns=k // groups) if k % groups == 0 else None


def _taken_rows(numbers: Any, order: Order) -> Any:
    if not isinstance(numbers, Grid):
        return numbers if isinstance(numbers, int) else None
    if numbers.rows != 1 or numbers.values.n_rows != len(order):
        return None
    values = numbers.values
    taken = Tensor(values.name, values.shape, values.type, _gathered(values.read, order))
    return dataclasses.replace(numbers, values=taken)


def _gathered(rows: Callable[[int, int], NDArray[Any]], order: Order) -> Callable[[int, int], NDArray[Any]]:
    """Rows in another order; those of a slab are read from the first to the last."""

    def read(start: int, stop: int) -> NDArray[Any]:
        wanted = order[start:stop]
        if not len(wanted):
            return rows(0, 0)
        found = [rows(int(row), int(row) + 1) for row in np.sort(wanted)]
        out: NDArray[Any] = np.concatenate(found)[np.argsort(np.argsort(wanted))]
        return out

    return read
