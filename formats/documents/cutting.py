"""Cutting the arrays out of a parsed document: the tree with slots, and its tensors (see `formats.documents.document`).

What stands beside an array says what it is: a shape (`shape`, `dims`, `rows` and `cols`, ...) makes flat numbers a
matrix, a dtype makes bytes numbers.  A shape itself is never a tensor.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmconv.errors import BadFile, at, cut as short, more
from llmconv.formats import limits
from llmconv.formats.documents import disguised
from llmconv.formats.documents.disguised import sizes as _sizes
from llmconv.formats.documents.document import DEPTH, EXACT, Fault, Numbers, Slot, join, quoted, slots
from llmconv.formats.documents.numbers import number
from llmconv.formats.documents.typed_bytes import decode, dtype_named, from_text, in_order
from llmconv.formats.tensor import Tensor

__all__ = ["DATA", "SHAPE", "cut", "has_shape", "shapes"]

SHAPE = ("shape", "dims", "dim", "size", "sizes", "dimensions", "tensorShape", "Shape", "ne")
"""Keys that state a shape as a list; ggml's `ne` from the last dimension on."""
SIZES = (("rows", "cols"), ("rows", "columns"), ("n", "d"), ("sy", "sx", "depth"))
"""Keys that state it one by one (n, d: recurrentjs; sy, sx, depth: ConvNetJS)."""
DATA = ("data", "values", "value", "weights", "weight", "v", "w", "buffer", "array", "elements")
"""Keys of the numbers, where the name of what is inside an object is the object's."""
_TEXTS = ("base64", "b64", "bytes", "content", "raw", "__ndarray__", "Data")
"""Keys of base64, where a shape or dtype stands beside it."""
_ONLY_DTYPE = ("dtype", "datatype", "dataType", "data_type", "elementType", "Dtype")
_DTYPE = (*_ONLY_DTYPE, "type", "kind", "format")
_CLASS = ("$type", "__type", "__type__", "_type", "constructor", "class", "className", "__class__")
_GRADIENTS = ("dw", "grad", "grads", "gradient", "gradients")
_STRICT = ("shape", "dims", "dim", "rows")
_IS_SIZES = re.compile(
    r"(?:^|[a-z0-9_.-])(?:[Ss]hape|[Dd]im|[Dd]imension|[Ss]ize|[Ss]tride)s?$|^(?:SHAPE|DIM|SIZE)S?$|^ne$"
    r"|^(?:hidden_?[lL]ayers|layers|nouts|topology|architecture|units)$"
)
_TO_BE_BASE64 = 96
_BASE64 = re.compile(rf"(?![0-9a-fA-F]*\Z)[A-Za-z0-9+/_-]{{{_TO_BE_BASE64}}}")
"""How a text begins that may be base64 though nothing beside it says so: no word, and no hexadecimal hash."""
_SHORT_BASE64 = re.compile(r"(?:data:[^,]*,)?(?![0-9a-fA-F]*\Z)(?:[A-Za-z0-9+/_-]{6,}={1,2}|[A-Za-z0-9+/_-]{16,})")
"""The same of a short one, from its beginning to its end."""


def has_shape(node: dict[str, Any]) -> bool:
    """Whether an object states a shape."""
    return any(key in node for key in SHAPE) or any(all(k in node for k in keys) for keys in SIZES)


def _is_sizes(key: str, node: Any) -> bool:
    """Whether what stands under the key are sizes, no weights: shapes, dimensions, strides."""
    if key == "shapes" and isinstance(node, dict):
        return all(_sizes(x) is not None for x in node.values())
    if not _IS_SIZES.search(key):
        return False
    if isinstance(node, str | dict) and _sizes(node) is not None:
        return True
    if not isinstance(node, list) or not node or len(node) > limits.MAX_DIMS:
        return False
    flat = [y for x in node for y in (x if isinstance(x, list) else [x])]
    return all(x is None or disguised.size(x) is not None for x in flat)


@dataclass
class _Around:
    """What objects further out say of the arrays in them: their dtype, shapes by name, the order of bytes."""

    dtype: str | None = None
    shapes: dict[str, Any] = field(default_factory=dict)
    order: str = ""


@dataclass
class _Cutter:
    source: Path
    ours: bool = False
    tensors: dict[str, Tensor] = field(default_factory=dict)
    nulls: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    buffers: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    numbered: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    wide: list[str] = field(default_factory=list)
    partly: list[str] = field(default_factory=list)
    unsaved: list[str] = field(default_factory=list)
    scaled: list[str] = field(default_factory=list)
    guessed: list[str] = field(default_factory=list)
    beside: _Around = field(default_factory=_Around)
    order: str = ""

    def bad(self, path: str, message: str) -> BadFile:
        return BadFile(f"{at(self.source, short(path, 120)[1:-1] if path else 'the document')} {message}")

    def notes(self) -> Iterator[str]:
        """What a reader of the document should know of the arrays in it."""
        says = {
            "holds only null, where JavaScript had NaN or Infinity: no tensor": self.nulls,
            "is base64 without a dtype and a shape that fits it: it stays text, no tensor": self.texts,
            "has numbers under 0, 1, … but not all, in order, with their length behind them: no tensor": self.gaps,
            "has numbers under numbers, but not under 0, 1, …, as arrays have them: no tensor": self.numbered,
            "holds numbers as text or in objects, not as numbers: no tensor": self.written,
            "has whole numbers that no 64-bit float holds: no tensor": self.wide,
            "is an array of numbers and other things beside arrays of numbers: no tensor": self.partly,
            "states a shape and a dtype and has no numbers, as libraries print a tensor: no tensor": self.unsaved,
            "is whole numbers beside a scale, which is not multiplied in: they are taken as they are": self.scaled,
            "is a buffer without a dtype or a shape that fits it: its bytes are the tensor's numbers": self.buffers,
            "has no dtype: its bytes are taken as floats of 32 (or 64) bits, which its shape suggests": self.guessed,
        }
        if self.ours:  # of which `metadata` has settings alone
            says = {text: [name for name in names if not name.startswith("metadata")] for text, names in says.items()}
        return (f"{short(names[0])}{more(names)} {text}" for text, names in says.items() if names)

    def slot(self, numbers: Numbers, path: str, nested: tuple[int, ...] | None = None, shape: Any = None) -> Slot:
        """Name an array; `nested` is its shape in the document where that differs from the tensor's."""
        name = path or "values"
        while name in self.tensors:  # {"a": {"b": …}, "a.b": …}
            name += "'"
        self.tensors[name] = numbers.tensor(name, shape)
        nested = nested or numbers.values.shape
        return Slot(name, nested, numbers.form, numbers.ints, numbers.kind, numbers.raw)

    def settle(self, node: Any, path: str) -> Any:
        if not isinstance(node, Numbers):
            return node
        if node.form == "buffer" and not node.raw:
            self.buffers.append(path)
        return self.slot(node, path)

    def walk(self, node: Any, path: str, depth: int) -> Any:
        """The node with its arrays cut out; `Numbers` when it is one array itself and may be part of a bigger one."""
        if depth > DEPTH:
            raise self.bad(path[:80], f"nests deeper than {DEPTH} levels, which no model file does")
        if isinstance(node, list):
            return self.array(node, path, depth)
        if isinstance(node, dict):
            return self.object(node, path, depth)
        if isinstance(node, str) and disguised.is_numbers_in_a_text(node):
            self.written.append(path)
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
            if any(_like_base64(x) for x in node if type(x) is str):
                self.texts.append(path)
            elif disguised.number_words(node):
                self.written.append(path)
            return node
        if all(x is None for x in node):
            self.nulls.append(path)
            return node
        children = [self.walk(x, join(path, i), depth + 1) for i, x in enumerate(node)]
        if all(isinstance(c, Numbers) and c.form != "buffer" for c in children):
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
        if disguised.wrapped_numbers(node):
            self.written.append(path)
            return node
        if any(type(x) in (float, int) for x in node):
            if (
                sum(type(x) is float for x in node) > 1 and any(type(x) is bool for x in node)
            ) or disguised.number_words(node):
                self.written.append(path)
            for i, x in enumerate(node):
                if x is None:
                    raise self.null(join(path, i))
                if isinstance(x, list) and x:
                    raise self.bad(join(path, i), "is an array among numbers, expected a number; the array is ragged")
        if any(isinstance(c, Numbers) for c in children):
            self.nulls += [join(path, i) for i, x in enumerate(node) if x is None]
            self.partly += [join(path, i) for i, x in enumerate(children) if _has_numbers(x)]
        return [self.settle(c, join(path, i)) for i, c in enumerate(children)]

    def null(self, path: str) -> BadFile:
        return self.bad(path, "is null among numbers (JavaScript writes NaN and Infinity so), expected a number")

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
            self.wide.append(path)
            return node  # whole numbers that no double holds stay as they are
        return Numbers(values, ints="all" if len(ints) == len(node) else tuple(ints))

    def object(self, node: dict[str, Any], path: str, depth: int) -> Any:
        if (found := self.indexed(node, path)) is not None:
            return found
        if (found := self.buffer(node, path)) is not None:
            return found
        outer, self.beside = self.beside, self.told(node)
        children = {
            k: x if _is_sizes(k, x) else self.walk(x, _inside(path, k), depth + 1) for k, x in node.items()
        }  # fmt: skip
        self.beside, self.order = outer, self.beside.order
        self.typed(node, children, path)
        if disguised.is_unsaved(node) and not any(isinstance(child, Slot | Numbers) for child in children.values()):
            self.unsaved.append(path)
        return {k: self.settle(c, _inside(path, k)) for k, c in children.items()}

    def indexed(self, node: dict[str, Any], path: str) -> Any:
        """{"0": 1, "1": 2}, perhaps with "length": 2 at the end; None for any other object."""
        if "0" not in node:
            if disguised.is_numbered(node):
                self.numbered.append(path)
            return None
        keys, n = list(node), len(node)
        counted = n > 1 and keys[-1] == "length" and type(node["length"]) is int and node["length"] == n - 1
        n -= counted
        if keys[:n] != [str(i) for i in range(n)]:
            digits = [k for k in keys if k.isdecimal()]
            if len(digits) > 1 and all(type(node[k]) in (int, float) for k in digits):
                self.gaps.append(path)
            elif disguised.is_numbered(node):
                self.numbered.append(path)
            return None
        items = list(node.values())[:n]
        if all(x is None for x in items):
            self.nulls.append(path)
            return node
        if not all(type(x) in (int, float) for x in items):
            if all(type(x) is str for x in items) and disguised.number_words(items):
                self.written.append(path)
            lone = next((i for i, x in enumerate(items) if x is None), None)
            if lone is not None and all(x is None or type(x) in (int, float) for x in items):
                raise self.null(_inside(path, str(lone)))
            return None
        numbers = self.vector(items, path)
        if not isinstance(numbers, Numbers):
            return node
        numbers.form = "counted" if counted else "indexed"
        return numbers

    def buffer(self, node: dict[str, Any], path: str) -> Any:
        """{"type": "Buffer", "data": [bytes]}, as Node serialises its Buffers; None for any other object."""
        if list(node) != ["type", "data"] or node["type"] != "Buffer":
            if list(node) == ["data", "type"] and node["type"] == "Buffer":  # as no program writes it: plain numbers
                self.buffers.append(path)
            return None
        data = node["data"]
        if isinstance(data, str):
            self.texts.append(path)
        found = self.vector(data, path) if isinstance(data, list) and data and _all_ints(data) else data
        if not isinstance(found, Numbers):
            return None
        if not _are_bytes(found):
            raise self.bad(path, "is a Node Buffer with numbers that are no bytes, expected 0 to 255")
        return dataclasses.replace(found, form="buffer")

    def told(self, node: dict[str, Any]) -> _Around:
        """What an object says of the arrays further in."""
        shapes = node.get("shapes")
        stated = node.get("dtype")
        dtype = dtype_named(stated) if isinstance(stated, str) else None
        order = disguised.byte_order(node) or self.beside.order
        return _Around(
            in_order(dtype, order) or self.beside.dtype,
            shapes if isinstance(shapes, dict) else self.beside.shapes,
            order,
        )

    def typed(self, node: dict[str, Any], children: dict[str, Any], path: str) -> None:
        """Put slots in place of arrays whose shape or dtype the object, or one around it, states."""
        key = self.data_key(node, children)
        if key is not None:
            shape = self.stated_shape(node, path)
            lone = key == "data" or (key in DATA and sum(_is_array(k, c) for k, c in children.items()) < 2)
            name = path or key if lone or key in _TEXTS else _inside(path, key)
            stated = in_order(_stated_dtype(node), self.order)
            if stated is None and isinstance(children[key], str) and _unknown_dtype(node):
                self.texts.append(name)  # of a type that nobody here knows: no guess
                return
            self.check(node, children[key], name, shape, stated)
            children[key] = self.made(children[key], name, shape, stated, _strict(node, key))
        told = key
        for key, child in children.items():
            if isinstance(child, Slot) or _is_sizes(key, node[key]):
                continue
            shape = _sizes(self.beside.shapes.get(key))
            if shape is not None or (key != told and isinstance(child, str) and _may_be_base64(child)):
                children[key] = self.made(child, _inside(path, key), shape, None, strict=True)

    def check(self, node: dict[str, Any], child: Any, name: str, shape: Any, dtype: str | None) -> None:
        """`BadFile` for numbers that are not what they look like; what stands beside them says so."""
        flat = isinstance(child, str | bytes) or (isinstance(child, Numbers) and child.values.ndim == 1)
        if shape is not None and flat and (how := disguised.not_by_rows(node, shape)) is not None:
            raise self.bad(name, f"is stored by {how}, expected row after row; write a copy of the array")
        if not isinstance(child, Numbers) or child.form == "buffer" or _are_bytes(child):
            return
        if not self.ours and disguised.are_bits(child, dtype):
            raise self.bad(name, "has the bits of floats as whole numbers, by its dtype; write the numbers themselves")
        if child.ints == "all" and any(key in node for key in ("scale", "zeroPoint", "zero_point")):
            self.scaled.append(name)

    def data_key(self, node: dict[str, Any], children: dict[str, Any]) -> str | None:
        """The key of the array that a shape or dtype in the same object is about; None when there is none."""
        for kind in (Numbers, str | bytes):
            for key in DATA:
                if isinstance(children.get(key), kind) and key not in _DTYPE:
                    return key
        for key in _TEXTS:
            if isinstance(children.get(key), str) and (has_shape(node) or _says_dtype(node)):
                return key
        if has_shape(node):  # {"wte": {a Buffer}, "shape": [2, 3]}
            arrays = [k for k, c in children.items() if isinstance(c, Numbers)]
            return arrays[0] if len(arrays) == 1 else None
        return None

    def made(self, child: Any, name: str, shape: tuple[int, ...] | None, dtype: str | None, strict: bool) -> Any:
        """The slot of an array of a known shape or dtype; the child itself where neither fits it."""
        if isinstance(child, Numbers) and child.form != "buffer":
            if shape is None:
                return child
            nested, size = child.values.shape, child.values.size
            if math.prod(shape) == size:
                return self.slot(child, name, nested, shape) if len(nested) == 1 or nested == shape else child
            width = size // math.prod(shape)
            if not (dtype and size == width * math.prod(shape) and _are_bytes(child)):
                if strict:
                    raise self.bad(name, f"has {size} numbers in data, expected {_shape(shape)} by its shape")
                return child
        return self.from_bytes(child, name, shape, dtype)

    def from_bytes(self, child: Any, name: str, shape: tuple[int, ...] | None, dtype: str | None) -> Any:
        """The same of an array that is kept as bytes: base64, a Buffer, a list of bytes, MessagePack's binary."""
        if isinstance(child, Numbers):
            data, form = child.values.astype(np.uint8).tobytes(), child.form
        elif isinstance(child, bytes):
            data, form = child, "bytes"
        elif isinstance(child, str) and (found := from_text(child)) is not None:
            data, form = found
        else:
            if isinstance(child, str) and shape is not None and dtype is not None:
                self.texts.append(name)  # with breaks of lines, say
            return child
        inferred = {4: "<f4", 8: "<f8"}.get(len(data) // math.prod(shape)) if shape else None
        inferred = in_order(inferred, self.order)
        if shape is None and dtype is None and isinstance(child, str) and not _is_base64(child):
            if _may_be_base64(child):
                self.texts.append(name)
            return child
        raw = dtype or self.beside.dtype or inferred
        values = decode(data, raw) if raw else None
        if values is None or (shape is not None and values.size != math.prod(shape)):
            if shape is not None and dtype is not None:
                raise self.bad(
                    name, f"has {len(data):,} bytes in data, expected {_shape(shape)} of {dtype.lstrip('<|')}"
                )
            if isinstance(child, str):
                self.texts.append(name)
            return child
        if raw == inferred and not (dtype or self.beside.dtype):
            self.guessed.append(name)
        return self.slot(Numbers(values, form, raw=raw or ""), name, None, shape or values.shape)

    def stated_shape(self, node: dict[str, Any], path: str) -> tuple[int, ...] | None:
        key, shape = _beside(node)
        if shape is None:
            return None
        if any(n < 1 for n in shape) or limits.too_large(shape):
            if key not in _STRICT:
                return None
            raise self.bad(path, f"states the shape {short(list(shape))}, expected positive sizes")
        return shape


def _is_array(key: str, child: Any) -> bool:
    """Whether a child is an array of its own: no gradient of another."""
    return isinstance(child, Numbers) and key not in _GRADIENTS


def _stated_dtype(node: dict[str, Any]) -> str | None:
    """The type that an object states, under the keys for it or as the name of a class (Float32Array)."""
    found = next((d for k in _DTYPE if (d := dtype_named(node.get(k))) is not None), None)
    return found or next((dtype_named(x) for k in _CLASS if _is_class(x := node.get(k))), None)


def _says_dtype(node: dict[str, Any]) -> bool:
    """Whether an object states a type where nothing else is stated."""
    named = dtype_named(node.get("dtype")) is not None
    return named or any(_is_class(node.get(k)) for k in (*_DTYPE, *_CLASS))


def _is_class(name: Any) -> bool:
    return isinstance(name, str) and name.endswith("Array") and dtype_named(name) is not None


def _unknown_dtype(node: dict[str, Any]) -> bool:
    """Whether an object states a type under a key that is for nothing else."""
    return any(isinstance(node.get(key), str) for key in _ONLY_DTYPE)


def _beside(node: dict[str, Any]) -> tuple[str, tuple[int, ...] | None]:
    """The shape that an object states, and the key of it."""
    for key in SHAPE:
        if (shape := _sizes(node.get(key))) is not None:
            return key, shape[::-1] if key == "ne" else shape
    for keys in SIZES:
        found = [disguised.size(node.get(key)) for key in keys]
        if None not in found:
            return keys[0], tuple(n for n in found if n is not None)
    return "", None


def shapes(document: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a document with slots, by name: as it is nested, or stated beside it."""
    out: dict[str, tuple[int, ...]] = {}

    def walk(node: Any, stated: tuple[int, ...] | None) -> None:
        if isinstance(node, Slot):
            fits = stated is not None and math.prod(stated) == math.prod(node.shape)
            out[node.name] = stated if fits and stated is not None else node.shape
        elif isinstance(node, dict):
            beside = _beside(node)[1]
            for child in node.values():
                walk(child, beside or (stated if node.get("type") == "Buffer" else None))
        elif isinstance(node, list):
            for child in node:
                walk(child, None)

    walk(document, None)
    return out


def _inside(path: str, key: str) -> str:
    return join(path, key) if "." not in key or not path else quoted(path, key)


def _like_base64(text: str) -> bool:
    begin = re.sub(r"\r?\n", "", text[: 2 * _TO_BE_BASE64])
    return len(begin) >= _TO_BE_BASE64 and _BASE64.match(begin) is not None


def _may_be_base64(text: str) -> bool:
    """Whether a text is base64, or so short a one that only its bytes can tell it from a word: they are floats."""
    if len(text) >= _TO_BE_BASE64:
        return _like_base64(text)
    if _SHORT_BASE64.fullmatch(text) is None:
        return False
    found = from_text(text)
    return found is not None and len(found[0]) > 3 and disguised.are_floats(found[0])


def _is_base64(text: str) -> bool:
    """The same, where a word is out of the question."""
    return (_like_base64(text) or text.endswith("=")) and _may_be_base64(text)


def _strict(node: dict[str, Any], key: str) -> bool:
    """Whether numbers that do not fit the shape beside them are an error, not numbers of something else."""
    return (key == "data" and any(k in node for k in _STRICT)) or (key == "values" and "shape" in node)


def _has_numbers(node: Any) -> bool:
    return isinstance(node, list) and any(type(x) in (int, float) for x in node)


def _all_ints(node: list[Any]) -> bool:
    return all(type(x) is int for x in node)


def _are_bytes(numbers: Numbers) -> bool:
    values = numbers.values
    return numbers.ints == "all" and values.ndim == 1 and bool(((values >= 0) & (values < 256)).all())


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


def cut(tree: Any, source: Path, notes: list[str] | None = None) -> tuple[Any, dict[str, Tensor]]:
    """A parsed document -> the document with slots, and its tensors in order of appearance.

    notes: gets a sentence for each kind of array that is no tensor, or one by a guess.
    `BadFile`, with the path of the item, for ragged arrays, numbers that are not finite, and faults of the parser.
    """
    cutter = _Cutter(source, ours=isinstance(tree, dict) and tree.get("format") == "llmconv")
    try:
        document = cutter.settle(cutter.walk(tree, "", 0), "")
    except RecursionError:
        raise BadFile(f"{at(source)}: nests too deep, no model file does") from None
    if notes is not None:
        notes += cutter.notes()
    return document, {slot.name: cutter.tensors[slot.name] for slot in slots(document)}
