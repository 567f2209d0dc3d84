"""Documents: what JSON and MessagePack hold, with the numeric arrays cut out as tensors.

Every maximal rectangular array of numbers becomes an F64 tensor named by its path (`weights.layers[0].wq`), whichever
way the writer nested it:

    [[1, 2], [3, 4]]                      nested lists
    {"0": 1, "1": 2}                      a typed array that JavaScript serialised as an object (also with "length")
    {"shape": [2, 2], "data": [1, ...]}   flat numbers beside their shape (also {"rows", "cols", "data"}, ...)
    {"shape", "dtype", "data": "AACA…"}   base64 (also a Node Buffer, a list of bytes, MessagePack's binary)

The rest stays a tree of dicts, lists, strings and numbers in which a `Slot` marks the place of each tensor, so that
filling the slots gives the document back.  `formats.documents.cutting` finds the arrays.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.errors import BadFile, at
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.documents.typed_bytes import encode, raw_type, to_text
from llmconv.formats.tensor import Tensor
from llmconv.formats.writing.outputs import Output
from llmconv.formats.writing.scratch import Pages
from llmconv.progress import Meter
from llmconv.quant.block import Bytes

__all__ = [
    "DEPTH",
    "Ext",
    "Fault",
    "Numbers",
    "Ref",
    "Slot",
    "dumps",
    "inline",
    "join",
    "loads",
    "quoted",
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
    form: "nested", or "indexed" when the innermost arrays are objects with keys "0", "1", ..., "counted" when a
        "length" follows these, "buffer" for a Node Buffer, "bytes" for MessagePack's binary, or a form of base64.
    ints: which numbers were written as integers, where the style of the document does not say: "all", or flat indices.
    kind: "f4" where the container stored single precision.
    raw: the type of the numbers where they are written as bytes (`typed_bytes.dtype_named`), else "".
    """

    name: str
    shape: tuple[int, ...]
    form: str = "nested"
    ints: str | tuple[int, ...] = ()
    kind: str = ""
    raw: str = ""

    def packed(self, tensor: Tensor) -> Any:
        """The whole of an array that is written as bytes: a text, bytes, or a list of them."""
        data = encode(tensor.numpy().astype(np.float64), self.raw, self.name)
        if self.form.startswith("base64"):
            return to_text(data, self.form)
        return data if self.form == "bytes" else _wrapped(list(data), self.form)


def _wrapped(items: list[Any], form: str) -> Any:
    """One row of numbers as a document has it."""
    if form == "buffer":
        return {"type": "Buffer", "data": items}
    if form in ("indexed", "counted"):
        return {str(i): x for i, x in enumerate(items)} | ({"length": len(items)} if form == "counted" else {})
    return items


_INNER = (Slot, dict, list)
"""What slots can be in."""


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
    """A rectangular array of numbers, not yet given a name.   pages: what the values lie in, if not in memory."""

    values: NDArray[np.float64]
    form: str = "nested"
    ints: str | tuple[int, ...] = ()
    kind: str = ""
    raw: str = ""
    pages: Pages | None = None

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """Named, and of another shape where one is given."""
        found = Tensor.from_array(name, self.values if shape is None else self.values.reshape(shape))
        pages = self.pages
        if pages is None:
            return found

        def read(start: int, stop: int) -> Bytes:
            rows = found.blocks(start, stop).copy()
            pages.let_go()
            return rows

        return dataclasses.replace(found, read=read)


def join(path: str, key: str | int) -> str:
    """The path of an item: `a.b`, `a[0]`; keys that would read as something else are quoted: `a["b.c"]`."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def quoted(path: str, key: str) -> str:
    """The path of an item whose key holds dots."""
    return f"{path}[{json.dumps(key, ensure_ascii=False)}]"


def slots(document: Any) -> Iterator[Slot]:
    """Every slot of a document, in order."""
    if isinstance(document, Slot):
        yield document
    elif isinstance(document, dict | list):
        for value in document.values() if isinstance(document, dict) else document:
            if isinstance(value, _INNER):  # of a vocabulary's words none is looked into
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
        if node.raw:
            out["raw"] = node.raw
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
            form, kind, raw = (str(node.get(key, "")) for key in ("form", "kind", "raw"))
            if raw:
                raw_type(raw)
            if form.startswith("base64"):
                to_text(b"", form)
            return Slot(node[first], shape, form or "nested", ints, kind, raw)
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
        return {k: replace_slots(v, fn) if isinstance(v, _INNER) else v for k, v in document.items()}
    if isinstance(document, list):
        return [replace_slots(v, fn) if isinstance(v, _INNER) else v for v in document]
    return document


def inline(slot: Slot, tensor: Tensor) -> Any:
    """A small tensor's numbers as the lists (or index maps) that stood at its slot."""
    if slot.raw:
        return slot.packed(tensor)
    values = tensor.numpy().astype(np.float64).reshape(slot.shape)
    whole = np.zeros(values.size, bool)
    if slot.ints == "all":
        whole[:] = True
    elif slot.ints:
        whole[np.asarray(slot.ints, np.intp)] = True
    flat = [int(x) if w else x for x, w in zip(values.reshape(-1).tolist(), whole.tolist(), strict=True)]

    def nest(shape: tuple[int, ...], start: int, step: int) -> Any:
        if len(shape) == 1:
            return _wrapped(flat[start : start + shape[0]], slot.form)
        step //= shape[0]
        return [nest(shape[1:], start + i * step, step) for i in range(shape[0])]

    return nest(slot.shape, 0, values.size)


def write_document(
    checkpoint: Checkpoint, path: Path, render: Callable[..., None], *, force: bool, meter: Meter | None
) -> list[Path]:
    """Write what `render(checkpoint, write, meter)` gives, complete or not at all; the file."""
    least = 2 * checkpoint.n_elements
    with Output(path, force=force, size=least, inputs=checkpoint.inputs()) as out:
        render(checkpoint, out.file.write, meter)
    return [path]
