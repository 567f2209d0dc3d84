"""The steps of a tokenizer.json: what it does with a text before its model sees it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmconv.convert.vocab.model import SPACE
from llmconv.errors import BadFile

__all__ = ["like_sentencepiece", "model_of", "parts", "space_prefix"]


def parts(entry: Any) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, those in sequences too."""
    if isinstance(entry, dict):
        inner = next((entry[k] for k in ("normalizers", "pretokenizers", "decoders") if k in entry), None)
        if isinstance(inner, list):
            for part in inner:
                yield from parts(part)
        else:
            yield entry


def model_of(tokenizer: dict[str, Any]) -> dict[str, Any]:
    model = tokenizer.get("model")
    if not isinstance(model, dict):
        raise BadFile("tokenizer.json: model: expected an object; it is no tokenizer of the tokenizers library")
    if "type" in model:
        return model
    kind = "BPE" if "merges" in model else "Unigram" if isinstance(model.get("vocab"), list) else "WordPiece"
    return {"type": kind, **model}  # files from before 2020 don't say


def like_sentencepiece(tokenizer: dict[str, Any]) -> bool:
    """Whether it splits as sentencepiece does: Unigram, or BPE over text with "▁" for spaces."""
    model = model_of(tokenizer)
    if model["type"] == "Unigram":
        return True
    steps = [*parts(tokenizer.get("normalizer")), *parts(tokenizer.get("pre_tokenizer"))]
    return model["type"] == "BPE" and any(
        s.get("type") == "Metaspace" or (s.get("type") == "Replace" and s.get("content") == SPACE) for s in steps
    )


def space_prefix(tokenizer: dict[str, Any]) -> dict[str, bool]:
    """Whether a space is put before the text, and if it is, whether only there and not behind each added token."""
    for step in (*parts(tokenizer.get("normalizer")), *parts(tokenizer.get("pre_tokenizer"))):
        if step.get("type") == "Prepend":
            return {"space_prefix": True}
        if step.get("type") == "Metaspace":
            old = "always" if step.get("add_prefix_space", True) else "never"
            scheme = str(step.get("prepend_scheme", old))
            return {"space_prefix": scheme != "never"} | ({"space_prefix_first": True} if scheme == "first" else {})
    return {"space_prefix": False}
