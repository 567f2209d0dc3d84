"""A document to GGUF's names, shapes and keys."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmconv.convert import layouts
from llmconv.convert.dialects import layered, named_tensors
from llmconv.convert.dialects.json_documents.choosing import choose, nearest_said
from llmconv.convert.dialects.json_documents.plain import as_plain, name_of, style_keys
from llmconv.convert.dialects.json_documents.words import (
    TOKENS,
    check_words,
    files_beside,
    start_of,
    token_keys,
    words_of,
)
from llmconv.convert.layouts import makemore, masks, torch_rnn
from llmconv.convert.layouts.base import Layout, called_in_lists, look
from llmconv.convert.layouts.moves import Model, Move
from llmconv.convert.layouts.otherwise import OF_GPTS, otherwise
from llmconv.convert.layouts.spelling import holders, spell
from llmconv.convert.layouts.ties import tied_head
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.rows import Told, forward, prefix_of
from llmconv.errors import BadFile, UnknownTensor, at, cut as cut_short
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.documents.document import Ref, Slot, dumps, inline, join, replace_slots, slots
from llmconv.formats.tensor import Tensor

__all__ = ["INLINE", "to_gguf"]

INLINE = 1 << 16
"""Numbers besides the weights (a training history, say) that are kept in the document's text."""


def to_gguf(
    checkpoint: Checkpoint,
    *,
    layout: str | None = None,
    config: str | Path | None = None,
    vocab: str | Path | None = None,
    **_: Any,
) -> Checkpoint:
    """A JSON or MessagePack document -> GGUF's names, shapes and keys, lazily.

    layout: a table's name, "named" or "plain"; recognised by the document's keys when None.
    config, vocab: files that hold what the document lacks; found beside it when None.
    `BadFile` for a document that matches no table (naming the nearest and what is missing from it), or whose
    configuration, weights and vocabulary contradict each other.
    """
    where = checkpoint.where
    if layout is None and (listed := _listed_layers(checkpoint)) is not None:
        return layered.adopt(as_plain(checkpoint, layouts.PLAIN, where), checkpoint, *listed, vocab)
    table = choose(checkpoint, layout, where)
    if table is None:
        made = as_plain(checkpoint, layout or named_tensors.choose(checkpoint.metadata["document"]), where)
        made.notes += [] if layout is not None else nearest_said(checkpoint)
        return made
    paths = list(called_in_lists(checkpoint.metadata["document"], checkpoint.tensors).values())
    _refuse_nulls(checkpoint, table, where)
    around: list[tuple[str, ...]] = []
    if table.spells:
        around = holders(table.spelled(checkpoint.metadata["document"], checkpoint.tensors).names.values())
        checkpoint = _spelled(checkpoint, table, where)
    document = checkpoint.metadata["document"]
    beside = files_beside(checkpoint, table, config, vocab)
    documents = [(where, document), *((at(path), tree) for path, tree, _ in beside)]
    documents += _around(document, around, where)
    own = table.keys(documents, checkpoint.tensors)
    notes: list[str] = []
    if table.complete is not None:
        with _naming(where):
            notes = table.complete(own, checkpoint.tensors, paths)
    _refuse_others(table, documents, own)
    metadata = table.metadata(own)
    dims = table.dims(metadata)
    _check(table, document, dims, where)
    tensors: Mapping[str, Tensor] = checkpoint.tensors
    if table.unpack is not None:
        with _naming(where):
            tensors = table.unpack(document, checkpoint.tensors, dims)
    out = checkpoint.derived("gguf")
    used = set(checkpoint.tensors) - set(tensors)  # what was unpacked
    why = f"a model of the layout {table.name} and of its configuration has it, as an array of numbers"
    prefix = prefix_of(table.prefixes, table.rows, dims, tensors)
    for moved in forward(table.slots(dims), tensors, Told(where, "by the configuration", why), prefix):
        used.update(moved.names)
        for tensor in moved.parts:
            out.add(tensor)
    rest, tokens = _rest(checkpoint, table, used, where), {}
    if table.words is not None:
        words, path = words_of(documents, table, dims["n_vocab"])
        if words is None and table.spells:
            notes.append("it has no vocabulary: a file with one (--vocab) lets it read and write text")
        if words is not None:
            check_words(words, path, dims, where)
            tokens = token_keys(words, table, start_of(documents, table)[1])
            if path[0] == 0 and look(document, path[1]) == words:
                rest = _with(rest, path[1], Ref(TOKENS))
    out.metadata = {"general.architecture": table.arch, "general.type": "model", "general.name": name_of(checkpoint)}
    out.metadata |= metadata | tokens
    out.metadata |= {own_keys.JSON_LAYOUT: table.name, own_keys.JSON_DOCUMENT: dumps(rest)} | style_keys(checkpoint)
    out.metadata |= {own_keys.JSON_CONFIG + path.name: text for path, _, text in beside}
    out.notes += notes
    return out


def _listed_layers(checkpoint: Checkpoint) -> tuple[Model, Any] | None:
    """The model that a state dict of PyTorch's recurrent layers makes, and the document; None for any other."""
    document = checkpoint.metadata["document"]
    called = called_in_lists(document, checkpoint.tensors)
    if not any(_tells(name) for name in called.values()):
        return None
    paths = {_NAME.sub("", name).replace('"]', ""): path for path, name in called.items()}
    if len(paths) < len(checkpoint.tensors) or not any(_tells(name) for name in paths):
        return None
    model = torch_rnn.described(checkpoint.but(tensors={n: checkpoint.tensors[p] for n, p in paths.items()}))
    if model is None or model.lacks or layouts.recognise(document, checkpoint.tensors) is not None:
        return None
    model.moves = [Move(tuple(paths[name] for name in move.names), move.to, move.how) for move in model.moves]
    return model, document


def _tells(name: str) -> bool:
    return "weight_hh_l0" in name or makemore.may_be(name.removesuffix('"]'))


_NAME = re.compile(r'^.*\["|^(?:(?:state_dict|model_state_dict|weights|params|model|state)\.)+')
"""What stands before a weight's own name in its path."""


def _refuse_nulls(checkpoint: Checkpoint, table: Layout, where: str) -> None:
    """`BadFile` for a part of the model that holds nothing but null: without it the model would be another."""
    for path in _null_arrays(checkpoint.metadata["document"], ""):
        if table.spells and spell({path: (1, 1)}).parts:
            why = "holds only null, where JavaScript had NaN or Infinity; the model is broken, take an earlier one"
            raise BadFile(f"{where}: {cut_short(path)} {why}, or use --layout plain")


def _around(document: Any, places: list[tuple[str, ...]], where: str) -> Iterator[tuple[str, Any]]:
    """The objects around the weights, each with the start of messages about it: settings may lie in them."""
    for keys in places:
        node = document
        for key in keys:
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, dict):
            yield f"{where}: {'.'.join(keys)}", node


def _refuse_others(table: Layout, documents: list[tuple[str, Any]], own: dict[str, Any]) -> None:
    """`BadFile` for a setting that makes it another model than the layout's."""
    found = otherwise(documents, {**own, **table.constants}) if table.arch in OF_GPTS else None
    if found is not None:
        where, path, value = found
        raise BadFile(
            f"{where}: {cut_short(path)} is {cut_short(value)}, which is not how a model of the layout {table.name} "
            "computes; --layout plain converts it under its own names"
        )


def _null_arrays(node: Any, path: str) -> Iterator[str]:
    """Paths of the lists, however nested, whose first item is null."""
    if isinstance(node, dict):
        for key, child in node.items():
            yield from _null_arrays(child, join(path, key))
    elif isinstance(node, list):
        inner: Any = node
        while isinstance(inner, list) and inner:
            inner = inner[0]
        if inner is None:
            yield path
        else:
            for i, child in enumerate(node if isinstance(inner, dict) else ()):
                yield from _null_arrays(child, join(path, i))


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    """The file before what a table finds wrong in it."""
    try:
        yield
    except BadFile as error:
        raise BadFile(f"{where}: {error}") from None


def _check(table: Layout, document: Any, dims: Mapping[str, int], where: str) -> None:
    """`BadFile` for a document that contradicts its own sizes, as its table says."""
    try:
        problem = table.check(document, dims) if table.check is not None else None
    except (KeyError, TypeError, IndexError, AttributeError):
        problem = f"its parts are not what the layout {table.name} has there"
    if problem is not None:
        raise BadFile(f"{where}: {problem}")


def _spelled(checkpoint: Checkpoint, table: Layout, where: str) -> Checkpoint:
    """The document with its weights under the names that the table's rows have.

    Masks are said, not kept; a head that is the embedding refers to it.
    """
    found = table.spelled(checkpoint.metadata["document"], checkpoint.tensors)
    if found.strays:
        why = f"is none of the weights that a model of the layout {table.name} has; --layout plain converts any"
        raise UnknownTensor(where, list(found.strays), why)
    names = {path: name for name, path in found.names.items()}
    if (head := tied_head(found.names, checkpoint.tensors)) is not None:
        names[head] = "token_embd.weight"

    def place(slot: Slot) -> Any:
        if slot.name in found.masks and (mask := masks.said(slot, checkpoint.tensors[slot.name])) is not None:
            return mask
        return dataclasses.replace(slot, name=names.get(slot.name, slot.name))

    document = replace_slots(checkpoint.metadata["document"], place)
    kept = {slot.name for slot in slots(document)}
    tensors = {names.get(n, n): t for n, t in checkpoint.tensors.items() if names.get(n, n) in kept}
    return checkpoint.but(tensors=tensors, metadata={**checkpoint.metadata, "document": document})


def _rest(checkpoint: Checkpoint, table: Layout, used: set[str], where: str) -> Any:
    """The document with the arrays that are no weights written out again."""
    for name, tensor in checkpoint.tensors.items():
        if name in used:
            continue
        if any(name == root or name.startswith(root) for root in table.roots if root) or "" in table.roots:
            raise BadFile(
                f"{where}: {name} is none of the weights that a model of the layout {table.name} and of its "
                "configuration has; correct the configuration, or use --layout plain"
            )
        if tensor.n_elements > INLINE:
            raise BadFile(
                f"{where}: {name} holds {tensor.n_elements:,} numbers that are no weights of the layout {table.name}; "
                "remove them, or use --layout plain"
            )

    def fill(slot: Slot) -> Any:
        return slot if slot.name in used else inline(slot, checkpoint.tensors[slot.name])

    return replace_slots(checkpoint.metadata["document"], fill)


def _with(document: Any, path: str, value: Any) -> Any:
    """The document with another value at a path that `look` finds."""
    if path in document:
        return {k: value if k == path else v for k, v in document.items()}
    head, _, tail = path.partition(".")
    return {k: _with(v, tail, value) if k == head else v for k, v in document.items()}
