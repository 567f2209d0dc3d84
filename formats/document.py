"""Documents: what JSON and MessagePack hold, with the numeric arrays cut out as tensors.

Every maximal rectangular array of numbers becomes an F64 tensor named by its path (`weights.layers[0].wq`), whichever
way the writer nested it:

    [[1, 2], [3, 4]]                      nested lists
    {"0": 1, "1": 2}                      a typed array that JavaScript serialised as an object
    {"shape": [2, 2], "data": [1, ...]}   flat numbers beside their shape (also {"rows", "cols", "data"})

The rest stays a tree of dicts, lists, strings and numbers in which a `Slot` marks the place of each tensor, so that
filling the slots gives the document back.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.errors import BadFile, at
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import Output
from llmconv.formats.numbers import number
from llmconv.formats.tensor import Tensor
from llmconv.progress import Meter

__all__ = [
    "DEPTH",
    "Ext",
    "Fault",
    "Numbers",
    "Ref",
    "Slot",
    "cut",
    "dumps",
    "inline",
    "join",
    "loads",
    "replace_slots",
    "slots",
    "write_document",
]

DEPTH = 64
"""How deep a document may nest."""
EXACT = float(1 << 53)
"""Whole numbers up to here are doubles, all of them."""


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of a tensor in a document.

    name: the tensor's.   shape: as nested in the document (a {shape, data} map nests flat).
    form: "nested", or "indexed" when the innermost arrays are objects with keys "0", "1", ...
    ints: which numbers were written as integers, where the style of the document does not say: "all", or flat indices.
    kind: "f4" where the container stored single precision.
    """

    name: str
    shape: tuple[int, ...]
    form: str = "nested"
    ints: str | tuple[int, ...] = ()
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Ext:
    """A MessagePack extension value, carried as it is."""

    code: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Ref:
    """In a document's text (`dumps`): what stands here is kept elsewhere, under this name."""

    name: str


@dataclass(frozen=True, slots=True)
class Fault:
    """What a parser found but can't name the place of; `cut` raises it with its path."""

    message: str


@dataclass(slots=True)
class Numbers:
    """A rectangular array of numbers, not yet given a name."""

    values: NDArray[np.float64]
    form: str = "nested"
    ints: str | tuple[int, ...] = ()
    kind: str = ""


def join(path: str, key: str | int) -> str:
    """The path of an item: `a.b`, `a[0]`; keys that would read as something else are quoted: `a["b.c"]`."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def _quoted(path: str, key: str) -> str:
    return f"{path}[{json.dumps(key, ensure_ascii=False)}]"


@dataclass
class _Cutter:
    source: Path
    tensors: dict[str, Tensor]

    def bad(self, path: str, message: str) -> BadFile:
        return BadFile(f"{at(self.source, path or 'the document')} {message}")

    def slot(self, numbers: Numbers, path: str, nested: tuple[int, ...] | None = None, shape: Any = None) -> Slot:
        """Name an array; `nested` is its shape in the document where that differs from the tensor's."""
        name = path or "values"
        while name in self.tensors:  # {"a": {"b": …}, "a.b": …}
            name += "'"
        values = numbers.values if shape is None else numbers.values.reshape(shape)
        self.tensors[name] = Tensor.from_array(name, values)
        return Slot(name, nested or numbers.values.shape, numbers.form, numbers.ints, numbers.kind)

    def settle(self, node: Any, path: str) -> Any:
        return self.slot(node, path) if isinstance(node, Numbers) else node

    def walk(self, node: Any, path: str, depth: int) -> Any:
        """The node with its arrays cut out; `Numbers` when it is one array itself and may be part of a bigger one."""
        if depth > DEPTH:
            raise self.bad(path[:80], f"nests deeper than {DEPTH} levels, which no model file does")
        if isinstance(node, list):
            return self.array(node, path, depth)
        if isinstance(node, dict):
            return self.object(node, path, depth)
        if isinstance(node, Fault):
            raise self.bad(path, node.message)
        if isinstance(node, float) and not math.isfinite(node):
            raise self.bad(path, f"is {_number(node)}, expected a finite number")
        return node

    def array(self, node: list[Any], path: str, depth: int) -> Any:
        if not node:
            return node
        if all(type(x) is float or type(x) is int for x in node):
            return self.vector(node, path)
        if all(type(x) in (str, bool) for x in node):
            return node
        children = [self.walk(x, join(path, i), depth + 1) for i, x in enumerate(node)]
        if all(isinstance(c, Numbers) for c in children):
            shape, form = children[0].values.shape, children[0].form
            for i, child in enumerate(children):
                if child.values.shape != shape:
                    raise self.bad(
                        path,
                        f"is ragged: row {i} has {_shape(child.values.shape)} numbers, "
                        f"expected {_shape(shape)} like the rows before it",
                    )
            if all(c.form == form for c in children):
                return _stacked(children)
        if any(type(x) in (float, int) for x in node):
            for i, x in enumerate(node):
                if x is None:
                    raise self.bad(
                        join(path, i),
                        "is null among numbers (JavaScript writes NaN and Infinity so), expected a number",
                    )
                if isinstance(x, list) and x:
                    raise self.bad(join(path, i), "is an array among numbers, expected a number; the array is ragged")
        return [self.settle(c, join(path, i)) for i, c in enumerate(children)]

    def vector(self, node: list[Any], path: str) -> Any:
        values = np.array(node, np.float64)
        if not np.isfinite(values).all():
            i = int(np.flatnonzero(~np.isfinite(values))[0])
            raise self.bad(join(path, i), f"is {_number(node[i])}, expected a finite number")
        ints = [i for i, x in enumerate(node) if type(x) is int]
        if any(
            abs(node[i]) > EXACT and str(node[i]) not in (str(int(values[i])), number(float(values[i]), "js"))
            for i in ints
        ):
            return node  # whole numbers that no double holds stay as they are
        return Numbers(values, ints="all" if len(ints) == len(node) else tuple(ints))

    def object(self, node: dict[str, Any], path: str, depth: int) -> Any:
        n = len(node)
        numeric = "0" in node and all(type(x) in (int, float) for x in node.values())
        if numeric and list(node) == [str(i) for i in range(n)]:
            numbers = self.vector(list(node.values()), path)
            if not isinstance(numbers, Numbers):
                return node
            numbers.form = "indexed"
            return numbers
        children = {k: self.walk(x, join(path, k), depth + 1) for k, x in node.items()}
        data = children.get("data")
        if isinstance(data, Numbers):
            shape = self.stated_shape(node, children, path)
            if shape is not None:
                if math.prod(shape) != data.values.size:
                    raise self.bad(
                        path, f"has {data.values.size} numbers in data, expected {_shape(shape)} by its shape"
                    )
                nested = data.values.shape
                if len(nested) == 1 or nested == shape:
                    out = {
                        k: (node[k] if k == "shape" else self.settle(c, join(path, k)))
                        for k, c in children.items()
                        if k != "data"
                    }
                    slot = self.slot(data, path or "data", nested, shape)
                    return {k: slot if k == "data" else out[k] for k in children}
        return {
            k: self.settle(c, join(path, k) if "." not in k or not path else _quoted(path, k))
            for k, c in children.items()
        }

    def stated_shape(self, node: dict[str, Any], children: dict[str, Any], path: str) -> tuple[int, ...] | None:
        stated = children.get("shape")
        if isinstance(stated, Numbers) and stated.values.ndim == 1 and stated.ints == "all":
            shape = tuple(int(n) for n in stated.values)
        elif type(node.get("rows")) is int and type(node.get("cols")) is int:
            shape = (node["rows"], node["cols"])
        else:
            return None
        if any(n < 1 for n in shape) or len(shape) > 32:
            raise self.bad(path, f"states the shape {list(shape)}, expected positive sizes")
        return shape


def _stacked(children: list[Numbers]) -> Numbers:
    values = np.stack([c.values for c in children])
    size = children[0].values.size
    if all(c.ints == "all" for c in children):
        ints: str | tuple[int, ...] = "all"
    else:
        found: list[int] = []
        for i, c in enumerate(children):
            found += range(i * size, (i + 1) * size) if c.ints == "all" else [i * size + int(j) for j in c.ints]
        ints = tuple(found)
    kind = children[0].kind if all(c.kind == children[0].kind for c in children) else ""
    return Numbers(values, children[0].form, ints, kind)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _number(value: Any) -> str:
    return {math.inf: "too large for a 64-bit float", -math.inf: "too large for a 64-bit float"}.get(value, str(value))


def cut(tree: Any, source: Path) -> tuple[Any, dict[str, Tensor]]:
    """A parsed document -> the document with slots, and its tensors in order of appearance.

    `BadFile`, with the path of the item, for ragged arrays, numbers that are not finite, and faults of the parser.
    """
    cutter = _Cutter(source, {})
    try:
        document = cutter.settle(cutter.walk(tree, "", 0), "")
    except RecursionError:
        raise BadFile(f"{at(source)}: nests too deep, no model file does") from None
    return document, {slot.name: cutter.tensors[slot.name] for slot in slots(document)}


def slots(document: Any) -> Iterator[Slot]:
    """Every slot of a document, in order."""
    if isinstance(document, Slot):
        yield document
    elif isinstance(document, dict):
        for value in document.values():
            yield from slots(value)
    elif isinstance(document, list):
        for value in document:
            yield from slots(value)


def dumps(document: Any) -> str:
    """A document with slots as one line of JSON, for a metadata key.  Keys that begin with "$" get another one."""
    return json.dumps(_plain(document), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _plain(node: Any) -> Any:
    if isinstance(node, Slot):
        out: dict[str, Any] = {"$tensor": node.name, "shape": list(node.shape)}
        if node.form != "nested":
            out["form"] = node.form
        if node.ints:
            out["ints"] = node.ints if isinstance(node.ints, str) else list(node.ints)
        if node.kind:
            out["kind"] = node.kind
        return out
    if isinstance(node, dict):
        return {("$" + k if k.startswith("$") else k): _plain(v) for k, v in node.items()}
    if isinstance(node, list):
        return [_plain(v) for v in node]
    if isinstance(node, bytes):
        return {"$bytes": base64.b64encode(node).decode()}
    if isinstance(node, Ref):
        return {"$ref": node.name}
    if isinstance(node, Ext):
        return {"$ext": node.code, "data": base64.b64encode(node.data).decode()}
    return node


def loads(text: str, source: str | Path, resolve: Callable[[str], Any] | None = None) -> Any:
    """The way back of `dumps`.  `resolve` gives what a `Ref` of that name stands for.

    `BadFile` when the text is not what `dumps` writes.
    """

    def read(node: Any, depth: int) -> Any:
        if depth > DEPTH:
            raise ValueError("nests too deep")
        if isinstance(node, list):
            return [read(v, depth + 1) for v in node]
        if not isinstance(node, dict):
            return node
        first = next(iter(node), "")
        if first == "$tensor":
            shape, ints = tuple(node["shape"]), node.get("ints", ())
            if not all(type(n) is int and n > 0 for n in shape) or not isinstance(node[first], str):
                raise ValueError("bad slot")
            ints = ints if isinstance(ints, str) else tuple(int(i) for i in ints)
            return Slot(node[first], shape, str(node.get("form", "nested")), ints, str(node.get("kind", "")))
        if first == "$bytes":
            return base64.b64decode(node[first], validate=True)
        if first == "$ext":
            return Ext(int(node[first]), base64.b64decode(node["data"], validate=True))
        if first.startswith("$") and not first.startswith("$$"):
            if first != "$ref" or resolve is None:
                raise ValueError(f"unknown {first}")
            return resolve(node[first])
        return {(k[1:] if k.startswith("$$") else k): read(v, depth + 1) for k, v in node.items()}

    try:
        return read(json.loads(text), 0)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadFile(
            f"{at(source)}: its kept document can't be read ({error}); "
            "the file was changed by another program, convert it without (--layout)"
        ) from None


def replace_slots(document: Any, fn: Callable[[Slot], Any]) -> Any:
    """The document with `fn(slot)` in place of each slot."""
    if isinstance(document, Slot):
        return fn(document)
    if isinstance(document, dict):
        return {k: replace_slots(v, fn) for k, v in document.items()}
    if isinstance(document, list):
        return [replace_slots(v, fn) for v in document]
    return document


def inline(slot: Slot, tensor: Tensor) -> Any:
    """A small tensor's numbers as the lists (or index maps) that stood at its slot."""
    values = tensor.numpy().astype(np.float64).reshape(slot.shape)
    whole = np.zeros(values.size, bool)
    if slot.ints == "all":
        whole[:] = True
    elif slot.ints:
        whole[np.asarray(slot.ints, np.intp)] = True
    flat = [int(x) if w else x for x, w in zip(values.reshape(-1).tolist(), whole.tolist(), strict=True)]

    def nest(shape: tuple[int, ...], start: int, step: int) -> Any:
        if len(shape) == 1:
            items = flat[start : start + shape[0]]
            return {str(i): x for i, x in enumerate(items)} if slot.form == "indexed" else items
        step //= shape[0]
        return [nest(shape[1:], start + i * step, step) for i in range(shape[0])]

    return nest(slot.shape, 0, values.size)


def write_document(
    checkpoint: Checkpoint, path: Path, render: Callable[..., None], *, force: bool, meter: Meter | None
) -> list[Path]:
    """Write what `render(checkpoint, write, meter)` gives, complete or not at all; the file."""
    inputs = (checkpoint.source,) if checkpoint.source else ()
    least = 2 * checkpoint.n_elements
    with Output(path, force=force, size=least, inputs=inputs) as out:
        render(checkpoint, out.file.write, meter)
    return [path]
