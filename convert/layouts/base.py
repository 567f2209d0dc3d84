"""`Layout`: one declarative table per family of JSON models, read in both directions.

A row says at which path of the document a tensor of the GGUF lies and by what ops (`convert.tables.rows`); a field says
the same of a hyper-parameter.  The orientation of matrices belongs to the table: a square matrix does not show it.
Marks are the paths by which a document is recognised.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmconv.convert.layouts.spelling import Spelled, spell
from llmconv.convert.tables.keys import Key, dims_of
from llmconv.convert.tables.ops import Dims
from llmconv.convert.tables.rows import Form, Row, Slot, row, slots
from llmconv.errors import BadFile
from llmconv.formats.tensor import Tensor

__all__ = ["Field", "Form", "Layout", "Row", "Words", "look", "look_loosely", "row"]


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


def look_loosely(document: Any, path: str) -> Any:
    """The same whatever the case of the keys and with or without underscores: `Config.N_EMBD` is `config.nEmbd`.

    None where two keys would do, and for names of less than three letters, whose case tells them apart.
    """
    for step in path.split("."):
        if not isinstance(document, dict) or len(step) < 3 or len(document) > _SETTINGS:
            return None
        wanted = step.replace("_", "").lower()
        found = [key for key in document if key.replace("_", "").lower() == wanted]
        if len(found) != 1:
            return None
        document = document[found[0]]
    return document


_LISTED = re.compile(r"(.*?)\[(\d+)\](\[1\]|\.\w+)?")


def called_in_lists(document: Any, paths: Iterable[str]) -> dict[str, str]:
    """Path -> what it is called: items of a list that state their names, `[{name, data}]` or `[[name, data]]`, by them.

    All as they are where two would be called alike.
    """
    lists: dict[str, Any] = {}
    out = {}
    for path in paths:
        out[path], found = path, _LISTED.fullmatch(path)
        if found is None:
            continue
        parent, number = found[1], int(found[2])
        if parent not in lists:
            lists[parent] = look(document, parent) if parent else document
        items = lists[parent]
        item = items[number] if isinstance(items, list) and number < len(items) else None
        name = item.get("name") if isinstance(item, dict) else item[0] if isinstance(item, list) and item else None
        if isinstance(name, str) and (isinstance(item, dict) or found[3] == "[1]"):
            out[path] = f"{parent}.{name}" if parent else name
    return out if len(set(out.values())) == len(out) else {path: path for path in out}


_SETTINGS = 1000
"""Keys of an object that holds settings, at most."""


@dataclass(frozen=True)
class Field(Key):
    """A hyper-parameter: the paths at which documents state it, and its GGUF key; all that state it must agree.

    `shape of PATH@axis` reads it from a weight, `shapes of PATH@axis` one from each layer's (`{}`), `length of PATH`
    from a list, `count of PATH` counts the numbers that stand at `{}` in weights' names; `{p}` is any of the layout's
    prefixes.
    optional: may be missing without a default.
    """

    kind: str = "count"
    optional: bool = False


@dataclass(frozen=True)
class Words:
    """Where documents list their vocabulary: paths of a list, or a map between words and indices."""

    paths: tuple[str, ...]
    unk: str | None = "[UNK]"
    lowercase: bool = True
    extra: tuple[str, ...] = ()
    """Tokens that the list leaves out and the program adds behind it, where the model has room for them; in front where
    its number is stated to be 0."""
    before: tuple[str, ...] = ()
    """Tokens that the program has before the list; the first one begins and ends a text."""
    starts: tuple[str, ...] = ()
    """Tokens one of which a text begins with, and ends at."""
    start: tuple[str, ...] = ()
    """Where documents state the number of the token that a text begins with."""
    separator: str = " "
    """What the program splits text at; "" for single characters."""


@dataclass(frozen=True)
class Layout:
    """A family of JSON models.

    name: what `--layout` calls it.   title: one line for people.   arch: general.architecture of its GGUFs.
    marks: paths (of values or weights) that a document of the family has, all of them, each in one of its spellings;
        `absent` ones it has not.
    prefixes: what `{p}` in paths may be ("weights.", "state_dict."); a row's further `alt` forms are other spellings.
    suits: (metadata, dims, tensors) -> why a model of the architecture can't be written so, "" where it can.
    default: whether a model of the architecture is written so when nothing else is asked for.
    spells: whether people choose the weights' names themselves: then marks and rows have GGUF's, and `spelling` says
        which array is which.   fits: what marks can't say of such a document: "" or what is missing.
    complete: (keys without the architecture's prefix, weights by the rows' names, paths) -> notes; adds the keys that
        weights show, and those that have to be guessed, which notes say.
    roots: beginnings of paths below which everything must be a weight that the table knows.
    constants: GGUF keys that the program fixes.   words: the vocabulary.
    finish: (keys without the architecture's prefix, dims): keys that no field can express.
    by_layer: (metadata, dims) -> further dimensions, a list where each layer has its own.
    unpack: (document, tensors, dims) -> tensors by path, for documents that pack several weights into one array;
        `pack` the way back.
    build: (metadata, dims, tensors) -> a document for a GGUF that was not made from one, with slots; None: there is
        none.
    config: file names beside the model that may hold what the document lacks ("" when it lacks nothing).
    """

    name: str
    title: str
    arch: str
    marks: tuple[str | tuple[str, ...], ...]
    fields: tuple[Field, ...]
    rows: tuple[Row, ...]
    absent: tuple[str, ...] = ()
    roots: tuple[str, ...] = ("weights",)
    prefixes: tuple[str, ...] = ("",)
    constants: Mapping[str, Any] = field(default_factory=dict)
    words: Words | None = None
    finish: Callable[[dict[str, Any], Dims], None] | None = None
    by_layer: Callable[[Mapping[str, Any], Dims], dict[str, Any]] | None = None
    unpack: Callable[[Any, Mapping[str, Tensor], Dims], dict[str, Tensor]] | None = None
    pack: Callable[[Any, Mapping[str, Tensor], Dims], dict[str, Tensor]] | None = None
    build: Callable[[Mapping[str, Any], Dims, Mapping[str, Tensor]], Any] | None = None
    suits: Callable[[Mapping[str, Any], Dims, Mapping[str, Tensor]], str] | None = None
    default: bool = True
    spells: bool = False
    fits: Callable[[Spelled], str] | None = None
    complete: Callable[[dict[str, Any], Mapping[str, Tensor], Sequence[str]], list[str]] | None = None
    config: tuple[str, ...] = ()
    check: Callable[[Any, Dims], str | None] | None = None
    """(document, dims) -> what is wrong with it, in a few words, or None."""

    def missing(self, document: Any, tensors: Mapping[str, Tensor]) -> list[str]:
        """The marks that a document lacks, and (as "no PATH") those that it should not have."""

        found = self.spelled(document, tensors) if self.spells else None

        def has(mark: str | tuple[str, ...]) -> bool:
            if found is not None:
                return any(found.has(part) for part in self.spelt(mark))
            return any(path in tensors or look(document, path) is not None for path in self.spelt(mark))

        lacks = [mark if isinstance(mark, str) else mark[0] for mark in self.marks if not has(mark)]
        lacks += [f"no {path}" for path in self.absent if has(path)]
        if not lacks and found is not None and self.fits is not None and (lack := self.fits(found)):
            lacks.append(lack)
        return lacks

    def spelled(self, document: Any, tensors: Mapping[str, Tensor]) -> Spelled:
        """Which of a document's arrays are which parts."""
        called = {name: path for path, name in called_in_lists(document, tensors).items()}
        named = spell({name: tensors[path].shape for name, path in called.items()})
        if all(name == path for name, path in called.items()):
            return named
        return Spelled(
            {part: called[name] for part, name in named.names.items()},
            frozenset(called[name] for name in named.masks),
            tuple(called[name] for name in named.strays),
            named.parts,
            tuple(called[name] for name in named.others),
        )

    def spelt(self, paths: str | tuple[str, ...]) -> list[str]:
        """Paths with every prefix in the place of `{p}`."""
        paths = (paths,) if isinstance(paths, str) else paths
        return list(dict.fromkeys(path.replace("{p}", prefix) for path in paths for prefix in self.prefixes))

    def keys(self, documents: Sequence[tuple[str, Any]], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """GGUF keys (without the prefix) that the documents state.

        documents: the model's and those beside it, each with the start of messages about it.
        `BadFile` for a value of another kind, a missing one, or two that contradict each other.
        """
        out: dict[str, Any] = {}
        for item in self.fields:
            paths = self.spelt(item.names)
            stated = [found for path in paths for found in _stated(item, path, documents, tensors, self.spells)]
            if not stated and self.spells:
                stated = [found for path in paths for found in _at(item, path, documents, look_loosely, True)]
            if not stated and item.optional:
                continue
            if not stated and item.default is None:
                where, document = documents[0]
                raise BadFile(
                    f"{where}: {item.names[0]} is missing{_odd(document)}; the layout {self.name} needs it, from a "
                    "file for --config if the model has none, or --layout plain"
                )
            for place, value in stated[1:]:
                if value != stated[0][1]:
                    raise BadFile(f"{place} says {value}, but {stated[0][0]} says {stated[0][1]}; correct one of them")
            out[item.gguf] = stated[0][1] if stated else item.typed(item.default, item.names[0])
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
        single = {k: v for k, v in found.items() if isinstance(v, int)}
        return single if self.by_layer is None else {**single, **self.by_layer(metadata, single)}

    def slots(self, dims: Dims) -> Iterator[Slot]:
        """Every row at every layer where it exists."""
        return slots(self.rows, dims)


_OBJECTS = ("config", "metadata", "cfg", "hparams", "hyperparameters", "model_args", "meta")


def _odd(document: Any) -> str:
    """What to say of a configuration that is no object."""
    for name in _OBJECTS if isinstance(document, dict) else ():
        if isinstance(document.get(name), str | list):
            kind = "a text" if isinstance(document[name], str) else "a list"
            return f" ({name} is {kind}, expected an object)"
    return ""


def _stated(
    item: Field, path: str, documents: Sequence[tuple[str, Any]], tensors: Mapping[str, Tensor], texts: bool
) -> Iterator[tuple[str, Any]]:
    """What the documents say at a path: (where, value).   texts: whether a number may be written as one."""
    if path.startswith("shape of "):
        name, _, axis = path.removeprefix("shape of ").partition("@")
        if name in tensors and int(axis) < len(tensors[name].shape):
            where = f"{documents[0][0]}: {name}"
            yield where, item.typed(tensors[name].shape[int(axis)], where)
    elif path.startswith("shapes of "):
        name, _, axis = path.removeprefix("shapes of ").partition("@")
        each = itertools.takewhile(tensors.__contains__, (name.replace("{}", str(i)) for i in itertools.count()))
        if (shapes := [tensors[one].shape for one in each]) and all(int(axis) < len(shape) for shape in shapes):
            yield f"{documents[0][0]}: {name}", item.typed([shape[int(axis)] for shape in shapes], name)
    elif path.startswith("count of "):
        before, _, after = path.removeprefix("count of ").partition("{}")
        pattern = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
        numbers = {int(found[1]) for name in tensors if (found := pattern.match(name)) is not None}
        if numbers:
            where = f"the weights' names, {before}0 to {max(numbers)},"
            yield where, item.typed(max(numbers) + 1, where)
    elif path.startswith("length of "):
        name = path.removeprefix("length of ")
        if isinstance(found := look(documents[0][1], name), list):
            yield f"the number of {name}", item.typed(len(found), f"the number of {name}")
    else:
        yield from _at(item, path, documents, look, texts)


def _at(
    item: Field, path: str, documents: Sequence[tuple[str, Any]], find: Callable[[Any, str], Any], texts: bool
) -> Iterator[tuple[str, Any]]:
    """What the documents say at a path: (where, value)."""
    for where, document in documents:
        found = find(document, path)
        listed = isinstance(found, dict | list) or (isinstance(found, str) and path.lower().endswith("vocab"))
        if found is not None and not listed:  # "vocab" is a count here and a list of characters there
            yield f"{where}: {path}", item.typed(_number(found, item.kind) if texts else found, f"{where}: {path}")


def _number(value: Any, kind: str) -> Any:
    """A number that a program wrote as a text, as a number."""
    if (
        kind in ("count", "u32", "f32")
        and isinstance(value, str)
        and re.fullmatch(r"\d{1,15}(\.\d{1,15})?(e-?\d{1,2})?", value)
    ):
        return float(value) if kind == "f32" else int(value) if value.isdecimal() else value
    return value
