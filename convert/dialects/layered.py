"""Language models of Keras's, TensorFlow.js's and PyTorch's layers <-> GGUF.

Everything else goes the way of nobody's tensors (`own_names`); the key `llmconv.layers` says which weight became which
tensors, so that the file comes back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmconv.convert import vocab as vocabularies
from llmconv.convert.decoders.recurrent import ARCH as RECURRENT
from llmconv.convert.dialects import own_names
from llmconv.convert.dialects.word_lists import listed_words, tree_of
from llmconv.convert.layouts.base import Words, look
from llmconv.convert.layouts.moves import Model, Move
from llmconv.convert.layouts.settings import GUESSED, recurrent_activation, vocabulary
from llmconv.convert.tables import own_keys
from llmconv.errors import BadFile, at, cut
from llmconv.formats import limits
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import regular_size
from llmconv.formats.foreign.mappings import REST
from llmconv.formats.tensor import Tensor

__all__ = ["adopt", "from_gguf", "to_gguf", "undone"]

_MORE = ("word_index", "wordIndex", "index_word", "char_indices", "charIndices", "indices_char", "indicesChar")
_WORDS = Words((*vocabulary(), *(f"{at}{name}" for at in ("", "config.", "userDefinedMetadata.") for name in _MORE),
                *(f"userDefinedMetadata.{name}" for name in ("vocab", "chars", "charset", "vocabulary", "words"))),
               separator="")  # fmt: skip
_BESIDE = re.compile(
    r"(?:.*[-_.])?(?:vocab(?:ulary)?|chars?|charset|char_indices|indices_char|char2idx|idx2char|stoi|itos|tokens?|"
    r"tokenizer|word_?index|words?|meta|metadata|config|model)\.json"
)
_SPECIAL = re.compile(r"\[[^\]]+\]|<[^>]+>")


def to_gguf(
    checkpoint: Checkpoint, model: Model, rest: Mapping[str, Any], *, vocab: str | Path | None = None
) -> Checkpoint:
    """The model under GGUF's names, with its vocabulary from the file's `rest`, a file beside it or `vocab`."""
    return adopt(own_names.to_gguf(checkpoint), checkpoint, model, rest, vocab)


def adopt(
    out: Checkpoint, checkpoint: Checkpoint, model: Model, rest: Mapping[str, Any], vocab: str | Path | None
) -> Checkpoint:
    """`out`, which has the checkpoint's tensors under their own names, as the model that they make."""
    moved = {name for move in model.moves for name in move.names}
    out.tensors = {name: tensor for name, tensor in out.tensors.items() if name not in moved}
    for move in model.moves:
        parts = move.apply([checkpoint.tensors[name].numpy() for name in move.names])
        for name, part in zip(move.to, parts, strict=True):
            out.add(Tensor.from_array(name, part))
    stated = _stated(model, rest, checkpoint.where)
    del out.metadata[own_keys.LAYOUT]
    out.metadata["general.architecture"] = model.arch
    out.metadata |= {f"{model.arch}.{key}": value for key, value in model.keys.items()}
    out.metadata |= stated
    moves = [[move.name, list(move.to), move.how] for move in model.moves]
    out.metadata[own_keys.LAYERS] = json.dumps(moves, ensure_ascii=False)
    out.notes = [note for note in out.notes if not note.startswith("there is no config.json")] + model.notes
    words = _words(checkpoint, rest, vocab, int(model.keys["vocab_size"]), model.first)
    if words is None:
        out.notes.append("it has no vocabulary: a file with one (--vocab) lets it read and write text")
    else:
        out.metadata |= _tokens(words, model.first)
    return out


def _stated(model: Model, rest: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The activation of layers without gates, where the file states the one that would else be guessed."""
    guessed = next((note for note in model.notes if note.startswith(GUESSED)), None)
    known = recurrent_activation()
    found = next((v for path in known.names if isinstance(v := look(rest, path), str)), None)
    if guessed is None or found is None or model.arch != RECURRENT:
        return {}
    model.notes.remove(guessed)
    return {f"{RECURRENT}.{known.gguf}": known.typed(found, f"{where}: its activation")}


def from_gguf(checkpoint: Checkpoint) -> Checkpoint:
    """The weights under the names that they had."""
    metadata = {**checkpoint.metadata, own_keys.LAYOUT: own_keys.PLAIN}
    out = own_names.from_gguf(checkpoint.but(tensors=undone(checkpoint), metadata=metadata))
    if _says_words(out, list(metadata.get("tokenizer.ggml.tokens", ()))):
        out.notes = [note for note in out.notes if not note.startswith(own_names.UNSAID + " 'tokenizer.")]
    return out


def _says_words(out: Checkpoint, tokens: list[str]) -> bool:
    """Whether the vocabulary is that of the settings beside the weights."""
    try:
        rest = json.loads(out.metadata.get(REST, "{}"))
    except (TypeError, ValueError, RecursionError):
        return False
    return any((_listed("", rest, len(tokens) - first) or None) == tokens[first:] for first in (0, 1))


def undone(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors as they were."""
    tensors = dict(checkpoint.tensors)
    for move in _moves(checkpoint):
        try:
            values = move.undo([tensors.pop(name).numpy() for name in move.to])
            named = list(zip(move.names, values, strict=True))
        except (KeyError, ValueError):
            raise BadFile(
                f"{checkpoint.where}: {own_keys.LAYERS} does not describe its tensors; remove the key"
            ) from None
        tensors |= {name: Tensor.from_array(name, value) for name, value in named}
    return tensors


def _moves(checkpoint: Checkpoint) -> list[Move]:
    try:
        listed = [
            Move(name if isinstance(name, str) else tuple(name), tuple(to), str(how))
            for name, to, how in json.loads(checkpoint.metadata[own_keys.LAYERS])
        ]
        assert all(isinstance(name, str) for move in listed for name in (*move.to, *move.names))
        assert all((move.to or "m" in move.how) and move.names for move in listed)
    except (ValueError, TypeError, AssertionError, RecursionError):
        raise BadFile(
            f"{checkpoint.where}: {own_keys.LAYERS} is not what this program writes; remove the key"
        ) from None
    return listed


# The vocabulary


def _words(
    checkpoint: Checkpoint, rest: Mapping[str, Any], vocab: str | Path | None, count: int, first: str
) -> list[str] | None:
    """The tokens of the first file that lists as many as the model has, or all but the `first`; `vocab` must."""
    inside = [] if vocab is not None or not rest else [(checkpoint.where, rest)]
    for where, tree in (*inside, *_files(checkpoint, vocab)):
        words = _listed(where, tree, count)
        if first and words is not None and len(words) == count - 1:
            words = [first, *words]
        if words is not None and len(words) == count:
            return words
        if vocab is not None:
            found = "no vocabulary" if words is None else f"{len(words)} words"
            raise BadFile(f"{where}: has {found}, expected {count}, as many as the model; correct the file")
    return None


def _files(checkpoint: Checkpoint, vocab: str | Path | None) -> Iterator[tuple[str, Any]]:
    if vocab is not None:
        yield at(vocab), tree_of(Path(vocab))
        return
    for name in checkpoint.files:
        if name.endswith(".json"):
            try:
                yield cut(name), json.loads(checkpoint.file(name) or b"{}")
            except (ValueError, RecursionError):
                continue
    source = checkpoint.source
    beside = sorted(source.parent.glob("*.json")) if source is not None and source.is_file() else []
    for path in beside:
        if _BESIDE.fullmatch(path.name) and path.is_file() and regular_size(path) <= limits.SIDE_FILE_BYTES:
            try:
                yield at(path), tree_of(path)
            except BadFile:
                continue


def _listed(where: str, tree: Any, count: int) -> list[str] | None:
    """A list, a text of characters or a map; what Keras's `Tokenizer` numbers from 1 has padding before it."""
    try:
        return listed_words([("", {}), (where, _from_zero(tree, count))], _WORDS)[0]
    except BadFile:
        return None


def _from_zero(node: Any, count: int) -> Any:
    if isinstance(node, str) and node.startswith("{"):  # `Tokenizer.to_json` has texts of JSON in its JSON
        try:
            node = json.loads(node)
        except ValueError:
            return node
    if not isinstance(node, dict):
        return node
    if node and all(type(v) is int for v in node.values()) and min(node.values()) == 1:
        kept = {word: index for word, index in node.items() if index < count}
        return {"[PAD]": 0, **kept} if len(kept) == count - 1 else node
    if node and "1" in node and "0" not in node and all(isinstance(v, str) for v in node.values()):
        return {"0": "[PAD]", **node} if len(node) == count - 1 else node
    return {key: _from_zero(child, count) for key, child in node.items()}


def _tokens(words: list[str], first: str) -> Mapping[str, Any]:
    """Characters where every token is one, but for special ones; else words.   first: what begins and ends a text."""
    single = all(len(word) == 1 or _SPECIAL.fullmatch(word) for word in words)
    lower = all(word == word.lower() or _SPECIAL.fullmatch(word) for word in words)
    unk = next((word for word in ("[UNK]", "<UNK>", "<unk>", "<OOV>", "UNK") if word in words), None)
    found = vocabularies.from_words(words, unk, lower and not single, characters=single)
    if first and words[0] == first:
        found.special |= {"bos": 0, "eos": 0}
        found.flags["bos"] = True
        if found.types is not None:
            found.types[0] = vocabularies.TokenType.CONTROL
    return vocabularies.to_gguf(found)
