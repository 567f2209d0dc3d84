"""Which tensors of a training program's file are the model: `{"model": …, "optimizer": …, "config": …, "stoi": …}`.

The sole mapping of tensors is taken, or the one of a usual name; modules inside modules are walked, their names joined
by dots; where several mappings could be meant the caller chooses by key.  What is no tensor (vocabulary, configuration,
step) is kept as JSON under `REST`.
"""

from __future__ import annotations

import base64
import functools
import json
import operator
import pickle
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmconv.errors import BadFile, UsageError, cut
from llmconv.formats import limits
from llmconv.formats.checkpoint import Checkpoint

__all__ = ["PLACES", "REST", "Chosen", "StrangePickle", "chosen", "count_items", "keep_rest"]

REST = "checkpoint.rest"
"""The metadata key of what a file held besides its tensors, as JSON: [key, value] pairs under "$items" where keys are
no texts, {"$bytes": base64} for bytes."""

PLACES = "checkpoint.places"
"""The metadata key of where the tensors stood, as JSON: {"under": keys, "paths": {name: keys} of those that do not
stand there under their own name}; a place in a list is [number]."""

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "model_state", "weights", "params", "net")
"""Keys under which programs put their state dict, in the order of asking."""
_TRAINING = re.compile(r"(.*_)?(optim|optimizers?|lr_sched\w*|scheduler|scaler|rng|amp|adam)(_.*)?", re.IGNORECASE)
"""Keys under which programs put the state of training."""
_MOST_ITEMS = 1 << 21
"""Items of a file's value; one that refers to itself, or to the same again and again, has more."""


class StrangePickle(pickle.UnpicklingError):
    """A pickle asks for what no model needs; the text is what it does: "holds ...", "asks for ..."."""


@dataclass
class Chosen:
    """tensors: by name.   rest: what else the file holds.   notes: on tensors that were left out.

    places: where the tensors stood (see `PLACES`).
    """

    tensors: dict[str, Any]
    rest: Any = None
    places: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def chosen(value: Any, is_tensor: Callable[[Any], bool], where: str, key: str | None = None) -> Chosen:
    """The model's tensors of a file.   key: of the mapping to take, dotted where it is further in.

    `BadFile` when there are none, naming what there is; `UsageError` when a key must choose, or names nothing.
    """
    count_items(value, is_tensor, where)
    whole = value
    if is_tensor(value):
        value = {"values": value}
    elif isinstance(value, list | tuple) and any(map(is_tensor, value)):
        value = {str(i): item for i, item in enumerate(value)}
    groups = dict(_groups(value, is_tensor))
    if key is not None:
        if key not in groups:
            raise UsageError(f"{where}: has no tensors under the key {cut(key)}; there are {_listed(groups)}")
        path = key
    else:
        path = _model(value, groups, is_tensor, where)
    inside = _at(value, path)
    if key is None:
        inside = {k: v for k, v in inside.items() if is_tensor(v) or not _of_training(k)}
    walked = list(_walk_keys(inside, is_tensor, []))
    out = Chosen({".".join(str(k[0] if isinstance(k, list) else k) for k in keys) or "values": x for keys, x in walked})
    under = _keys(value, path)
    paths = {name: [*under, *keys] for name, (keys, _) in zip(out.tensors, walked, strict=True) if keys != [name]}
    if is_tensor(whole):
        paths = {"values": []}
    elif value is not whole:
        paths = {name: [[int(keys[0])], *keys[1:]] for name, (keys, _) in zip(out.tensors, walked, strict=True)}
    out.places = {"under": under} | ({"paths": paths} if paths else {})
    names = [name for name in out.tensors if len(name) > limits.MAX_NAME_BYTES]
    if names:
        raise BadFile(f"{where}: a tensor has a name of {len(names[0]):,} letters, no model's has")
    left = {name: n for name, n in groups.items() if name and not _within(name, path) and not _within(path, name)}
    if key is None:
        below = len(path) + bool(path)
        left |= {
            n: c for n, c in groups.items() if _within(n, path) and _of_training(n[below:]) and "." not in n[below:]
        }
    for name, n in left.items():
        if not any(_within(name, other) for other in left if other != name):
            out.notes.append(f"{n:,} tensors under {cut(name)} are left out; --key takes them instead")
    out.rest = _without(value, is_tensor)
    return out


def _of_training(key: Any) -> bool:
    return isinstance(key, str) and _TRAINING.fullmatch(key) is not None


def count_items(value: Any, is_tensor: Callable[[Any], bool], where: str) -> None:
    """`BadFile` for a value that is too big when it is written out, or endless.

    Takes time by the containers that there are, not by what comes of them: a pickle of some bytes can hold a list a
    million times over.
    """
    sizes: dict[int, int] = {}  # by id: all that a container holds, itself too; 0 while it is being counted
    alive, stack = [value], [(value, _inside(value, is_tensor))]
    while stack:
        node, inside = stack[-1]
        if id(node) not in sizes:
            sizes[id(node)] = 0
            below = [(child, _inside(child, is_tensor)) for child in inside]
            below = [pair for pair in below if pair[1] and sizes.get(id(pair[0])) is None]
            endless = any(sizes.get(id(child)) == 0 for child in inside)
            alive += [child for child, _ in below]  # so that no id is given twice
            stack += below
        else:
            endless = False
            sizes[id(node)] = sizes[id(node)] or 1 + sum(sizes.get(id(child), 1) for child in inside)
            stack.pop()
        if endless or len(inside) > _MOST_ITEMS or sizes[id(node)] > _MOST_ITEMS:
            raise BadFile(f"{where}: holds more than {_MOST_ITEMS:,} items, or refers to itself; no model file does")


def _inside(value: Any, is_tensor: Callable[[Any], bool]) -> Collection[Any]:
    """What a container holds; of anything else, nothing."""
    if isinstance(value, dict):  # before `Mapping`, which takes long to ask for
        return value.values()
    if isinstance(value, list | tuple | set | frozenset):
        return () if is_tensor(value) else value
    if not isinstance(value, str | int | float | bytes | None) and isinstance(value, Mapping):
        return list(value.values())
    return ()


def _within(name: str, outer: str) -> bool:
    return not outer or name == outer or name.startswith(outer + ".")


def _groups(value: Any, is_tensor: Callable[[Any], bool], path: str = "", depth: int = 0) -> Iterator[tuple[str, int]]:
    """(key, tensors inside) of every mapping that holds tensors, the outermost first."""
    if not isinstance(value, Mapping) or depth > limits.JSON_DEPTH:
        return
    count = sum(1 for _ in _walk(value, is_tensor, ""))
    if count:
        yield path, count
        for name, child in value.items():
            if isinstance(name, str):
                yield from _groups(child, is_tensor, f"{path}.{name}" if path else name, depth + 1)


def _walk(value: Any, is_tensor: Callable[[Any], bool], path: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(name, tensor) of all tensors in mappings and lists."""
    if is_tensor(value):
        yield path or "values", value
        return
    if depth > limits.JSON_DEPTH:
        return
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for name, child in items:
        if isinstance(name, str | int):
            yield from _walk(child, is_tensor, f"{path}.{name}" if path else str(name), depth + 1)


def _model(value: Any, groups: Mapping[str, int], is_tensor: Callable[[Any], bool], where: str) -> str:
    """The key of the mapping that is the model."""
    if not groups:
        there = ", ".join(str(k) for k in value)[:80] if isinstance(value, Mapping) else type(value).__name__
        raise BadFile(f"{where}: holds no state dict, expected names and tensors, found {there or 'nothing'}")
    path = ""
    for _ in range(limits.JSON_DEPTH):
        here = _at(value, path)
        if not isinstance(here, Mapping) or any(is_tensor(child) for child in here.values()):
            return path
        inner = [k for k, child in here.items() if any(True for _ in _walk(child, is_tensor, ""))]
        models = [k for k in inner if not _of_training(k)] or inner
        usual = [name for name in _WRAPPERS if name in models and isinstance(here[name], Mapping)]
        if len(models) == 1 and models[0] not in usual and isinstance(models[0], str):
            usual = [models[0]] if isinstance(here[models[0]], Mapping) else []
        if not usual:
            if len(models) > 1 and any(_is_state_dict(here[k], is_tensor) for k in models):
                names = {k: n for k, n in groups.items() if k and "." not in k[len(path) + bool(path) :]}
                raise UsageError(f"{where}: holds several mappings of tensors, {_listed(names)}; choose one with --key")
            return path
        path = f"{path}.{usual[0]}" if path else usual[0]
    return path


def _is_state_dict(value: Any, is_tensor: Callable[[Any], bool]) -> bool:
    """Whether a mapping is a whole model's: names with dots over tensors."""
    return isinstance(value, Mapping) and any(
        isinstance(k, str) and "." in k and is_tensor(v) for k, v in value.items()
    )


def _at(value: Any, path: str) -> Any:
    """The mapping under a dotted key; keys with dots themselves count."""
    return functools.reduce(operator.getitem, _keys(value, path), value)


def _walk_keys(value: Any, is_tensor: Callable[[Any], bool], keys: list[Any]) -> Iterator[tuple[list[Any], Any]]:
    """(keys, tensor) as `_walk`; a place in a list is [number]."""
    if is_tensor(value):
        yield keys, value
    elif len(keys) <= limits.JSON_DEPTH:
        if isinstance(value, Mapping):
            for name, child in value.items():
                if isinstance(name, str | int):
                    yield from _walk_keys(child, is_tensor, [*keys, name])
        elif isinstance(value, list | tuple):
            for i, child in enumerate(value):
                yield from _walk_keys(child, is_tensor, [*keys, [i]])


def _keys(value: Any, path: str) -> list[str]:
    """The keys of a dotted one, as `_at` reads it."""
    if not path:
        return []
    for name, child in value.items():
        if isinstance(name, str) and (path == name or path.startswith(name + ".")):
            rest = path[len(name) + 1 :]
            if not rest or isinstance(child, Mapping):
                return [name, *_keys(child, rest)]
    raise KeyError(path)


def _listed(groups: Mapping[str, int]) -> str:
    names = [f"{cut(name)} ({n})" for name, n in groups.items() if name]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


_NOTHING = object()


def _without(value: Any, is_tensor: Callable[[Any], bool], depth: int = 0) -> Any:
    """The value without its tensors, and without what held only tensors, as JSON has it."""
    if is_tensor(value) or depth > limits.JSON_DEPTH:
        return _NOTHING
    if isinstance(value, Mapping):
        inner = [(k, _without(v, is_tensor, depth + 1)) for k, v in value.items()]
        kept = [(k, v) for k, v in inner if v is not _NOTHING]
        if inner and not kept:
            return _NOTHING
        return dict(kept) if all(isinstance(k, str) for k, _ in kept) else {"$items": [[k, v] for k, v in kept]}
    if isinstance(value, list | tuple | set | frozenset):
        items = [_without(v, is_tensor, depth + 1) for v in value]
        return (
            _NOTHING if items and all(v is _NOTHING for v in items) else [None if v is _NOTHING else v for v in items]
        )
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return repr(value)[:200]


def keep_rest(checkpoint: Checkpoint, found: Chosen) -> None:
    """Put what a file holds besides its tensors, and where these stood, into the checkpoint's metadata."""
    if found.places not in ({}, {"under": []}):
        checkpoint.metadata[PLACES] = json.dumps(found.places, ensure_ascii=False)
    if found.rest is _NOTHING or found.rest in ({}, [], None):
        return
    try:
        checkpoint.metadata[REST] = json.dumps(found.rest, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        checkpoint.notes.append("what the file holds besides its tensors can't be kept: it is no plain data")
