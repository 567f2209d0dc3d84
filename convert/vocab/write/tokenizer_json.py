"""`Vocab` -> tokenizer.json and its side files, from GGUF's arrays alone.

What comes out loads in the `tokenizers` library and in transformers, and splits text as the GGUF's tokenizer does.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from llmconv.convert.vocab import pre, wordpiece, words
from llmconv.convert.vocab.cuts import cuts
from llmconv.convert.vocab.model import (
    BPE,
    CHARACTERS,
    CHARSMAP,
    GEMMA4,
    SPACE,
    SPM,
    UNIGRAM,
    WORDPIECE,
    WORDS,
    TokenType,
    Vocab,
)
from llmconv.convert.vocab.parsing import json_object
from llmconv.errors import Unsupported

__all__ = ["around", "charsmap", "known", "normalizers", "to_json", "types_of"]

_ADDED = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)


def types_of(vocab: Vocab) -> list[int]:
    return [TokenType.NORMAL] * len(vocab) if vocab.types is None else vocab.types.tolist()


def _added(vocab: Vocab) -> list[dict[str, Any]]:
    """Added tokens: the special ones, and the user-defined, which match as they are written."""
    types, first = types_of(vocab), _first_ids(vocab.tokens)
    some = [] if vocab.types is None else np.flatnonzero(np.isin(vocab.types, _ADDED)).tolist()
    return [
        {
            "id": id,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": types[id] != TokenType.USER_DEFINED,
        }
        for id in some
        if (token := vocab.tokens[id]) and first[token] == id
    ]


def _first_ids(tokens: Sequence[str]) -> dict[str, int]:
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(ids) < len(tokens):  # a text with several: the first
        ids = dict(zip(reversed(tokens), range(len(tokens) - 1, -1, -1), strict=True))
    return ids


def _core(vocab: Vocab, tokens: Sequence[str], merges: Iterable[list[str]] = ()) -> dict[str, int]:
    """Token -> id, for the ids from 0 up that the model itself must have.

    The library numbers added tokens that its model doesn't have by itself, one after another; so those at the end are
    left to it, but for a token that a merge needs and whatever would leave a gap.  A text that has two ids keeps the
    first; the other's place is held.
    """
    types, first = types_of(vocab), _first_ids(tokens)
    needed = _needed(merges, {token for token, type in zip(tokens, types, strict=True) if type in _ADDED})
    n = len(types)
    while n and types[n - 1] == TokenType.UNUSED:
        n -= 1
    while n and types[n - 1] in _ADDED and (token := tokens[n - 1]) and token not in needed and first[token] == n - 1:
        n -= 1
    if len(first) == len(tokens):
        return dict(zip(tokens[:n], range(n), strict=True))
    return {token if first[token] == id else f"[TWICE{id}]": id for id, token in enumerate(tokens[:n])}


def _needed(merges: Iterable[list[str]], added: set[str]) -> set[str]:
    """The added tokens that are a part or the result of a merge."""
    merges, ends = list(merges), {token[-1:] for token in added}
    needed = added.intersection(left for left, _ in merges)  # hundreds of thousands, nearly all over other tokens
    for left, right in (merge for merge in merges if merge[1][-1:] in ends):
        needed |= {right, left + right} & added
    return needed


def _sequence(key: str, steps: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not steps:
        return None
    return steps[0] if len(steps) == 1 else {"type": "Sequence", key: steps}


def _replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def around(vocab: Vocab) -> dict[str, Any] | None:
    """The post-processor: what is put before and after a text."""
    first = last = None
    if vocab.model == WORDPIECE:
        first, last = vocab.special.get("cls", vocab.bos), vocab.special.get("sep")
    else:
        first = vocab.bos if vocab.flag("bos") else None
        last = vocab.eos if vocab.flag("eos") else None
    if first is None and last is None:
        return None

    def one(id: int | None, type: int = 0) -> list[dict[str, Any]]:
        return [] if id is None else [{"SpecialToken": {"id": vocab.tokens[id], "type_id": type}}]

    def text(name: str, type: int = 0) -> list[dict[str, Any]]:
        return [{"Sequence": {"id": name, "type_id": type}}]

    pair = one(first) + text("A") + one(last)
    second = text("B", 1) + one(last, 1)
    named = {vocab.tokens[id]: id for id in (first, last) if id is not None}
    return {
        "type": "TemplateProcessing",
        "single": pair,
        "pair": pair + (second if vocab.model == WORDPIECE else one(first, 1) + second),
        "special_tokens": {t: {"id": t, "ids": [id], "tokens": [t]} for t, id in named.items()},
    }


def _bpe(vocab: Vocab) -> dict[str, Any]:
    if not vocab.over_bytes:
        return _bpe_over_text(vocab)
    row = pre.by_name(vocab.pre or "default")
    if row is None:
        raise Unsupported(
            f"tokenizer.ggml.pre: llmconv doesn't know the pre-tokenizer {vocab.pre!r}, and the GGUF holds no whole "
            "tokenizer.json; name one that splits alike with --pre"
        )
    merges = _whole_merges(vocab)
    return {
        "normalizer": {"type": "NFC"} if vocab.flag("nfc") else None,
        "pre_tokenizer": pre.to_json(row, vocab.flag("leading_space")),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {**_merging(vocab, merges), "ignore_merges": row.ignore_merges},
    }


def _merging(vocab: Vocab, merges: list[list[str]], over_text: bool = False) -> dict[str, Any]:
    """A BPE model.   over_text: characters that no token has are bytes, or the unknown token."""
    unk = vocab.unk if over_text else None
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None if unk is None else vocab.tokens[unk],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": over_text,
        "byte_fallback": over_text and TokenType.BYTE in types_of(vocab),
        "ignore_merges": False,
        "vocab": _core(vocab, vocab.tokens, merges),
        "merges": merges,
    }


def _bpe_over_text(vocab: Vocab) -> dict[str, Any]:
    """Gemma 4's: "▁" for a space, merges by rank within lines."""
    return {
        "normalizer": _replace(" ", SPACE),
        "pre_tokenizer": {"type": "Split", "pattern": pre.LINES, "behavior": "Isolated", "invert": False},
        "decoder": _sequence("decoders", [_replace(SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]),
        "model": _merging(vocab, _whole_merges(vocab), over_text=True),
    }


def _whole_merges(vocab: Vocab) -> list[list[str]]:
    """Merges as pairs, without those whose parts or result aren't tokens (the library refuses them)."""
    if vocab.merges is None:
        raise Unsupported("tokenizer.ggml.merges: is missing, expected the merges of a BPE tokenizer")
    known = set(vocab.tokens)
    cuts = ((merge, merge.find(" ", 1)) for merge in vocab.merges)
    pairs = ([merge[:at], merge[at + 1 :]] for merge, at in cuts if at > 0)
    return [[a, b] for a, b in pairs if a in known and b in known and a + b in known]


def score_merges(vocab: Vocab) -> list[list[str]]:
    """sentencepiece's scores as a list of merges: every way to cut a piece in two pieces, the best pieces first."""
    types = np.asarray(types_of(vocab))
    # A user-defined token is matched before anything merges, so nothing can merge to it; but one with "▁" is matched
    # where a text has that character, and merging finds it where a text has a space.
    merged = types == TokenType.NORMAL
    own = np.flatnonzero(types == TokenType.USER_DEFINED).tolist()
    merged[[id for id in own if SPACE in vocab.tokens[id]]] = True
    some = np.flatnonzero(merged).tolist()
    ids = dict(zip([vocab.tokens[id] for id in some], some, strict=True))
    tokens, numbers = tuple(ids), np.fromiter(ids.values(), np.int64, len(ids))
    found = cuts(tokens)
    left, right, whole = numbers[found[:, [2, 3, 0]]].T
    scores = np.zeros(len(vocab), np.float32) if vocab.scores is None else vocab.scores
    order = np.lexsort((right, left, whole, -scores[whole]))
    return [[tokens[a], tokens[b]] for a, b in found[order, 2:].tolist()]


def charsmap(vocab: Vocab) -> bytes:
    array = vocab.extra.get(CHARSMAP)
    return b"" if array is None else np.asarray(array).astype(np.uint8).tobytes()


def normalizers(vocab: Vocab) -> list[dict[str, Any]]:
    """sentencepiece's normalisation: its map of characters, then superfluous spaces away."""
    steps: list[dict[str, Any]] = []
    if table := charsmap(vocab):
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()})
    if vocab.flag("remove_extra_whitespaces"):
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    return steps


def _spm(vocab: Vocab) -> dict[str, Any]:
    prefix = vocab.flag("space_prefix")
    first = prefix and _prefix_once(vocab)
    steps = normalizers(vocab) + ([{"type": "Prepend", "prepend": SPACE}] if prefix and not first else [])
    decode: list[dict[str, Any]] = [_replace(SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix:
        decode.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": _sequence("normalizers", steps if first else [*steps, _replace(" ", SPACE)]),
        "pre_tokenizer": _metaspace("first") if first else None,
        "decoder": _sequence("decoders", decode),
        "model": _merging(vocab, score_merges(vocab), over_text=True),
    }


def _prefix_once(vocab: Vocab) -> bool:
    return vocab.flag("space_prefix_first") or vocab.flag("space_prefix_text")


def _metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}


def _wordpiece(vocab: Vocab) -> dict[str, Any]:
    lowercase = vocab.flag("lowercase")
    unk = vocab.special.get("unk")
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": vocab.flags.get("strip_accents"),
            "lowercase": lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]" if unk is None else vocab.tokens[unk],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": _core(vocab, wordpiece.plain(vocab)),
        },
    }


def _unigram(vocab: Vocab) -> dict[str, Any]:
    types = types_of(vocab)
    scores = [0.0] * len(vocab) if vocab.scores is None else vocab.scores.tolist()
    prefix = vocab.flag("space_prefix")
    space = _metaspace(("first" if _prefix_once(vocab) else "always") if prefix else "never")
    return {
        "normalizer": _sequence("normalizers", normalizers(vocab)),
        "pre_tokenizer": space,
        "decoder": space,
        "model": {
            "type": "Unigram",
            "unk_id": vocab.special.get("unk"),
            "vocab": [[t, 0.0 if y == 4 else s] for t, s, y in zip(vocab.tokens, scores, types, strict=True)],
            "byte_fallback": TokenType.BYTE in types,
        },
    }


def _words(vocab: Vocab) -> dict[str, Any]:
    unk = vocab.special.get("unk")
    # Trimming a word, where only spaces separate words, is removing the white space next to a space or an end.
    trim = {"type": "Replace", "pattern": {"Regex": r"(?:(?<= )|^)\s+|\s+(?= |$)"}, "content": " "}
    return {
        "normalizer": _sequence("normalizers", [*([{"type": "Lowercase"}] if vocab.flag("lowercase") else []), trim]),
        "pre_tokenizer": words.SPLIT,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {token: id for id, token in enumerate(vocab.tokens)},
            "unk_token": "[UNK]" if unk is None else vocab.tokens[unk],
        },
    }


def _characters(vocab: Vocab) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    lower = {"type": "Lowercase"} if vocab.flag("lowercase") else None
    return {**_words(vocab), "normalizer": lower, "pre_tokenizer": split, "decoder": {"type": "Fuse"}}


_MAKERS = {
    BPE: _bpe,
    SPM: _spm,
    WORDPIECE: _wordpiece,
    UNIGRAM: _unigram,
    GEMMA4: _bpe_over_text,
    WORDS: _words,
    CHARACTERS: _characters,
}


def known(vocab: Vocab) -> bool:
    """Whether a tokenizer.json can say what the vocabulary does."""
    return vocab.model in _MAKERS or vocab.json is not None


def to_json(vocab: Vocab) -> dict[str, Any]:
    """The tokenizer.json document of a vocabulary, its folder's own if known.

    `Unsupported` for kinds that the format can't say.
    """
    own = vocab.json.encode() if vocab.json is not None else vocab.files.get("tokenizer.json")
    if own is not None:
        return json_object("tokenizer.json", own)
    make = _MAKERS.get(vocab.model)
    if make is None:
        raise Unsupported(f"tokenizer.ggml.model: no tokenizer.json can say what {vocab.model!r} does")
    vocab = dataclasses.replace(vocab, tokens=list(vocab.tokens))  # a file's are decoded whenever they are looked at
    made = make(vocab)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [] if vocab.model in (WORDS, CHARACTERS) else _added(vocab),
        "normalizer": made["normalizer"],
        "pre_tokenizer": made["pre_tokenizer"],
        "post_processor": around(vocab),
        "decoder": made["decoder"],
        "model": made["model"],
    }
