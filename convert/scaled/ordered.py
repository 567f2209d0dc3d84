"""Act-order folded into the model: columns in their groups' order, and the rows that make their inputs with them.

GPTQ with `desc_act` rounds columns in an order of its own, so that a group's columns lie anywhere.  Where a layer's
inputs are made row by row by layers beside it, their rows can be put in the same order as its columns: the model
computes the same, and groups are whole again.

| layer | rows that follow | when |
|---|---|---|
| down projections | of the gate and up projections | always |
| output projections | of the value projection, within each head | each group lies within a head, and the heads that share values agree which of their channels belong together |

Inputs of the other layers come from the residual stream, of which each layer has another order.
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.scaled.bits import unpacked
from llmconv.convert.scaled.coded import Coded
from llmconv.convert.scaled.grid import Grid
from llmconv.convert.tables.config import TEXT_MODELS
from llmconv.formats.tensor import Tensor
from llmconv.quant.block import Bytes

__all__ = ["Folding", "foldings", "settled"]

Order = NDArray[np.intp]
Rows = Callable[[int, int], NDArray[Any]]
_KEPT_BYTES, _STEP_BYTES = 48 << 20, 1 << 20
_DOWN = {"down_proj": ("gate_proj", "up_proj"), "w2": ("w1", "w3")}
"""A down projection, and what its inputs are the products of, element by element."""
_OUTPUT, _VALUE, _ATTENTION = "o_proj", "v_proj", {"q_proj", "k_proj", "v_proj", "o_proj"}
_BESIDE = {"q_norm", "k_norm", "rotary_emb", "sinks"}
"""What stands beside the projections of an attention and leaves its values alone."""
_SHARES = ("num_kv_shared_layers", "attn_output_gate")
"""Settings under which other layers see the values too, or numbers of their own are multiplied with them."""


@dataclass(frozen=True)
class Folding:
    """A new order of a weight's columns, or of its rows (of a bias, its numbers)."""

    order: Order
    by_rows: bool

    def coded(self, given: Coded) -> Coded | None:
        """The layer in that order; None where its scales don't follow its groups then."""
        codes, order = given.codes, self.order
        if self.by_rows:
            scale, zero, bias = (_taken_rows(n, order) for n in (given.scale, given.zero, given.bias))
            if scale is None or zero is None or (given.bias is not None and bias is None):
                return None
            words = None if given.words is None else _gathered(given.words, order)
            taken = _gathered(codes, order) if words is None else _codes_of(words, given)
            return dataclasses.replace(given, codes=taken, words=words, scale=scale, zero=zero, bias=bias)
        scale, zero = (_in_order(n, order) for n in (given.scale, given.zero))
        if scale is None or zero is None or given.bias is not None:
            return None

        def columns(start: int, stop: int) -> NDArray[Any]:
            return np.take(codes(start, stop), order, axis=1)

        return dataclasses.replace(given, codes=columns, words=None, scale=scale, zero=zero)

    def floats(self, given: Tensor) -> Tensor:
        """A weight in floats, or a bias, in that order."""
        order = self.order
        if self.by_rows and len(given.shape) > 1:
            return dataclasses.replace(given, read=_gathered(given.read, order), extent=None)

        def read(start: int, stop: int) -> Bytes:
            return np.take(given.rows(start, stop), order, axis=1).view(np.uint8)

        return dataclasses.replace(given, read=read, extent=None)

    def read_from(self, layer: Coded | None, floats: Tensor) -> Tensor:
        """A weight in floats, in that order, from its codes where there are any: rows of those are shorter."""
        coded = self.coded(layer) if layer is not None and self.by_rows else None
        return self.floats(floats) if coded is None else coded.floats()


def settled(given: Coded) -> Coded:
    """A layer whose groups are whole and only numbered otherwise, with its scales in their order; else itself."""
    if not isinstance(given.scale, Grid) or given.scale.order is None or given.bias is not None:
        return given
    order = np.arange(given.shape[-1])
    scale, zero = (_in_order(n, order) for n in (given.scale, given.zero))
    return given if scale is None or zero is None else dataclasses.replace(given, scale=scale, zero=zero)


def foldings(
    coded: Mapping[str, Coded], tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[dict[str, Folding], dict[str, str]]:
    """How to reorder tensors so that layers are in their groups' order, by name; and why output projections are not.

    config: of the model; it says how many heads there are.
    """
    found: dict[str, Folding] = {}
    reasons: dict[str, str] = {}
    inside: dict[str, set[str]] = {}
    for name in tensors:
        owner, _, last = name.rpartition(".")
        module, _, own = owner.rpartition(".")
        inside.setdefault(module, set()).add(own)
        if last not in ("weight", "bias"):  # a number of the module's own
            inside.setdefault(owner, set()).add(last)
    for name, layer in coded.items():
        module, _, own = name.removesuffix(".weight").rpartition(".")
        scale = layer.scale
        if not isinstance(scale, Grid) or scale.order is None:
            continue
        k, beside = layer.shape[-1], inside.get(module, set())
        if own in _DOWN and beside == {own, *_DOWN[own]}:
            made = [f"{module}.{part}" for part in _DOWN[own]]
            if all(tensors[f"{m}.weight"].shape[:-1] == (k,) for m in made if f"{m}.weight" in tensors):
                order = np.argsort(scale.order, kind="stable")
                found[name] = Folding(order, False)
                found |= _rows(made, order, tensors)
        elif own == _OUTPUT and _ATTENTION <= beside <= _ATTENTION | _BESIDE:
            orders = _of_heads(scale, k, module, tensors, config)
            if isinstance(orders, str):
                reasons[name] = orders
            else:
                found[name] = Folding(orders[0], False)
                found |= _rows([f"{module}.{_VALUE}"], orders[1], tensors)
    return found, reasons


def _rows(modules: list[str], order: Order, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Folding]]:
    """The weights and biases of modules, their rows in that order."""
    names = (f"{module}.{end}" for module in modules for end in ("weight", "bias"))
    return ((name, Folding(order, True)) for name in names if name in tensors)


def _of_heads(
    scale: Grid, k: int, module: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[Order, Order] | str:
    """The order of an output projection's columns, and of the value projection's rows; or why there is none."""
    config = next((config[part] for part in TEXT_MODELS if isinstance(config.get(part), dict)), config)
    heads, values = config.get("num_attention_heads"), tensors[f"{module}.{_VALUE}.weight"].shape[0]
    groups = scale.values.row_len
    assert scale.order is not None
    if type(heads) is not int or heads < 1 or k % heads or k % groups or any(config.get(key) for key in _SHARES):
        return "columns of output projections out of their groups' order (act-order), in heads that can't be told apart"
    each, size = k // heads, k // groups
    if values % each or heads % (values // each) or tensors[f"{module}.q_proj.weight"].shape[0] != k:
        return "columns of output projections out of their groups' order (act-order), in heads of another kind"
    if each % size:
        return f"groups of {size} columns of output projections that reach over heads of {each} (act-order)"
    shared = values // each
    labels = scale.order.reshape(shared, heads // shared, each)  # by heads that share values
    channels = np.argsort(labels[:, 0], axis=-1, kind="stable")  # (shared, each)
    sorted_ = np.take_along_axis(labels, np.broadcast_to(channels[:, None], labels.shape), axis=-1)
    parts = sorted_.reshape(*labels.shape[:2], each // size, size)
    if (parts != parts[..., :1]).any():
        alone = np.sort(labels, axis=-1).reshape(parts.shape)
        if (alone == alone[..., :1]).all():
            return "output projections whose heads share values but not their groups' order (act-order)"
        return "columns of output projections whose groups reach over heads (act-order)"
    first = np.arange(heads).reshape(shared, -1, 1) * each
    return (first + channels[:, None]).reshape(-1), (np.arange(shared)[:, None] * each + channels).reshape(-1)


def _in_order(numbers: Any, order: Order) -> Any:
    """Numbers of groups whose columns, taken in that order, follow each other; None where they don't."""
    if not isinstance(numbers, Grid):
        return numbers if isinstance(numbers, int) else None
    groups = numbers.values.row_len
    if numbers.order is None or len(order) % groups:
        return None
    labels = numbers.order[order].reshape(groups, -1)
    if (labels != labels[:, :1]).any():
        return None
    given, taken = numbers.values, labels[:, 0]

    def read(start: int, stop: int) -> Bytes:
        return np.ascontiguousarray(given.rows(start, stop)[:, taken]).view(np.uint8)

    same = (taken == np.arange(groups)).all()
    values = given if same else dataclasses.replace(given, read=read, extent=None)
    return dataclasses.replace(numbers, values=values, order=None, columns=len(order) // groups)


def _taken_rows(numbers: Any, order: Order) -> Any:
    if not isinstance(numbers, Grid):
        return numbers if isinstance(numbers, int) else None
    if numbers.rows != 1 or numbers.values.n_rows != len(order):
        return None
    values = numbers.values
    taken = Tensor(values.name, values.shape, values.type, _gathered(values.read, order))
    return dataclasses.replace(numbers, values=taken)


def _codes_of(words: Rows, given: Coded) -> Rows:
    """The codes that words hold."""
    k, low = given.shape[-1], given.low

    def codes(start: int, stop: int) -> NDArray[Any]:
        found = unpacked(words(start, stop).view(np.uint8), 4, k, -low)
        return found.view(np.int8) if low < 0 else found

    return codes


def _gathered(rows: Rows, order: Order) -> Rows:
    """Rows in another order.

    All of them are kept, while there is room: else those of a slab, which lie anywhere, would be read one by one.
    """

    def read(start: int, stop: int) -> NDArray[Any]:
        wanted = order[start:stop]
        if not len(wanted):
            return rows(0, 0)
        whole = _kept.whole(rows, len(order))
        if whole is not None:
            return whole[wanted]
        found = [rows(int(row), int(row) + 1) for row in np.sort(wanted)]
        out: NDArray[Any] = np.concatenate(found)[np.argsort(np.argsort(wanted))]
        return out

    return read


class _Kept:
    """Rows of the last matrices whose rows were gathered, all that fit into some memory."""

    def __init__(self) -> None:
        self._found: OrderedDict[int, tuple[Rows, NDArray[Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def whole(self, rows: Rows, count: int) -> NDArray[Any] | None:
        """All `count` rows; None where they are too many."""
        with self._lock:
            kept = self._found.pop(id(rows), None)
            if kept is None:
                one = rows(0, 1)
                if one.nbytes * count > _KEPT_BYTES:
                    return None
                room = _KEPT_BYTES - one.nbytes * count
                while self._found and sum(found.nbytes for _, found in self._found.values()) > room:
                    self._found.popitem(last=False)
                kept = rows, np.empty((count, *one.shape[1:]), one.dtype)
                step = max(1, _STEP_BYTES // max(1, one.nbytes))
                for start in range(0, count, step):
                    kept[1][start : start + step] = rows(start, min(count, start + step))
            self._found[id(rows)] = kept
        return kept[1]


_kept = _Kept()
