"""Maps of named tensors: name -> {shape, data} (or {rows, cols, data}), the JSON that needs no table.

A list of them, each with its name in it ([{name, shape, data}, ...]), is such a map too.

Read: the document's names are the tensors' (a state dict); with a `config` that Hugging Face's tables know it is that
model.  Written: any model at all, its keys with their exact types beside its tensors, so that it comes back whole.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert import archs, vocab
from llmconv.convert.dialects.typed_keys import decode_keys, encode_keys
from llmconv.convert.layouts.base import look
from llmconv.convert.tables import own_keys
from llmconv.convert.translate import translate
from llmconv.errors import BadFile, Unsupported, UsageError
from llmconv.formats import limits
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.documents.cutting import DATA, has_shape
from llmconv.formats.documents.document import Slot, dumps, replace_slots, slots
from llmconv.formats.tensor import Tensor, folded
from llmconv.quant.block import by_name

__all__ = ["choose", "describe", "from_gguf", "is_known", "to_gguf"]

_ROOTS = ("", "weights", "tensors", "params", "parameters", "state_dict", "model")


def choose(document: Any) -> str | None:
    """ "named" when the document holds its tensors by name, else None."""
    return "named" if _map(document) is not None else None


def is_known(document: Any) -> bool:
    """Whether the document says itself what its names mean: one of ours, or one with a known Hugging Face config."""
    if not isinstance(document, dict):
        return False
    config = document.get("config")
    return document.get("format") == own_keys.OURS or (isinstance(config, dict) and archs.by_hf(config) is not None)


def _is_tensor(node: Any) -> bool:
    """Whether an object is one array beside its shape."""
    beside = isinstance(node, dict) and has_shape(node) and any(isinstance(node.get(key), Slot) for key in DATA)
    return beside and sum(1 for _ in slots(node)) == 1


def _map(document: Any) -> tuple[str, dict[str, Any]] | None:
    """(root, map) of the named tensors."""
    if _is_ours(document) and isinstance(ours := document.get("tensors"), dict):
        return "tensors", {k: v for k, v in ours.items() if _is_tensor(v)}
    for root in _ROOTS if isinstance(document, dict) else ("",):
        node = document.get(root) if root else document
        own = {k: v for k, v in _named(node).items() if _is_tensor(v)}
        inside = {id(s) for v in own.values() for s in slots(v)}
        if own and all(id(s) in inside for s in slots(document)):
            return root, own
    return None


def _is_ours(document: Any) -> bool:
    """Whether `describe` made the document."""
    return isinstance(document, dict) and document.get("format") == own_keys.OURS


def _named(node: Any) -> dict[str, Any]:
    """What an object holds by name: its values, or the items of a list that each have a name of their own."""
    if isinstance(node, dict):
        return node
    listed = [item for item in node if isinstance(item, dict)] if isinstance(node, list) else []
    own: dict[str, Any] = {item["name"]: item for item in listed if _is_name(item.get("name"))}
    return own if isinstance(node, list) and len(own) == len(node) else {}


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and 0 < len(name) <= limits.MAX_NAME_BYTES


def to_gguf(checkpoint: Checkpoint, where: str, keys: dict[str, str], document_key: str) -> Checkpoint:
    """A document of named tensors -> GGUF: as Hugging Face's model when `config` names a known one, else as it is."""
    document = checkpoint.metadata["document"]
    found = _map(document)
    if found is None:
        raise BadFile(f"{where}: is no map of named tensors {{name: {{shape, data}}}}, which the layout named needs")
    _, maps = found
    names = {slot.name: name for name, node in maps.items() for slot in slots(node)}
    stray = next((slot.name for slot in slots(document) if slot.name not in names), None)
    if stray is not None:
        raise BadFile(
            f"{where}: {stray} is not part of a tensor {{type, shape, data}} with as many numbers as its shape"
        )
    tensors = {names[n]: folded(t.renamed(names[n])) for n, t in checkpoint.tensors.items() if n in names}
    renamed = replace_slots(document, lambda s: dataclasses.replace(s, name=names[s.name]))
    if _is_ours(document):
        return _ours(checkpoint, document, tensors, maps, where)
    out = _hugging_face(checkpoint, document, tensors)
    if out is None:
        out = checkpoint.derived("gguf", tensors=tensors)
        out.metadata = {"general.architecture": "plain", own_keys.LAYOUT: own_keys.PLAIN} | _vocabulary(document)
    out.metadata |= keys | {document_key: dumps(renamed)}
    return out


def _hugging_face(checkpoint: Checkpoint, document: Any, tensors: dict[str, Tensor]) -> Checkpoint | None:
    config = document.get("config") if isinstance(document, dict) else None
    if not isinstance(config, dict) or archs.by_hf(config) is None:
        return None
    files: dict[str, Any] = {"config.json": json.dumps(config).encode()}
    source = checkpoint.derived("hf", tensors=tensors, files=files)
    return translate(source, "gguf")


def _vocabulary(document: Any) -> dict[str, Any]:
    """Standard keys for a word list, where the document has one of as many words as it says."""
    for path in ("tokenizer.vocab", "vocab", "tokenizer.tokens", "config.vocab"):
        words = look(document, path)
        listed = isinstance(words, list) and words and all(isinstance(w, str) for w in words)
        if listed and len(set(words)) == len(words):
            keys: dict[str, Any] = vocab.to_gguf(vocab.from_words(words))
            return keys
    return {}


def from_gguf(checkpoint: Checkpoint, document: Any) -> Mapping[str, Tensor]:
    """The tensors of a document of named tensors, by the names that its slots have."""
    names = {slot.name for slot in slots(document)}
    if names <= set(checkpoint.tensors):
        return checkpoint.tensors
    return translate(checkpoint, "hf").tensors


# Any model, whole


def describe(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A GGUF's keys and tensors as a document: {"format", "metadata": {key: [type, value]}, "tensors": {name: …}}.

    Quantized tensors are decoded to the float32 values that they stand for.
    """
    tensors = {
        name: {
            "type": t.type.name,
            # An array of numbers would itself be read as a tensor where no data goes with it.
            "shape": list(t.shape) if t.n_elements else "x".join(map(str, t.shape)),
            "data": Slot(name, (t.n_elements,)) if t.n_elements else [],
        }
        for name, t in checkpoint.tensors.items()
    }
    for name, tensor in checkpoint.tensors.items():
        if tensor.type.dtype is not None and tensor.type.dtype.kind not in "fiubV":
            raise Unsupported(f"tensor {name!r} is {tensor.type.name}, which JSON has no numbers for; --exclude it")
        if tensor.type.name in ("I64", "U64") and _beyond_doubles(tensor):
            raise Unsupported(
                f"tensor {name!r} holds whole numbers beyond 2^53, which JSON's readers round; use another format, or "
                "--exclude it"
            )
    document = {"format": own_keys.OURS, "metadata": encode_keys(checkpoint.metadata), "tensors": tensors}
    return document, {n: t for n, t in checkpoint.tensors.items() if t.n_elements}


def _ours(
    checkpoint: Checkpoint, document: Any, tensors: dict[str, Tensor], maps: dict[str, Any], where: str
) -> Checkpoint:
    """The way back of `describe`."""
    out = checkpoint.derived("gguf")
    out.metadata = decode_keys(document.get("metadata"), where)
    for name, node in document["tensors"].items():
        tensor = tensors[name] if name in maps else _empty(name, node, where)
        stated = node.get("type")
        out.add(_stored(tensor, stated, where) if isinstance(stated, str) else tensor)
    return out


def _empty(name: str, node: Any, where: str) -> Tensor:
    """A tensor without elements: its data is `[]`, its shape a text such as "0x64"."""
    text = node.get("shape") if isinstance(node, dict) and node.get("data") == [] else None
    if isinstance(text, str) and re.fullmatch(r"\d{1,15}(x\d{1,15}){0,7}", text):
        shape = tuple(map(int, text.split("x")))
        if 0 in shape and not limits.too_large(shape):
            return Tensor(
                name, shape, by_name("F64"), lambda start, stop: np.empty((stop - start, 8 * shape[-1]), "u1")
            )
    raise BadFile(f"{where}: tensors.{name} is not part of a document of tensors {{type, shape, data}}")


def _stored(tensor: Tensor, stated: str, where: str) -> Tensor:
    """A tensor of a document in the type that it says; F32 where that is a block type."""
    try:
        kind = by_name(stated)
    except UsageError as error:
        raise BadFile(f"{where}: {tensor.name}: {error}") from None
    if not kind.is_plain():
        return tensor.astype(by_name("F32"))
    if not kind.is_float:
        values = tensor.numpy()
        with np.errstate(invalid="ignore"):
            exact = np.array_equal(values.astype(kind.dtype), values)
        if not exact:
            raise BadFile(f"{where}: {tensor.name} is not all numbers of type {stated}, as it says; correct its type")
    return tensor.astype(kind)


def _beyond_doubles(tensor: Tensor) -> bool:
    limit = 1 << 53
    for start, stop in tensor.slabs():
        rows = tensor.rows(start, stop)
        if rows.size and (int(rows.max()) > limit or int(rows.min()) < -limit):
            return True
    return False
