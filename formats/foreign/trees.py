"""What a training program's file holds, as the tree that it was: mappings, lists, plain data, and tensors in them.

Made of a checkpoint that was read from such a file (see `mappings`), or of a document.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.errors import BadFile
from llmconv.formats import limits
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.documents.document import Slot, replace_slots
from llmconv.formats.foreign.mappings import PLACES, REST
from llmconv.formats.safetensors_header import DTYPES
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import plain

__all__ = ["JSON_PLACES", "tree_of"]

JSON_PLACES = "llmconv.json.places"
"""`PLACES` of a document that was such a file, with "ints": paths of the mappings whose keys are numbers, "beside":
what came from another file, "arrays": {name: type} of arrays that stand in the document's text."""


def tree_of(checkpoint: Checkpoint) -> Any:
    """The tree, with `Tensor`s in it; block types as float32."""
    tensors = {name: _floats(tensor) for name, tensor in checkpoint.tensors.items()}
    document = checkpoint.metadata.get("document")
    try:
        if document is None:
            rest = _plain(json.loads(checkpoint.metadata.get(REST, "{}")))
            return _filled(rest, tensors, json.loads(checkpoint.metadata.get(PLACES, "{}")))
        if JSON_PLACES not in checkpoint.metadata:
            return replace_slots(document, lambda slot: tensors[slot.name].reshaped(slot.shape))
        return _refilled(document, tensors, json.loads(checkpoint.metadata[JSON_PLACES]))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise BadFile(f"{checkpoint.where}: {PLACES} does not describe its tensors; remove the key") from None


def _floats(tensor: Tensor) -> Tensor:
    return tensor if tensor.type.is_plain() else tensor.astype(plain.F32)


def _array(name: str, numbers: Any, kind: BlockClass) -> Tensor:
    """A tensor of numbers that stand in a text."""
    values = np.array(numbers, np.float64)
    if kind.dtype is None:
        return Tensor.from_array(name, values.astype(np.float32)).astype(kind)
    return Tensor.from_array(name, values.astype(kind.dtype))


def _refilled(document: Mapping[str, Any], tensors: Mapping[str, Tensor], places: Mapping[str, Any]) -> Any:
    """The tree of a document that names its arrays at its top."""
    own = {k: tensors[v.name].reshaped(v.shape) for k, v in document.items() if isinstance(v, Slot)}
    for name, kind in places.get("arrays", {}).items():
        own[name] = _array(name, document[name], DTYPES[kind])
    gone = {*own, *places.get("beside", ())}
    rest: Any = {key: value for key, value in document.items() if key not in gone}
    for path in places.get("ints", ()):
        rest = _numbered(rest, path)
    return _filled(rest, {name: own[name] for name in document if name in own}, places)


def _numbered(node: Any, path: list[Any]) -> Any:
    """The tree with numbers as keys of the mapping at a path."""
    if not path:
        return {int(key): value for key, value in node.items()}
    key, *rest = path
    return {k: _numbered(v, rest) if k == key else v for k, v in node.items()}


def _filled(rest: Any, tensors: Mapping[str, Tensor], places: Mapping[str, Any]) -> Any:
    """The rest with the tensors at their places."""
    paths, under = places.get("paths", {}), places.get("under", [])
    for name, tensor in tensors.items():
        rest = _put(rest, paths.get(name, [*under, name]), tensor)
    return rest


def _put(node: Any, path: list[Any], value: Any) -> Any:
    """The tree with a value at a path; what is not there yet is made."""
    if not path:
        return value
    key, *rest = path
    if not isinstance(key, list):
        node = {} if node is None else node
        node[key] = _put(node.get(key), rest, value)
        return node
    named = {int(k): v for k, v in node.items()} if isinstance(node, dict) else dict(enumerate(node or ()))
    if max((key[0], *named), default=0) >= limits.MAX_TENSORS or key[0] < 0:
        raise ValueError("a list of impossible length")
    items = [named.get(k) for k in range(max(key[0], *named, 0) + 1)]
    items[key[0]] = _put(items[key[0]], rest, value)
    return items


def _plain(node: Any) -> Any:
    """What `mappings` keeps, as it was."""
    if isinstance(node, dict):
        if set(node) == {"$items"}:
            return {_key(k): _plain(v) for k, v in node["$items"]}
        if set(node) == {"$bytes"}:
            return base64.b64decode(node["$bytes"])
        return {k: _plain(v) for k, v in node.items()}
    return [_plain(v) for v in node] if isinstance(node, list) else node


def _key(key: Any) -> Any:
    return tuple(map(_key, key)) if isinstance(key, list) else key
