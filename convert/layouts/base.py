"""`Layout`: one declarative table per family of JSON models, read in both directions.

A weight's row says at which path of the document a tensor of the GGUF lies and by what ops; a field says the same of a
hyper-parameter.  The orientation of matrices belongs to the table: a square matrix does not show it.  From a row's
shape expression come the checks; marks are the paths by which a document is recognised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import dims_of
from llmconv.convert.tables.ops import Dims, Op, evaluate
from llmconv.errors import BadFile
from llmconv.formats.tensor import BlockClass, Tensor

__all__ = ["Field", "Layout", "Place", "Weight", "Words", "look", "weight"]


def look(document: Any, path: str) -> Any:
    """The value at a dotted path, a key that holds dots itself included; None when there is none."""
    if isinstance(document, dict):
        if path in document:
            return document[path]
        for end in range(len(path)):
            if path[end] == "." and path[:end] in document:
                found = look(document[path[:end]], path[end + 1 :])
                if found is not None:
                    return found
    return None


@dataclass(frozen=True)
class Field:
    """A hyper-parameter: where documents state it (the first path that does), and its GGUF key.

    `shape of PATH@axis` reads it from a weight, `length of PATH` from a list.  kind: "u32", "f32" or "str".
    """

    key: str
    paths: tuple[str, ...]
    kind: str = "u32"
    default: Any = None
    optional: bool = False


@dataclass(frozen=True)
class Weight:
    """Tensors of a GGUF and the paths at which documents hold them; `{i}` is the layer.

    shapes: of the GGUF's tensors.   ops: from the document to the GGUF.   when: an expression over the dimensions.
    """

    gguf: tuple[str, ...]
    paths: tuple[str, ...]
    shapes: tuple[str, ...]
    ops: tuple[Op, ...] = ()
    when: str = ""
    optional: bool = False

    @property
    def per_layer(self) -> bool:
        return "{i}" in self.gguf[0]


def weight(
    gguf: str | tuple[str, ...],
    paths: str | tuple[str, ...],
    shape: str | tuple[str, ...],
    *ops: Op,
    when: str = "",
    optional: bool = False,
) -> Weight:
    """A row of the table; see `Weight`."""
    return Weight(_several(gguf), _several(paths), _several(shape), ops, when, optional)


def _several(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


@dataclass(frozen=True)
class Words:
    """Where documents list their vocabulary: paths of a list, or a map between words and indices."""

    paths: tuple[str, ...]
    unk: str | None = "[UNK]"
    lowercase: bool = True
    extra: tuple[str, ...] = ()
    """Tokens that the list leaves out and the program adds behind it."""
    separator: str = " "
    """What the program splits text at; "" for single characters."""


@dataclass(frozen=True)
class Place:
    """A row at one layer: names and paths filled in, shapes evaluated."""

    row: Weight
    gguf: tuple[str, ...]
    paths: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dims: Dims

    def expected(self) -> tuple[tuple[int, ...], ...]:
        """The shapes that the document's tensors must have: the ops undone on the GGUF's shapes."""

        def read(start: int, stop: int) -> Any:
            raise AssertionError("a shape has no bytes")

        kind: BlockClass = _f32()
        parts = tuple(Tensor(n, s, kind, read) for n, s in zip(self.gguf, self.shapes, strict=True))
        for op in reversed(self.row.ops):
            parts = op.undo(parts, self.dims)
        return tuple(p.shape for p in parts)


def _f32() -> BlockClass:
    from llmconv.quant.plain import F32

    return F32


@dataclass(frozen=True)
class Layout:
    """A family of JSON models.

    name: what `--layout` calls it.   title: one line for people.   arch: general.architecture of its GGUFs.
    marks: paths (of values or weights) that a document of the family has, all of them; `absent` ones it has not.
    roots: beginnings of paths below which everything must be a weight that the table knows.
    constants: GGUF keys that the program fixes.   words: the vocabulary.
    finish: (keys without the architecture's prefix, dims): keys that no field can express.
    unpack: (document, tensors, dims) -> tensors by path, for documents that pack several weights into one array;
        `pack` the way back.
    build: (metadata, dims, words) -> a document for a GGUF that was not made from one, with slots; None: there is none.
    config: file names beside the model that may hold what the document lacks ("" when it lacks nothing).
    """

    name: str
    title: str
    arch: str
    marks: tuple[str, ...]
    fields: tuple[Field, ...]
    weights: tuple[Weight, ...]
    absent: tuple[str, ...] = ()
    roots: tuple[str, ...] = ("weights",)
    constants: Mapping[str, Any] = field(default_factory=dict)
    words: Words | None = None
    finish: Callable[[dict[str, Any], Dims], None] | None = None
    unpack: Callable[[Any, Mapping[str, Tensor], Dims], dict[str, Tensor]] | None = None
    pack: Callable[[Any, Mapping[str, Tensor], Dims], dict[str, Tensor]] | None = None
    build: Callable[[Mapping[str, Any], Dims], Any] | None = None
    config: tuple[str, ...] = ()
    check: Callable[[Any, Dims], str | None] | None = None
    """(document, dims) -> what is wrong with it, in a few words, or None."""

    def missing(self, document: Any, tensors: Mapping[str, Tensor]) -> list[str]:
        """The marks that a document lacks, and (as "no PATH") those that it should not have."""

        def has(path: str) -> bool:
            return path in tensors or look(document, path) is not None

        lacks = [m for m in self.marks if not has(m)]
        return lacks + [f"no {path}" for path in self.absent if has(path)]

    def keys(self, documents: Sequence[tuple[str, Any]], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """GGUF keys (without the prefix) that the documents state.

        documents: the model's and those beside it, each with the start of messages about it.
        `BadFile` for a value of another kind, a missing one, or two that contradict each other.
        """
        out: dict[str, Any] = {}
        for item in self.fields:
            stated: list[tuple[str, Any]] = []
            for path in item.paths:
                if path.startswith("shape of "):
                    name, _, axis = path.removeprefix("shape of ").partition("@")
                    if name in tensors and int(axis) < len(tensors[name].shape):
                        stated.append((f"{documents[0][0]}: {name}", tensors[name].shape[int(axis)]))
                    continue
                if path.startswith("length of "):
                    name = path.removeprefix("length of ")
                    if isinstance(found := look(documents[0][1], name), list):
                        stated.append((f"the number of {name}", len(found)))
                    continue
                for where, document in documents:
                    if (found := look(document, path)) is not None:
                        stated.append((f"{where}: {path}", _typed(found, item, f"{where}: {path}")))
            if not stated and item.optional:
                continue
            if not stated and item.default is None:
                raise BadFile(f"{documents[0][0]}: {item.paths[0]} is missing; the layout {self.name} needs it")
            for place, value in stated[1:]:
                if value != stated[0][1]:
                    raise BadFile(f"{place} says {value}, but {stated[0][0]} says {stated[0][1]}; correct one of them")
            out[item.key] = _typed(stated[0][1] if stated else item.default, item, documents[0][0])
        return out

    def metadata(self, own: dict[str, Any]) -> dict[str, Any]:
        """The architecture's keys, complete."""
        own = {**own, **self.constants}
        full = {f"{self.arch}.{k}": v for k, v in own.items()}
        if self.finish is not None:
            self.finish(own, self.dims(full))
        return {f"{self.arch}.{k}": v for k, v in own.items()}

    def dims(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        found = dims_of(metadata, self.arch)
        return {k: v for k, v in found.items() if isinstance(v, int)}

    def places(self, dims: Dims) -> Iterator[Place]:
        """Every row at every layer where it exists."""
        for row in self.weights:
            if not row.per_layer:
                yield from self._place(row, {**dims, "i": 0})
        for i in range(dims["n_layer"]):
            for row in self.weights:
                if row.per_layer:
                    yield from self._place(row, {**dims, "i": i})

    @staticmethod
    def _place(row: Weight, dims: Dims) -> Iterator[Place]:
        if row.when and not evaluate(row.when, dims):
            return
        layer = str(dims["i"])
        shapes = tuple(tuple(evaluate(s, dims) for s in shape.split(",")) for shape in row.shapes)
        gguf, paths = (tuple(n.replace("{i}", layer) for n in names) for names in (row.gguf, row.paths))
        yield Place(row, gguf, paths, shapes, dims)


def _typed(value: Any, item: Field, where: str) -> Any:
    if item.kind == "str":
        if isinstance(value, str):
            return value
    elif item.kind == "f32":
        if isinstance(value, int | float | np.floating) and not isinstance(value, bool):
            return np.float32(value)
    elif isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 < value < 1 << 31:
        return np.uint32(value)
    wanted = {"str": "a text", "f32": "a number"}.get(item.kind, "a whole number of at least 1")
    raise BadFile(f"{where} is {str(value)[:40]!r}, expected {wanted}")
