"""GGUF to a document: the one that it was made from, one in its family's layout, or named tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert import layouts
from llmconv.convert.dialects import layered, named_tensors
from llmconv.convert.dialects.hugging_face.foreign_keys import OF_THE_FILE
from llmconv.convert.dialects.json_documents.into_gguf import to_gguf
from llmconv.convert.dialects.json_documents.words import TOKENS
from llmconv.convert.dialects.word_lists import listed_words
from llmconv.convert.layouts import masks
from llmconv.convert.layouts.base import Layout, look
from llmconv.convert.layouts.settings import GUESSED
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.rows import Told, backward, find, prefix_of
from llmconv.convert.vocab.model import same_value
from llmconv.errors import BadFile, LlmconvError, UnknownTensor, Unsupported, cut as cut_short, more
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.documents.document import loads, slots
from llmconv.formats.documents.json_scan import COMPACT, Style
from llmconv.formats.foreign.trees import JSON_PLACES
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain

__all__ = ["from_gguf"]


def from_gguf(checkpoint: Checkpoint, *, layout: str | None = None, **_: Any) -> Checkpoint:
    """GGUF -> a document: the one that it was made from, or one in its family's layout, or named tensors.

    layout: a table's name, or "named", for a GGUF that was not made from a document.
    """
    metadata, where = checkpoint.metadata, checkpoint.where
    kept_as = metadata.get(own_keys.JSON_LAYOUT)
    if layout is not None and layout not in layouts.names():
        layouts.by_name(layout)  # says which there are
    if isinstance(kept_as, str) and (layout is None or layout == kept_as):
        document = _kept(metadata, where)
        if kept_as == layouts.PLAIN:
            own = layered.undone(checkpoint) if own_keys.LAYERS in metadata else checkpoint.tensors
            made = _result(checkpoint, document, own)
        elif kept_as == layouts.NAMED:
            made = _result(checkpoint, document, named_tensors.from_gguf(checkpoint, document))
        else:
            made = _fill(checkpoint, layouts.by_name(kept_as), document, where)
        return made.but(*_unsaid(metadata, made, kept_as))
    arch = str(metadata.get("general.architecture", ""))
    table = layouts.by_name(layout) if layout and layout not in (layouts.NAMED, layouts.PLAIN) else None
    if table is not None and (table.arch != arch or table.build is None):
        raise Unsupported(f"{where}: a {arch} model can't be written in the layout {table.name}; use --layout named")
    if layout is None:
        table = layouts.for_arch(arch, checkpoint.tensors, metadata)
    if table is None:
        return _result(checkpoint, *named_tensors.describe(checkpoint), style=Style(**COMPACT))
    assert table.build is not None
    if table.suits is not None and (why := table.suits(metadata, table.dims(metadata), checkpoint.tensors)):
        raise Unsupported(f"{where}: can't be written in the layout {table.name}: {why}; use --layout named")
    document = table.build(metadata, table.dims(metadata), checkpoint.tensors)
    made = _fill(checkpoint, table, document, where)
    if TOKENS in metadata and table.words is not None and listed_words([(where, document)], table.words)[0] is None:
        made.notes.append(f"the layout {table.name} has no place for the vocabulary: keep it, --vocab reads it again")
    return made


_UNSAID = "tokenizer.ggml.token_type"
"""What no document says: made of the words, and otherwise where a tokenizer.json lay between."""
_NAME_KEY = "general.name"
_NOT_EDITED = (own_keys.OWN, "quantize.", "split.")
"""How keys begin that are written by conversions alone."""


def _unsaid(metadata: Mapping[str, Any], made: Checkpoint, layout: str) -> list[str]:
    """Notes about keys that were edited since the GGUF was made: the document says otherwise, or nothing of them."""
    again: Mapping[str, Any] = {}
    given = any(key.startswith(own_keys.JSON_CONFIG) for key in metadata)  # its configuration or vocabulary, beside it
    guessed = False
    try:
        read = to_gguf(made, layout=None if own_keys.LAYERS in metadata else layout)
        again, guessed = read.metadata, any(note.startswith(GUESSED) for note in read.notes)
    except LlmconvError:
        given = True
    arch = f"{metadata.get('general.architecture')}."
    gone = {_UNSAID} | ({f"{arch}hidden_activation"} if guessed else set())
    if not look(made.metadata["document"], "metadata.name"):
        gone.add(_NAME_KEY)  # the file's
    elsewhere = (arch, "tokenizer.") if given else ("tokenizer.",) if TOKENS in metadata and TOKENS not in again else ()
    own = [k for k in metadata if not (k.startswith(_NOT_EDITED) or k in OF_THE_FILE or k in gone)]
    other = [k for k in own if k in again and not same_value(metadata[k], again[k])]
    lost = [k for k in own if k not in again and not k.startswith(elsewhere)]
    notes = []
    if other:
        what = f"{cut_short(other[0])}{more(other)}"
        notes.append(f"edited in the GGUF, but the document still says otherwise: {what}; edit it there too")
    if lost:
        what = f"{cut_short(lost[0])}{more(lost)}"
        notes.append(f"the document has no place for {what} of the GGUF, which is lost; keep the GGUF")
    return notes


def _kept(metadata: Mapping[str, Any], where: str) -> Any:
    def resolve(key: str) -> Any:
        if (mask := masks.again(key)) is not None:
            return mask
        value = metadata[key]
        return value if isinstance(value, str) else list(value)

    text = metadata.get(own_keys.JSON_DOCUMENT)
    if not isinstance(text, str):
        raise BadFile(
            f"{where}: has the key {own_keys.JSON_LAYOUT} but not {own_keys.JSON_DOCUMENT}; convert it with --layout "
            "named"
        )
    return loads(text, where, resolve)


def _fill(checkpoint: Checkpoint, table: Layout, document: Any, where: str) -> Checkpoint:
    """The tensors of a table's document from those of the GGUF."""
    dims = table.dims(checkpoint.metadata)
    embedding = checkpoint.tensors.get("token_embd.weight")
    if embedding is not None and not dims["n_vocab"]:  # a key that not every ecosystem carries
        dims["n_vocab"] = embedding.shape[0]
    tensors: dict[str, Tensor] = {}
    used: set[str] = set()
    spelling = dict.fromkeys(slot.name for slot in slots(document))  # a document keeps the one that it has
    told = Told(where, "by its keys", f"a model of the layout {table.name} has it")
    prefix = prefix_of(table.prefixes, table.rows, dims, spelling)
    for moved in backward(
        table.slots(dims), checkpoint.tensors, told, prefix, lambda slot: (find(slot, prefix, spelling) or (0,))[0]
    ):
        used.update(moved.names)
        tensors |= {part.name: part for part in moved.parts}
    extra = [name for name in checkpoint.tensors if name not in used]
    if extra:
        why = f"has no place in the layout {table.name}; use --layout named, which takes any"
        raise UnknownTensor(where, extra, why)
    if table.pack is not None:
        tensors = table.pack(document, tensors, dims)
    return _result(checkpoint, document, tensors)


def _floats(tensor: Tensor) -> Tensor:
    return tensor if tensor.type.is_plain() else tensor.astype(plain.F32)


def _result(
    checkpoint: Checkpoint, document: Any, tensors: Mapping[str, Tensor], style: Style | None = None
) -> Checkpoint:
    where, found = checkpoint.where, {}
    for slot in slots(document):
        tensor = tensors.get(slot.name)
        if tensor is None or tensor.n_elements != int(np.prod(slot.shape, dtype=object)):
            raise BadFile(f"{where}: no tensor fits the place of {slot.name!r} in its document; was the file edited?")
        found[slot.name] = _floats(tensor)
    if style is None:
        style = _kept_style(checkpoint.metadata, where)
    metadata = {"document": document, "style": style}
    if JSON_PLACES in checkpoint.metadata:
        metadata[JSON_PLACES] = checkpoint.metadata[JSON_PLACES]
    return checkpoint.derived("json", tensors=found, metadata=metadata)


def _kept_style(metadata: Mapping[str, Any], where: str) -> Style:
    text = metadata.get(own_keys.JSON_STYLE)
    if text is None:
        return Style(**COMPACT)  # nobody reads the weights of what was no JSON
    try:
        style = Style(**json.loads(text))
        spaces = [style.newline, style.end, style.comma.replace(",", "", 1), style.colon.replace(":", "", 1)]
        if style.comma.count(",") != 1 or style.colon.count(":") != 1 or style.numbers not in ("js", "python"):
            raise ValueError
        if any(s.strip(" \t\r\n") for s in (*spaces, style.indent or "")):
            raise ValueError
        return style
    except (TypeError, ValueError, AttributeError):
        raise BadFile(f"{where}: {own_keys.JSON_STYLE} is not what this program writes; remove the key") from None
