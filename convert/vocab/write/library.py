"""`Vocab` -> a tokenizer of the `tokenizers` library."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import orjson

from llmconv.convert.vocab.model import TokenType, Vocab
from llmconv.convert.vocab.write.tokenizer_json import to_json, types_of
from llmconv.errors import BadFile, MissingExtra, Unsupported

__all__ = ["library", "parse", "refusing", "to_tokenizers", "without_special_pieces"]


def library(name: str) -> Any:
    """An optional library by name, or one sentence that says how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingExtra("this vocabulary", name, name) from None


def to_tokenizers(vocab: Vocab, document: dict[str, Any] | None = None) -> Any:
    """A `tokenizers.Tokenizer`: of `document`, else the folder's own tokenizer.json if known, else one rebuilt."""
    document = to_json(vocab) if document is None else document
    library("tokenizers")
    _check_for_library(document)
    return parse(orjson.dumps(document))


def parse(data: bytes) -> Any:
    """A `tokenizers.Tokenizer` of a tokenizer.json; `Unsupported` when the library refuses it."""
    tokenizers = library("tokenizers")
    with refusing("this vocabulary"):
        return tokenizers.Tokenizer.from_str(data.decode())


def _check_for_library(document: dict[str, Any]) -> None:
    """Refuse what the library would not survive: it cuts a prefix off merges without looking whether it is there."""
    model = document.get("model")
    prefix = model.get("continuing_subword_prefix") if isinstance(model, dict) else None
    merges = model.get("merges") if isinstance(model, dict) else None
    if not isinstance(prefix, str) or not prefix or not isinstance(merges, list):
        return
    for i, merge in enumerate(merges):
        right = merge.partition(" ")[2] if isinstance(merge, str) else merge[-1] if isinstance(merge, list) else None
        if not isinstance(right, str) or not right.startswith(prefix):
            raise BadFile(
                f"tokenizer.json: model.merges[{i}]: its second part does not begin with {prefix[:40]!r}, the "
                "continuing_subword_prefix; the file is damaged"
            )


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """What the library can't do as one sentence: it raises plain Exception, or a panic that isn't even that."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise Unsupported(f"the tokenizers library refuses {what}: {error}") from None
        raise


def without_special_pieces(vocab: Vocab) -> dict[str, Any]:
    """A Unigram's document in which no text can become a control token.

    The library's Unigram matches every piece of its list, "</s>" too; here those begin with a character that its
    added tokens would have to contain, so that nothing matches them.
    """
    document = to_json(vocab)
    model = dict(document["model"])
    types = types_of(vocab)
    model["vocab"] = [
        ["\0" + piece if types[id] in (TokenType.CONTROL, TokenType.UNKNOWN) else piece, score]
        for id, (piece, score) in enumerate(model["vocab"])
    ]
    added = [a for a in document.get("added_tokens") or [] if not a.get("special")]
    return {**document, "model": model, "added_tokens": added, "post_processor": None}
