"""JSON's dialect: a document's tensors (`weights.layers[0].wq`) <-> GGUF's names, by the tables of `convert.layouts`.

What a document holds besides weights stays with the model, in keys of our own, so that it comes back as it was:
`llmconv.json.document` (the rest of it, with the places of the tensors), `llmconv.json.layout`, `llmconv.json.style`
(spacing, number format) and `llmconv.json.config.NAME` (files that lay beside it).  A GGUF without them is written
in its family's layout when there is one, else as a map of named tensors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmconv.convert import layouts, vocab as vocabularies
from llmconv.convert.dialects import layered, named_tensors
from llmconv.convert.dialects.hugging_face.foreign_keys import OF_THE_FILE
from llmconv.convert.dialects.word_lists import listed_words, text_of, tree_of
from llmconv.convert.layouts import makemore, masks, torch_rnn
from llmconv.convert.layouts.base import Layout, called_in_lists, look
from llmconv.convert.layouts.looks import broken
from llmconv.convert.layouts.moves import Model, Move
from llmconv.convert.layouts.settings import GUESSED
from llmconv.convert.layouts.spelling import spell
from llmconv.convert.layouts.ties import tied_head
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.rows import Told, backward, find, forward, prefix_of
from llmconv.convert.vocab.model import same_value
from llmconv.errors import BadFile, LlmconvError, UnknownTensor, Unsupported, at, cut as cut_short, more
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.documents.document import Ref, Slot, dumps, inline, join, loads, replace_slots, slots
from llmconv.formats.documents.json_scan import COMPACT, Style
from llmconv.formats.foreign.trees import JSON_PLACES
from llmconv.formats.tensor import Tensor, folded
from llmconv.quant import plain

__all__ = ["from_gguf", "to_gguf"]

DOCUMENT, LAYOUT, STYLE = own_keys.JSON_DOCUMENT, own_keys.JSON_LAYOUT, own_keys.JSON_STYLE
TOKENS = "tokenizer.ggml.tokens"
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
        return layered.adopt(_plain(checkpoint, layouts.PLAIN, where), checkpoint, *listed, vocab)
    table = _choose(checkpoint, layout, where)
    if table is None:
        made = _plain(checkpoint, layout or named_tensors.choose(checkpoint.metadata["document"]), where)
        made.notes += [] if layout is not None else _kin(checkpoint)
        return made
    paths = list(called_in_lists(checkpoint.metadata["document"], checkpoint.tensors).values())
    _refuse_nulls(checkpoint, table, where)
    checkpoint = _spelled(checkpoint, table, where) if table.spells else checkpoint
    document = checkpoint.metadata["document"]
    beside = _beside(checkpoint, table, config, vocab)
    documents = [(where, document), *((at(path), tree) for path, tree, _ in beside)]
    own = table.keys(documents, checkpoint.tensors)
    notes: list[str] = []
    if table.complete is not None:
        with _naming(where):
            notes = table.complete(own, checkpoint.tensors, paths)
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
        words, path = _words(documents, table, dims["n_vocab"])
        if words is None and table.spells:
            notes.append("it has no vocabulary: a file with one (--vocab) lets it read and write text")
        if words is not None:
            _check_words(words, path, dims, where)
            tokens = _tokens(words, table)
            if path[0] == 0 and look(document, path[1]) == words:
                rest = _with(rest, path[1], Ref(TOKENS))
    out.metadata = {"general.architecture": table.arch, "general.type": "model", "general.name": _name(checkpoint)}
    out.metadata |= metadata | tokens
    out.metadata |= {LAYOUT: table.name, DOCUMENT: dumps(rest)} | _style(checkpoint)
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


def _name(checkpoint: Checkpoint) -> str:
    name = look(checkpoint.metadata["document"], "metadata.name")
    if isinstance(name, str) and name:
        return name
    return checkpoint.source.stem if checkpoint.source else "model"


def _style(checkpoint: Checkpoint) -> dict[str, str]:
    style = checkpoint.metadata.get("style")
    return {STYLE: json.dumps(dataclasses.asdict(style))} if isinstance(style, Style) else {}


def _choose(checkpoint: Checkpoint, layout: str | None, where: str) -> Layout | None:
    """The table that fits; None: plain or named."""
    document, tensors = checkpoint.metadata["document"], checkpoint.tensors
    if layout in (layouts.PLAIN, layouts.NAMED):
        return None
    if layout is not None:
        table = layouts.by_name(layout)
        missing = table.missing(document, tensors)
        if missing:
            raise BadFile(f"{where}: is not of the layout {table.name}: {_list(missing)} missing")
        return table
    found = None if named_tensors.is_known(document) else layouts.recognise(document, tensors)
    if found is None and (problem := broken(document, tensors)) is not None:
        raise BadFile(f"{where}: {problem}; --layout plain converts its arrays under their own names")
    if found is not None or named_tensors.choose(document) is not None:
        return found
    if not tensors and (path := _texts_of_numbers(document, "")):
        raise BadFile(
            f"{where}: {cut_short(path)} has its numbers as texts, expected numbers; write them without quotes"
        )
    near, kin = layouts.nearest(document, tensors), ""
    if near is not None:
        table, shared, lacks = near
        kin = f"; the nearest is {table.name!r}, which has {_list(shared)} too, from which it lacks {_list(lacks)}"
    raise BadFile(
        f"{where}: is no model of a known layout{kin}; --layout plain converts any file of rectangular numeric arrays"
    )


def _texts_of_numbers(node: Any, path: str) -> str:
    """The path of a list of nothing but numbers written as texts, "" when there is none."""
    if isinstance(node, list) and len(node) > 1 and all(isinstance(x, str) and _NUMBER.fullmatch(x) for x in node):
        return path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return next((found for key, child in items if (found := _texts_of_numbers(child, join(path, key)))), "")


_NUMBER = re.compile(r"[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?")


def _kin(checkpoint: Checkpoint) -> list[str]:
    """A note on a document that keeps its own names and has most of what a known layout has."""
    document = checkpoint.metadata["document"]
    near = None if named_tensors.is_known(document) else layouts.nearest(document, checkpoint.tensors)
    if near is None:
        return []
    table, shared, lacks = near
    has = f"has {_list(shared)} as the layout {table.name}, but not {_list(lacks)}"
    return [f"{has}: its tensors keep their own names, and it is not run"]


def _list(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


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


# Vocabulary and files beside the model


def _beside(
    checkpoint: Checkpoint, table: Layout, config: str | Path | None, vocab: str | Path | None
) -> list[tuple[Path, Any, str]]:
    """(path, tree, text) of the files that hold what the document lacks."""
    paths = [Path(p) for p in (config, vocab) if p is not None]
    source = checkpoint.source
    if source is not None and table.config:
        given = {config is not None and "config", vocab is not None and "vocab"}
        for kind in table.config:
            if kind in given or (kind == "tokenizer" and vocab is not None):
                continue
            for name in (f"{source.stem}.{kind}.json", f"{source.stem}-{kind}.json", f"{kind}.json"):
                path = source.with_name(name)
                if path.is_file() and path != source:
                    paths.append(path)
                    break
    return [(path, tree_of(path), text_of(path)) for path in dict.fromkeys(paths)]


def _words(documents: list[tuple[str, Any]], table: Layout, count: int) -> tuple[list[str] | None, tuple[int, str]]:
    """The word list and where it stands: (index of the document, path)."""
    assert table.words is not None
    words, place = listed_words(documents, table.words)
    if words is not None and len(words) + len(table.words.extra) == count:
        words += table.words.extra
    return words, place


def _check_words(words: list[str], path: tuple[int, str], dims: Mapping[str, int], where: str) -> None:
    if len(words) != dims["n_vocab"]:
        raise BadFile(
            f"{where}: the vocabulary ({path[1] or 'a file beside it'}) has {len(words)} words, "
            f"expected {dims['n_vocab']} by the configuration"
        )


def _tokens(words: list[str], table: Layout) -> dict[str, Any]:
    assert table.words is not None
    known = table.words
    found = vocabularies.from_words(words, known.unk, known.lowercase, characters=not known.separator)
    first = next((word for word in (*known.before, *known.starts) if word in words), None)
    if first is not None:
        found.special["bos"] = words.index(first)
        last = next((word for word in ("[EOS]", "<EOS>", "<eos>") if word in words), first)
        found.special["eos"] = words.index(last)
        found.flags["bos"] = True
        if found.types is not None and not known.before:
            for role in ("bos", "eos"):
                found.types[found.special[role]] = vocabularies.TokenType.CONTROL
    return vocabularies.to_gguf(found)


def _with(document: Any, path: str, value: Any) -> Any:
    """The document with another value at a path that `look` finds."""
    if path in document:
        return {k: value if k == path else v for k, v in document.items()}
    head, _, tail = path.partition(".")
    return {k: _with(v, tail, value) if k == head else v for k, v in document.items()}


# Plain and named tensors


def _plain(checkpoint: Checkpoint, layout: str | None, where: str) -> Checkpoint:
    """Any document: each array under its path (or its name in a map of named tensors)."""
    if layout == layouts.NAMED:
        return named_tensors.to_gguf(checkpoint, where, {LAYOUT: layouts.NAMED, **_style(checkpoint)}, DOCUMENT)
    if not checkpoint.tensors:
        reason = f"; {checkpoint.notes[0]}" if checkpoint.notes else ""
        raise BadFile(f"{where}: holds no array of numbers, so there is nothing to convert{reason}")
    out = checkpoint.derived("gguf")
    out.tensors = {name: folded(t) for name, t in checkpoint.tensors.items()}
    out.notes += _single_numbers(checkpoint.metadata["document"])
    out.metadata = {
        "general.architecture": "plain",
        "general.name": _name(checkpoint),
        own_keys.LAYOUT: own_keys.PLAIN,
        LAYOUT: layouts.PLAIN,
        DOCUMENT: dumps(checkpoint.metadata["document"]),
        **_style(checkpoint),
    }
    return out


_SINGLE = ("bias", "biases", "weight", "weights", "w", "b", "threshold", "gamma", "beta", "scale")


def _single_numbers(document: Any) -> list[str]:
    """A note on weights that are single numbers, which are no tensors: nobody should think that they were quantized."""
    found: list[str] = []

    def walk(node: Any, path: str) -> None:
        if isinstance(node, dict | list):
            for key, child in node.items() if isinstance(node, dict) else enumerate(node):
                if key in _SINGLE and type(child) in (int, float):
                    found.append(join(path, key))
                walk(child, join(path, key))

    walk(document, "")
    return [f"{cut_short(found[0])}{more(found)} is a single number, no array: it stays as it is"] if found else []


# Back


def from_gguf(checkpoint: Checkpoint, *, layout: str | None = None, **_: Any) -> Checkpoint:
    """GGUF -> a document: the one that it was made from, or one in its family's layout, or named tensors.

    layout: a table's name, or "named", for a GGUF that was not made from a document.
    """
    metadata, where = checkpoint.metadata, checkpoint.where
    kept_as = metadata.get(LAYOUT)
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

    text = metadata.get(DOCUMENT)
    if not isinstance(text, str):
        raise BadFile(f"{where}: has the key {LAYOUT} but not {DOCUMENT}; convert it with --layout named")
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
    text = metadata.get(STYLE)
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
        raise BadFile(f"{where}: {STYLE} is not what this program writes; remove the key") from None
