"""A vocabulary in GGUF's keys (`tokenizer.*`), both ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.vocab import side_files
from llmconv.convert.vocab.model import FLAGS, HF_JSON, ROLES, TEMPLATE, Vocab
from llmconv.errors import BadFile

__all__ = ["from_gguf", "to_gguf"]

_MODEL, _PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
_TOKENS, _SCORES, _TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"
_MERGES = "tokenizer.ggml.merges"


def to_gguf(vocab: Vocab, files: bool = True) -> dict[str, Any]:
    """GGUF keys and values, in the order in which they are usually written; with the folder's `files` in our own."""
    out: dict[str, Any] = {_MODEL: vocab.model}
    if vocab.pre:
        out[_PRE] = vocab.pre
    out[_TOKENS] = vocab.tokens
    for key, array in ((_SCORES, vocab.scores), (_TYPES, vocab.types)):
        if array is not None:
            out[key] = array
    if vocab.merges is not None:
        out[_MERGES] = vocab.merges
    out |= {ROLES[role]: np.uint32(id) for role, id in vocab.special.items()}
    out |= {FLAGS[name]: value for name, value in vocab.flags.items()}
    if vocab.chat_template is not None:
        out[TEMPLATE] = vocab.chat_template
    out |= vocab.extra
    if vocab.json is not None and not (files and "tokenizer.json" in vocab.files):  # which is kept in few bytes
        out[HF_JSON] = vocab.json
    return out | side_files.keep(vocab) if files else out


def _strings(key: str, value: Any) -> Sequence[str]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise BadFile(f"{key}: expected an array of strings, found {type(value).__name__}")
    if len(value) and not isinstance(value[0], str):
        raise BadFile(f"{key}: expected strings, found {type(value[0]).__name__}")
    return value


def _numbers(key: str, value: Any, dtype: Any, n: int) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        array = np.empty(0, object)
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise BadFile(f"{key}: expected an array of numbers, found {type(value).__name__}")
    if len(array) != n:
        raise BadFile(f"{key}: has {len(array)} entries, expected {n}, one for each token")
    return array.astype(dtype)


def from_gguf(metadata: Mapping[str, Any]) -> Vocab | None:
    """The vocabulary in a GGUF's metadata, None when it has none; `BadFile` when its arrays contradict each other."""
    if _TOKENS not in metadata:
        return None
    model = metadata.get(_MODEL)
    if not isinstance(model, str):
        raise BadFile(f"{_MODEL}: expected the name of a tokenizer, found {type(model).__name__}")
    tokens = _strings(_TOKENS, metadata[_TOKENS])
    vocab = Vocab(model, tokens)
    n, used = len(tokens), {_MODEL, _TOKENS}

    def take(key: str, kind: type) -> Any:
        value = metadata.get(key)
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or not isinstance(value, kind):
            return None  # kept as it is, in `extra`
        used.add(key)
        return value

    if _SCORES in metadata:
        vocab.scores = _numbers(_SCORES, metadata[_SCORES], np.float32, n)
    if _TYPES in metadata:
        vocab.types = _numbers(_TYPES, metadata[_TYPES], np.int32, n)
    if _MERGES in metadata:
        vocab.merges = _strings(_MERGES, metadata[_MERGES])
    used |= {_SCORES, _TYPES, _MERGES}
    vocab.pre = take(_PRE, str) or ""
    vocab.chat_template, vocab.json = take(TEMPLATE, str), take(HF_JSON, str)
    for role, key in ROLES.items():
        value = metadata.get(key)
        if isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= int(value) < n:
            vocab.special[role] = int(value)
            used.add(key)
    for name, key in FLAGS.items():
        if (flag := take(key, bool)) is not None:
            vocab.flags[name] = flag
    vocab.extra = {k: v for k, v in metadata.items() if k.startswith("tokenizer.") and k not in used}
    side_files.restore(vocab, metadata)
    return vocab
