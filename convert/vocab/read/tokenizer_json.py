"""tokenizer.json (the `tokenizers` library's format) -> `Vocab`, by what its parts do."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np

from llmconv.convert.vocab import pre, words
from llmconv.convert.vocab.model import BPE, CHARSMAP, GEMMA4, SPACE, SPM, UNIGRAM, WORDS, TokenType, Vocab
from llmconv.convert.vocab.read import wordpiece
from llmconv.convert.vocab.read.folder import Folder
from llmconv.convert.vocab.read.gpt2 import join, strange_merge
from llmconv.convert.vocab.read.recognise import recognise
from llmconv.convert.vocab.read.steps import like_sentencepiece, model_of, parts, space_prefix
from llmconv.convert.vocab.read.tokens import add, dense
from llmconv.errors import BadFile, cut, more

__all__ = ["read"]


def read(folder: Folder) -> Vocab:
    """The vocabulary of a tokenizer.json."""
    tokenizer = folder.tokenizer
    model = model_of(tokenizer)
    makers = {"BPE": _bpe, "WordPiece": _wordpiece, "Unigram": _unigram, "WordLevel": _word_level}
    make = makers.get(str(model["type"]))
    if make is None:
        raise BadFile(f"tokenizer.json: model.type is {model['type']!r}, expected one of {', '.join(makers)}")
    vocab = make(folder, tokenizer, model)
    if isinstance(unk := model.get("unk_token"), str):
        id = next((a.id for a in folder.added().values() if a.content == unk), None)
        if id is None and isinstance(model.get("vocab"), dict):
            id = model["vocab"].get(unk)
        if isinstance(id, int) and 0 <= id < len(vocab):
            vocab.special["unk"] = id
    if folder.pre:
        vocab.pre = folder.pre
    vocab.notes += [*_displaced(folder, model.get("vocab")), *_particular(tokenizer)]
    return vocab


def _displaced(folder: Folder, ids: Any) -> list[str]:
    """A note about added tokens whose ids are not those that the library would give them.   ids: the model's."""
    if not isinstance(ids, dict):
        return []
    odd = [a for a in folder.added().values() if ids.get(a.content, a.id if a.id >= len(ids) else -1) != a.id]
    if not odd:
        return []
    return [
        f"tokenizer.json: the added token {cut(odd[0].content)}{more([a.content for a in odd])} has id {odd[0].id}, "
        "which model.vocab gives to another: it is followed here; the tokenizers library takes another id"
    ]


_MASKS = ("<mask>", "[MASK]")
"""The tokens of whose greed llama.cpp knows."""


def _particular(tokenizer: dict[str, Any]) -> list[str]:
    """Notes about added tokens that swallow the white space beside them, or are found as whole words alone."""
    added = tokenizer.get("added_tokens")
    found = [a for a in added if isinstance(a, dict)] if isinstance(added, list) else []
    greedy = [str(a.get("content")) for a in found if a.get("lstrip") is True or a.get("rstrip") is True]
    greedy = [name for name in greedy if name not in _MASKS]
    words = [str(a.get("content")) for a in found if a.get("single_word") is True]
    notes = []
    if greedy:
        notes.append(
            f"the token {cut(greedy[0])}{more(greedy)} takes the white space beside it, which GGUF has no key for: "
            "llama.cpp will make tokens of that space, but for models that it knows by name (Phi-3)"
        )
    if words:
        notes.append(
            f"the token {cut(words[0])}{more(words)} is found as a word of its own alone, which GGUF has no key for: "
            "llama.cpp will find it inside of words too"
        )
    return notes


def _keep_steps(vocab: Vocab, folder: Folder, known: tuple[str, ...]) -> None:
    """Keep the whole tokenizer.json, with a note, where it changes texts in ways that GGUF has no key for."""
    steps = parts(folder.tokenizer.get("normalizer"))
    other = [str(s.get("type")) for s in steps if s.get("type") not in known and s.get("content") != SPACE]
    if other:
        vocab.json = folder.files["tokenizer.json"].decode("utf-8")
        vocab.notes.append(
            f"the text is normalised by {cut(', '.join(other))}, which GGUF has no key for: llama.cpp will split "
            "such texts otherwise; the whole tokenizer.json is kept in the GGUF"
        )


def _tokens(folder: Folder, model: dict[str, Any]) -> tuple[list[str], Any]:
    """Tokens by id and their types, the added ones still missing."""
    if not isinstance(model.get("vocab"), dict):
        raise BadFile("tokenizer.json: model.vocab: expected an object of token -> id")
    return dense("tokenizer.json: model.vocab", model["vocab"])


def _bpe(folder: Folder, tokenizer: dict[str, Any], model: dict[str, Any]) -> Vocab:
    tokens, types = _tokens(folder, model)
    merges = join(model.get("merges"))
    _check_merges(model)
    added = folder.added().values()
    if like_sentencepiece(tokenizer) and _is_gemma4(folder):
        return _gemma4(folder, tokens, types, merges)
    if like_sentencepiece(tokenizer):
        scores = _scores(tokens, merges)
        if model.get("byte_fallback"):
            _mark_bytes(tokens, types)
        tokens, types = add(tokens, types, added, folder.size(len(tokens)))
        column = np.full(len(tokens), -1000.0, np.float32)
        column[: len(scores)] = scores
        unk = model.get("unk_token")
        if isinstance(unk, str) and isinstance(id := model["vocab"].get(unk), int):
            types[id] = TokenType.UNKNOWN
        vocab = Vocab(SPM, tokens, types, column, pre="default")
        vocab.flags |= space_prefix(tokenizer)
        _keep_steps(vocab, folder, ("Prepend",))
        return vocab
    tokens, types = add(tokens, types, added, folder.size(len(tokens)))
    vocab = Vocab(BPE, tokens, types, merges=merges)
    known = pre.by_name(folder.pre) if folder.pre else recognise(tokenizer)
    vocab.pre = folder.pre or (known.names[0] if known else "")
    if not vocab.pre:
        vocab.json = folder.files["tokenizer.json"].decode("utf-8")
        vocab.notes.append(
            "the BPE pre-tokenizer is none that llama.cpp knows; the whole tokenizer.json is kept in the GGUF, "
            "but llama.cpp will need the name of a pre-tokenizer that splits alike: give it with --pre NAME"
        )
    _keep_steps(vocab, folder, ("NFC",))
    if model.get("end_of_word_suffix"):
        vocab.json = folder.files["tokenizer.json"].decode("utf-8")
        vocab.notes.append(
            f"the ends of words are marked by {cut(model['end_of_word_suffix'])}, which GGUF has no key for: llama.cpp "
            "will split texts otherwise; the whole tokenizer.json is kept in the GGUF"
        )
    nfc = any(s.get("type") == "NFC" for s in parts(tokenizer.get("normalizer")))
    if known and known.nfc != nfc:
        vocab.flags["nfc"] = nfc
    if known and known.add_bos:
        vocab.flags["bos"] = False  # stated, because llama.cpp would assume it; the post-processor may say otherwise
    return vocab


def _check_merges(model: dict[str, Any]) -> None:
    """`BadFile` for a merge of or to what is no token, with which the library would not load the file."""
    prefix = model.get("continuing_subword_prefix")
    at = strange_merge(model["merges"], model["vocab"], len(prefix) if isinstance(prefix, str) else 0)
    if at is not None:
        raise BadFile(
            f"tokenizer.json: model.merges[{at}], {cut(model['merges'][at])}, is of or to what is no token of "
            "model.vocab; the file is damaged, fetch it again"
        )


def _is_gemma4(folder: Folder) -> bool:
    """By its configuration, or by splitting off runs of newlines, as a tokenizer.json that is rebuilt here does."""
    lines = any(s.get("pattern") == pre.LINES for s in parts(folder.tokenizer.get("pre_tokenizer")))
    return lines or str(folder.setting("model_type") or "").startswith("gemma4")


# Control tokens that a reader of tool calls must see, so that the reference converter makes them user-defined.
_SHOWN = {"<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>'}


def _gemma4(folder: Folder, tokens: list[str], types: Any, merges: list[str]) -> Vocab:
    """Gemma 4's vocabulary, whose merges llama.cpp follows by rank; its scores mean nothing."""
    _mark_bytes(tokens, types)
    tokens, types = add(tokens, types, folder.added().values(), folder.size(len(tokens)))
    for id, token in enumerate(tokens):
        if token in _SHOWN:
            types[id] = TokenType.USER_DEFINED
    scores = np.full(len(tokens), -1000.0, np.float32)
    return Vocab(GEMMA4, tokens, types, scores, merges, flags={"space_prefix": False, "bos": True})


def _mark_bytes(tokens: list[str], types: Any) -> None:
    wanted = {f"<0x{b:02X}>" for b in range(256)}
    for id, token in enumerate(tokens):
        if token in wanted:
            types[id] = TokenType.BYTE


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """A score for each token so that merging by score is merging by rank.

    A piece's score is minus the first rank that makes it; sentencepiece's own are of this form.  Pieces that no
    merge makes never come up in a merge; theirs is below all.
    """
    rank: dict[str, int] = {}
    for i, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", "", 1), i)
    return [-float(rank.get(token, len(merges))) for token in tokens]


def _wordpiece(folder: Folder, tokenizer: dict[str, Any], model: dict[str, Any]) -> Vocab:
    tokens, types = _tokens(folder, model)
    prefix = model.get("continuing_subword_prefix", "##")
    vocab = wordpiece.build(folder, tokens, types, prefix if isinstance(prefix, str) else "##")
    lowercase: bool | None = None
    strip_accents = None
    for step in parts(tokenizer.get("normalizer")):
        match step.get("type"):
            case "BertNormalizer":
                lowercase = step.get("lowercase") is not False
                strip_accents = step.get("strip_accents")
            case "Lowercase":
                lowercase = True
            case "StripAccents":
                strip_accents = True
    vocab.flags["lowercase"] = lowercase is True
    if isinstance(strip_accents, bool):
        vocab.flags["strip_accents"] = strip_accents
    return vocab


def _unigram(folder: Folder, tokenizer: dict[str, Any], model: dict[str, Any]) -> Vocab:
    entries = model.get("vocab")
    if not isinstance(entries, list):
        raise BadFile("tokenizer.json: model.vocab: expected an array of [piece, score]")
    tokens, scores = [], []
    for i, entry in enumerate(entries):
        match entry:
            case [str(piece), int() | float() as score]:
                tokens.append(piece)
                scores.append(float(score))
            case _:
                raise BadFile(f"tokenizer.json: model.vocab[{i}]: expected [piece, score], found {str(entry)[:60]}")
    types = np.full(len(tokens), TokenType.NORMAL, np.int32)
    if model.get("byte_fallback"):
        _mark_bytes(tokens, types)
    tokens, types = add(tokens, types, folder.added().values(), folder.size(len(tokens)))
    column = np.full(len(tokens), -1000.0, np.float32)
    column[: len(scores)] = np.array(scores, np.float64).astype(np.float32)
    vocab = Vocab(UNIGRAM, tokens, types, column, pre="default")
    unk = model.get("unk_id")
    if isinstance(unk, int) and 0 <= unk < len(tokens):
        types[unk] = TokenType.UNKNOWN
        vocab.special["unk"] = unk
    merged = False
    for step in parts(tokenizer.get("normalizer")):
        pattern = step.get("pattern")
        merged |= step.get("type") == "Replace" and isinstance(pattern, dict) and pattern.get("Regex") == " {2,}"
        merged |= step.get("type") == "Strip"
        if step.get("type") == "Precompiled" and isinstance(step.get("precompiled_charsmap"), str):
            try:
                data = base64.b64decode(step["precompiled_charsmap"], validate=True)
            except binascii.Error:
                raise BadFile("tokenizer.json: precompiled_charsmap: is not valid base64") from None
            vocab.extra[CHARSMAP] = np.frombuffer(data, np.uint8)
    plain = {"Precompiled", "Replace", "Strip", "Prepend"}
    if other := [t for s in parts(tokenizer.get("normalizer")) if (t := s.get("type")) not in plain]:
        vocab.json = folder.files["tokenizer.json"].decode("utf-8")
        vocab.notes.append(
            f"the text is normalised by {', '.join(map(str, other))}, which GGUF has no key for: llama.cpp will split "
            "unusual characters otherwise; the whole tokenizer.json is kept in the GGUF"
        )
    merged |= any(s.get("type") == "WhitespaceSplit" for s in parts(tokenizer.get("pre_tokenizer")))
    vocab.flags |= {**space_prefix(tokenizer), "remove_extra_whitespaces": merged}
    return vocab


def _word_level(folder: Folder, tokenizer: dict[str, Any], model: dict[str, Any]) -> Vocab:
    tokens, types = _tokens(folder, model)
    tokens, types = add(tokens, types, folder.added().values(), folder.size(len(tokens)))
    lowercase = any(s.get("type") == "Lowercase" for s in parts(tokenizer.get("normalizer")))
    vocab = Vocab(WORDS, tokens, types, flags={"lowercase": lowercase})
    if isinstance(unk := model.get("unk_token"), str) and isinstance(id := model["vocab"].get(unk), int):
        types[id] = TokenType.UNKNOWN
    if tokenizer.get("pre_tokenizer") != words.SPLIT:
        vocab.json = folder.files["tokenizer.json"].decode("utf-8")
        vocab.notes.append("words are split by rules that GGUF has no key for; the whole tokenizer.json is kept in it")
    return vocab
