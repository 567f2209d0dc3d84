"""Another vocabulary for a model: what it says of its tokens, and the rows of its embedding and head."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert import archs, vocab as vocabulary
from llmconv.convert.tables.own_keys import CONFIG, CUT_FILE, FILE, GENERATION_CONFIG, JSON
from llmconv.convert.vocab import Vocab
from llmconv.convert.vocab.read.folder import NAMES
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

__all__ = ["with_vocab"]


def with_vocab(start: Checkpoint, vocab: Vocab) -> tuple[Checkpoint, list[str]]:
    """`start` (in GGUF's dialect) with `vocab` as its vocabulary, and what a user should know of it.

    A token that the model has already keeps its row of embedding and head, wherever it stood; others start at the mean
    of all rows.  A model without a vocabulary keeps its rows by number.
    """
    own = vocabulary.of(start)
    rows = start.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in start.tensors else len(vocab)
    places = _places(own, vocab, rows)
    same = own is not None and list(own.tokens) == list(vocab.tokens)
    metadata = _told(start.metadata, vocab, same)
    if places is None:
        return start.but(metadata=metadata), []
    tensors = dict(start.tensors)
    for name in _with_rows(start):
        tensors[name] = _moved(tensors[name], places)
    new = sum(place < 0 for place in places)
    notes = [
        f"the vocabulary is another one: {len(vocab) - new:,} of its {len(vocab):,} tokens keep the rows that the "
        f"model has for them, {new:,} start at the mean of all rows"
    ]
    return start.but(tensors=tensors, metadata=metadata), notes


def _places(own: Vocab | None, vocab: Vocab, rows: int) -> Sequence[int] | None:
    """For each token its row in the model, -1 where there is none; None when everything stays where it is."""
    if own is None:
        return None if len(vocab) == rows else [i if i < rows else -1 for i in range(len(vocab))]
    if list(own.tokens) == list(vocab.tokens):  # an embedding may well have more rows than there are tokens
        return None if len(vocab) <= rows else [i if i < rows else -1 for i in range(len(vocab))]
    row = {token: i for i, token in reversed(list(enumerate(own.tokens))) if i < rows}
    return [row.get(token, -1) for token in vocab.tokens]


def _with_rows(start: Checkpoint) -> list[str]:
    """The tensors that have a row, or a number, for each token."""
    table = archs.by_gguf(str(start.metadata.get("general.architecture")))
    rows = table.rows if table is not None else ()
    return [
        name
        for row in rows
        for name, shape in zip(row.gguf, row.shapes, strict=True)
        if shape.split(",")[0].strip() == "n_vocab" and name in start.tensors
    ]


def _moved(tensor: Tensor, places: Sequence[int]) -> Tensor:
    old: NDArray[np.float32] = np.asarray(tensor.numpy(), np.float32)
    out = old[np.maximum(places, 0)]
    out[np.array(places) < 0] = old.mean(axis=0, dtype=np.float64)
    return Tensor.from_array(tensor.name, out)


def _told(metadata: dict[str, Any], vocab: Vocab, same: bool) -> dict[str, Any]:
    """The metadata with all that speaks of tokens taken from `vocab`.

    same: whether its tokens are those that the model has; else the JSON document that a model came from, which lists
    them, is made anew when it is wanted.
    """
    files = {prefix + name for prefix in (FILE, CUT_FILE) for name in NAMES}
    gone = ("tokenizer.",) if same else ("tokenizer.", JSON)
    out = {k: v for k, v in metadata.items() if not k.startswith(gone) and k not in files}
    arch = out.get("general.architecture")
    if f"{arch}.vocab_size" in out:
        out[f"{arch}.vocab_size"] = np.uint32(len(vocab))
    if isinstance(out.get(CONFIG), str):
        out[CONFIG] = _config(out[CONFIG], vocab)
    out.pop(GENERATION_CONFIG, None)  # which stops at, and forbids, tokens by their ids
    return out | vocabulary.to_gguf(vocab)


def _config(text: str, vocab: Vocab) -> str:
    """A config.json with the vocabulary's size and special tokens."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(config, dict):
        return text
    for part in (config, *(v for v in config.values() if isinstance(v, dict))):
        if part is config or "vocab_size" in part:
            part["vocab_size"] = len(vocab)
            for name in [k for k in part if k.endswith("_token_id")]:
                part[name] = vocab.special.get(name.removesuffix("_token_id"))
    return json.dumps(config, indent=2)
