"""What a training program leaves behind: a state dict in nobody's dialect, and beside it configuration and vocabulary.

minGPT's, nanoGPT's and the lecture's checkpoints are documents as good as JSON ones: the layouts' tables know them by
the same looks.  Where no table fits, or what one needs is not there, the tensors keep their own names (`own_names`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmconv.convert import layouts
from llmconv.convert.dialects import documents, layered, own_names
from llmconv.convert.layouts import keras, torch_rnn
from llmconv.convert.layouts.base import Layout
from llmconv.convert.layouts.spelling import spell
from llmconv.convert.tables import own_keys
from llmconv.errors import BadFile, UnknownTensor, at
from llmconv.formats import limits
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.documents.document import Slot
from llmconv.formats.files import open_regular, regular_size
from llmconv.formats.foreign.mappings import PLACES, REST
from llmconv.formats.foreign.torch import pickle_file
from llmconv.formats.foreign.trees import JSON_PLACES

__all__ = ["FORMATS", "LAYERED", "from_gguf", "is_training_file", "table_of", "to_gguf"]

FORMATS = ("torch", "numpy", "pickle", "llmc")
"""Containers of training programs."""
LAYERED = ("keras", "tfjs")
"""Containers of models that list their layers."""
META = "meta.pkl"
"""nanoGPT's vocabulary, beside the data and often beside the model."""


def table_of(checkpoint: Checkpoint, layout: str | None = None) -> Layout | None:
    """The layout that a training program's file is of; None: nobody's."""
    if layout in (layouts.PLAIN, layouts.NAMED) or not is_training_file(checkpoint):
        return None
    checkpoint = _twice_named(checkpoint)
    if layout is not None:
        return layouts.by_name(layout)
    return layouts.recognise(_document(checkpoint), checkpoint.tensors)


def is_training_file(checkpoint: Checkpoint) -> bool:
    """Whether a file is one that layouts' tables are asked about."""
    return checkpoint.format in FORMATS or _is_nanogpt(checkpoint)


def _is_nanogpt(checkpoint: Checkpoint) -> bool:
    """Whether a lone safetensors file is a state dict of minGPT or nanoGPT.

    Its names are those of Hugging Face's GPT-2, whose matrices stand the other way round.
    """
    if checkpoint.format != "safetensors" or checkpoint.files or own_keys.GGUF_METADATA in checkpoint.metadata:
        return False
    joined = [t.shape for name, t in checkpoint.tensors.items() if name.endswith(".attn.c_attn.weight")]
    if not joined or any(len(shape) != 2 or shape[0] != 3 * shape[1] for shape in joined):
        return False
    found = spell({name: tensor.shape for name, tensor in _twice_named(checkpoint).tensors.items()})
    return not found.strays and found.has("token_embd.weight", "position_embd.weight", "blk.0.attn_norm.weight")


_BIGCODE = (
    "taken as nanoGPT's, though a GPTBigCode of transformers with heads of its own keys has the same names and shapes "
    "and other rows; if it is one, give its folder with config.json"
)


def _may_be_bigcode(checkpoint: Checkpoint) -> bool:
    """Whether transformers may have saved it, whose GPTBigCode differs from nanoGPT in the order of rows alone."""
    if checkpoint.format != "safetensors" or checkpoint.metadata.get("format") != "pt":
        return False
    names = checkpoint.tensors
    return "lm_head.weight" not in names and "transformer.h.0.attn.c_attn.bias" in names


def _twice_named(checkpoint: Checkpoint) -> Checkpoint:
    """With the names that safetensors' `save_model` leaves out, which its metadata says: {left out: the one there}."""
    if checkpoint.format != "safetensors":
        return checkpoint
    there = checkpoint.tensors
    stated = {name: of for name, of in checkpoint.metadata.items() if isinstance(of, str)}
    again = {name: there[of] for name, of in stated.items() if name not in there and of in there}
    return checkpoint.but(tensors={**there, **again})


def to_gguf(checkpoint: Checkpoint, **options: Any) -> Checkpoint:
    """A training program's file -> GGUF: by a layout's table where one fits, else under its own names."""
    layout = options.get("layout")
    table = table_of(checkpoint, layout)
    if table is None:
        return _by_layers(checkpoint, options)
    try:
        _refuse_others(checkpoint, table)
        made = documents.to_gguf(_as_document(_twice_named(checkpoint)), **{**options, "layout": table.name})
        if checkpoint.format in ("torch", "pickle", "numpy"):
            made.metadata[JSON_PLACES] = _places(checkpoint, made)
        made.notes += [_BIGCODE] if _may_be_bigcode(checkpoint) else []
        return made
    except BadFile as error:
        if layout is not None:
            raise
        out = own_names.to_gguf(checkpoint, **options)
        out.notes.append(f"looks like the layout {table.name}, but keeps its own names: {error}")
        return out


def _refuse_others(checkpoint: Checkpoint, table: Layout) -> None:
    """`UnknownTensor` for tensors of the state dict that are no parts of the layout's models."""
    named = _twice_named(checkpoint).tensors
    if checkpoint.format != "torch":  # numbers alone are settings there
        named = {name: tensor for name, tensor in named.items() if tensor.shape}
    if table.spells and (others := spell({name: tensor.shape for name, tensor in named.items()}).others):
        why = f"is none of the weights that a model of the layout {table.name} has; --layout plain converts any"
        raise UnknownTensor(checkpoint.where, list(others), why)


def from_gguf(checkpoint: Checkpoint, **options: Any) -> Checkpoint:
    """The way back, to the names that the file had."""
    if own_keys.LAYERS in checkpoint.metadata:
        return layered.from_gguf(checkpoint)
    return own_names.from_gguf(checkpoint, **options)


def _by_layers(checkpoint: Checkpoint, options: dict[str, Any]) -> Checkpoint:
    """A file that lists its layers, as the language model that they make; any other under its own names."""
    model = None
    if options.get("layout") != layouts.PLAIN:
        model = keras.described(checkpoint) or torch_rnn.described(checkpoint)
    if model is not None and not model.lacks:
        return layered.to_gguf(checkpoint, model, _document(checkpoint), vocab=options.get("vocab"))
    out = own_names.to_gguf(checkpoint, **options)
    if model is not None:
        out.notes.append(f"looks like a language model, but keeps its own names: {model.lacks}")
    return out


def _document(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a file holds besides its tensors, with texts as keys."""
    if checkpoint.format in ("safetensors", "numpy"):
        return {key: _stated(text) for key, text in checkpoint.metadata.items()}
    try:
        rest = json.loads(checkpoint.metadata.get(REST, "{}"))
    except (TypeError, ValueError, RecursionError):
        return {}
    rest = _plain(rest)
    return rest if isinstance(rest, dict) else {}


def _stated(text: Any) -> Any:
    """A text of a safetensors file's metadata: what it says where it is JSON's object or list."""
    try:
        found = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return text
    return found if isinstance(found, dict | list) else text


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        items = node["$items"] if set(node) == {"$items"} else node.items()
        return {str(k): _plain(v) for k, v in items}
    return [_plain(v) for v in node] if isinstance(node, list) else node


def _as_document(checkpoint: Checkpoint) -> Checkpoint:
    """The file as a document: its rest, its vocabulary, and a place for each array (lone numbers stand as such)."""
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if tensor.shape}
    lone = {name: tensor.numpy().item() for name, tensor in checkpoint.tensors.items() if not tensor.shape}
    places = {name: Slot(name, tensor.shape) for name, tensor in tensors.items()}
    document = {**_document(checkpoint), **lone, **places}
    if (meta := _meta(checkpoint)) is not None:
        document.setdefault("meta", _plain(_pickled(meta)))
    return checkpoint.but(tensors=tensors, metadata={"document": document}, dialect="json")


def _meta(checkpoint: Checkpoint) -> Path | None:
    """nanoGPT's vocabulary beside a model."""
    found = None if checkpoint.source is None else checkpoint.source.with_name(META)
    return found if found is not None and found.is_file() else None


def _places(checkpoint: Checkpoint, made: Checkpoint) -> str:
    """Where the tensors stood in the file, and what its document says otherwise (see `trees.JSON_PLACES`)."""
    document = json.loads(made.metadata[own_keys.JSON_DOCUMENT])
    out: dict[str, Any] = {"under": [], **json.loads(checkpoint.metadata.get(PLACES, "{}"))}
    kept = {name: t.type.name for name, t in checkpoint.tensors.items() if "$tensor" not in _object(document.get(name))}
    if kept:
        out["arrays"] = kept
    if ints := list(_numbered(json.loads(checkpoint.metadata.get(REST, "{}")), [])):
        out["ints"] = ints
    if _meta(checkpoint) is not None and "meta" not in _document(checkpoint):
        out["beside"] = ["meta"]
    return json.dumps(out, ensure_ascii=False)


def _object(node: Any) -> Any:
    return node if isinstance(node, dict) else {}


def _numbered(node: Any, path: list[str]) -> Iterator[list[str]]:
    """Paths of the mappings whose keys are numbers."""
    if isinstance(node, dict):
        if set(node) == {"$items"}:
            if all(type(key) is int for key, _ in node["$items"]):
                yield path
            return
        for key, child in node.items():
            yield from _numbered(child, [*path, key])


def _pickled(path: Path) -> Any:
    """A small pickle of plain data; `BadFile` for one that holds anything else."""
    if regular_size(path) > limits.SIDE_FILE_BYTES:
        raise BadFile(f"{at(path)}: is too big for a vocabulary, expected at most {limits.SIDE_FILE_BYTES:,} bytes")
    with open_regular(path) as file:
        data = file.read()
    try:
        return json.loads(json.dumps(_texts(pickle_file.loads(data), 0)))
    except Exception as error:  # a pickle can fail in any way
        raise BadFile(f"{at(path)}: is no pickle of plain data ({error}); move it away, or give --vocab") from None


def _texts(node: Any, depth: int) -> Any:
    if depth > 8:
        raise ValueError("nests too deep")
    if isinstance(node, dict):
        return {str(k): _texts(v, depth + 1) for k, v in node.items()}
    return [_texts(v, depth + 1) for v in node] if isinstance(node, list | tuple) else node
