"""Does a GGUF agree with itself?  Asked before one is written from another, where nothing else reads its meaning.

Conversions between ecosystems check every tensor on their way (`hf`, `documents`).  From GGUF to GGUF the tensors
pass untouched, so the same is asked here, by the same tables: keys against tensors, vocabulary against both.
What a file holds beyond what its architecture's table knows is left alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmconv.convert import archs
from llmconv.convert.dialects.ones import with_ones
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.rows import check
from llmconv.errors import BadFile, MissingTensor, about, cut, more
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.gguf.gguf_values import Strings

__all__ = ["check_gguf", "check_not_empty"]

_TOKENS = "tokenizer.ggml.tokens"
_TYPES = 7  # token types are 0 (undefined) to 6 (byte)


def check_gguf(checkpoint: Checkpoint) -> None:
    """`BadFile` when a model in dialect "gguf" contradicts itself.  Costs no more than a look at names and lengths."""
    with about(checkpoint.source):
        _check(checkpoint)


def check_not_empty(checkpoint: Checkpoint) -> None:
    """`BadFile` for a file with neither tensors nor a vocabulary, or tensors without names: nothing is no model."""
    if not checkpoint.tensors and _TOKENS not in checkpoint.metadata:
        raise BadFile(f"{checkpoint.where}: holds no tensors, so there is nothing to convert")
    if checkpoint.tensors and not any(tensor.n_elements for tensor in checkpoint.tensors.values()):
        some = f"{cut(next(iter(checkpoint.tensors)))}{more(list(checkpoint.tensors))}"
        raise BadFile(f"{checkpoint.where}: its tensors hold no numbers ({some}), so there is nothing to convert")
    if "" in checkpoint.tensors:
        raise BadFile(f"{checkpoint.where}: a tensor has no name; give it one with the program that wrote it")


def _check(checkpoint: Checkpoint) -> None:
    where = checkpoint.where
    metadata = checkpoint.metadata
    _check_vocabulary(metadata, where)
    name = metadata.get("general.architecture")
    if name is not None and not isinstance(name, str):
        raise BadFile(f"{where}: key 'general.architecture' is {name!r}, expected a text")
    kind = metadata.get("general.type", "model")
    if not isinstance(kind, str):
        raise BadFile(f"{where}: key 'general.type' is {kind!r:.60}, expected a text")
    arch = archs.by_gguf(name) if isinstance(name, str) else None
    if arch is None or kind != "model" or not checkpoint.tensors or own_keys.is_plain(metadata):
        return
    arch.check_keys(metadata)
    checkpoint = with_ones(checkpoint)
    told = arch.told(checkpoint.tensors, arch.dims_of(metadata))
    dims = arch.dims_of({f"{name}.{key}": value for key, value in told.items()} | metadata)
    embeddings = checkpoint.tensors.get("token_embd.weight")
    rows = embeddings.shape[0] if embeddings is not None and embeddings.shape else 0
    tokens = metadata.get(_TOKENS)
    if tokens is not None and embeddings is not None and len(tokens) > rows:
        raise BadFile(f"{where}: has {len(tokens):,} tokens, expected {rows:,}, the rows of token_embd.weight")
    dims["n_vocab"] = rows or dims["n_vocab"]  # a draft may have no words of its own
    missing, known = "", set[str]()
    for slot in arch.slots(dims):
        lacking = check(slot, checkpoint.tensors, where)
        known.update(slot.gguf)
        if lacking and slot.row.optional is False:
            missing = missing or lacking[0]
        if missing and slot.row.per_layer:
            break
    if not dims["n_layer"] > 0 and any(n.startswith("blk.") for n in checkpoint.tensors):
        raise BadFile(f"{where}: has layers, and key '{arch.gguf}.block_count' says none; the file is damaged")
    if missing:
        from llmconv.convert.further import is_alone  # cards and vocabularies come with it

        if is_alone(checkpoint):  # layers for further tokens, without the model's others
            return
    # A file with tensors that the table lacks is of a form of its own: what it must hold is not known here.
    if missing and all(n in known or n.startswith("blk.") for n in checkpoint.tensors):
        raise MissingTensor(where, missing, f"a {arch.gguf} model of these keys needs it")


def _check_vocabulary(metadata: dict[str, Any], where: str) -> None:
    tokens = metadata.get(_TOKENS)
    if tokens is None:
        return
    model = metadata.get("tokenizer.ggml.model")
    if model is not None and not isinstance(model, str):
        raise BadFile(f"{where}: key 'tokenizer.ggml.model' is {model!r}, expected a text")
    for key in (_TOKENS, "tokenizer.ggml.merges"):
        value = metadata.get(key)
        texts = isinstance(value, Strings) or (
            isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
        )
        if value is not None and not texts and not (isinstance(value, np.ndarray) and not value.size):
            raise BadFile(f"{where}: key {key!r} is no array of strings; the file is damaged")
    for key, kind in (("tokenizer.ggml.token_type", np.integer), ("tokenizer.ggml.scores", np.floating)):
        value = metadata.get(key)
        if value is None:
            continue
        array = np.asarray(value) if isinstance(value, np.ndarray | list | tuple) else np.empty(0, object)
        if array.size and not np.issubdtype(array.dtype, kind):
            raise BadFile(f"{where}: key {key!r} is no array of numbers; the file is damaged")
        if len(array) != len(tokens):
            raise BadFile(
                f"{where}: key {key!r} has {len(array):,} entries, expected {len(tokens):,}, one for each token"
            )
        if kind is np.integer and array.size and not (int(array.min()) >= 0 and int(array.max()) < _TYPES):
            raise BadFile(f"{where}: key {key!r} has an entry outside 0 to {_TYPES - 1}; the file is damaged")
