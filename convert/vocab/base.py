"""A vocabulary, whatever ecosystem it came from: its tokens, how text becomes tokens, and its special tokens.

Field names and numbers are GGUF's (`tokenizer.ggml.*` of the GGUF specification), because that is the one ecosystem
that writes down every kind of tokenizer in the same few arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from llmconv.convert.tables import own_keys
from llmconv.errors import BadFile, Unsupported

if TYPE_CHECKING:
    from llmconv.convert.vocab.tokenizer import Tokenizer

__all__ = ["BPE", "SPM", "UNIGRAM", "WORDPIECE", "WORDS", "CHARACTERS", "TokenType", "Vocab", "from_gguf"]

# `tokenizer.ggml.model`: the kinds of tokenizer.  The last two are ours; llama.cpp knows the others.
BPE, SPM, WORDPIECE, UNIGRAM, WORDS, CHARACTERS = "gpt2", "llama", "bert", "t5", "words", "characters"


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`, which are sentencepiece's numbers too."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# Role of a special token -> its GGUF key (the specification spells "seperator" so).
ROLES = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "cls": "tokenizer.ggml.cls_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
    "fim_pre": "tokenizer.ggml.fim_pre_token_id",
    "fim_suf": "tokenizer.ggml.fim_suf_token_id",
    "fim_mid": "tokenizer.ggml.fim_mid_token_id",
    "fim_pad": "tokenizer.ggml.fim_pad_token_id",
    "fim_rep": "tokenizer.ggml.fim_rep_token_id",
    "fim_sep": "tokenizer.ggml.fim_sep_token_id",
}
FLAGS = {
    "bos": "tokenizer.ggml.add_bos_token",
    "eos": "tokenizer.ggml.add_eos_token",
    "sep": "tokenizer.ggml.add_sep_token",
    "space_prefix": "tokenizer.ggml.add_space_prefix",
    "remove_extra_whitespaces": "tokenizer.ggml.remove_extra_whitespaces",
    "lowercase": "tokenizer.ggml.normalizer.lowercase",
    "strip_accents": "tokenizer.ggml.normalizer.strip_accents",
}
_MODEL, _PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
_TOKENS, _SCORES, _TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"
_MERGES, _CHAT = "tokenizer.ggml.merges", "tokenizer.chat_template"
HF_JSON = "tokenizer.huggingface.json"
CHARSMAP = "tokenizer.ggml.precompiled_charsmap"
WHOLE, CUT = own_keys.FILE, own_keys.CUT_FILE
"""Prefixes of the keys that keep a folder's tokenizer files: whole, or with what the arrays already say cut out."""

# What llama.cpp assumes of a kind where the file is silent (llama-vocab.cpp, `load`).
_DEFAULT_FLAGS: dict[str, dict[str, bool]] = {
    SPM: {"bos": True, "space_prefix": True},
    WORDPIECE: {"bos": True, "sep": True, "lowercase": True},
    UNIGRAM: {"eos": True},
    WORDS: {"lowercase": True},
}


@dataclass(eq=False, repr=False)
class Vocab:
    """Tokens and the tokenizer that makes them.

    model: `tokenizer.ggml.model`: "gpt2" (byte-level BPE), "llama" (sentencepiece's BPE, by scores), "bert"
        (WordPiece), "t5" (Unigram), "words" and "characters" (ours), or another name, kept but not runnable here.
    tokens: the text of each id.  GGUF's conventions: byte-level BPE in GPT-2's byte alphabet, "▁" for a space in the
        others, a WordPiece as "▁word" or "continuation".
    types: (n,) int32 `TokenType`, or None: all normal.   scores: (n,) float32, or None.
    merges: "left right" by rank, or None.   pre: name of the pre-tokenizer, "" when unknown.
    special: role ("bos", "eos", "unk", ...) -> id.   flags: "bos", "eos", "space_prefix", ... where stated.
    chat_template: Jinja text.   json: a whole tokenizer.json, where it says more than the rest can.
    files: the folder's own tokenizer files, by name.   extra: other `tokenizer.*` keys, kept as they are.
    notes: sentences a user should read.
    """

    model: str
    tokens: Sequence[str]
    types: NDArray[np.int32] | None = None
    scores: NDArray[np.float32] | None = None
    merges: Sequence[str] | None = None
    pre: str = ""
    special: dict[str, int] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)
    chat_template: str | None = None
    json: str | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"<Vocab {self.model}{f'/{self.pre}' if self.pre else ''}, {len(self)} tokens>"

    @property
    def bos(self) -> int | None:
        return self.special.get("bos")

    @property
    def eos(self) -> int | None:
        return self.special.get("eos")

    @property
    def unk(self) -> int | None:
        return self.special.get("unk")

    def flag(self, name: str) -> bool:
        """A switch of the tokenizer as stated, else as llama.cpp assumes it for this kind."""
        from llmconv.convert.vocab import pre

        if name in self.flags:
            return self.flags[name]
        if name == "bos" and self.model == BPE and (known := pre.by_name(self.pre)):
            return known.add_bos
        return _DEFAULT_FLAGS.get(self.model, {}).get(name, False)

    def twice(self) -> list[str]:
        """A note where a token's text has several ids, which llama.cpp and most tokenizer files have no place for."""
        ids: dict[str, int] = {}
        again = [(token, ids[token], id) for id, token in enumerate(self.tokens) if ids.setdefault(token, id) != id]
        if not again:
            return []
        token, first, id = again[0]
        more = f" (and {len(again) - 1} more such)" if len(again) > 1 else ""
        return [
            f"token {token!r} has two ids, {first} and {id}{more}: llama.cpp refuses such a vocabulary, and a "
            "tokenizer.json has room for one of them"
        ]

    def type_of(self, id: int) -> int:
        return TokenType.NORMAL if self.types is None else int(self.types[id])

    def padded(self, n: int) -> Vocab:
        """The same vocabulary for an embedding of `n` rows: unused tokens [PADi] fill it up.

        `BadFile` when it has more tokens than that.
        """
        have = len(self)
        if have > n:
            raise BadFile(
                f"the vocabulary has {have} tokens, expected at most {n}, the rows of the token embedding; "
                "remove the added tokens or resize the embedding"
            )
        if have == n:
            return self
        types = np.full(n, TokenType.UNUSED, np.int32)
        types[:have] = TokenType.NORMAL if self.types is None else self.types
        scores = None
        if self.scores is not None:
            scores = np.full(n, -10000.0, np.float32)
            scores[:have] = self.scores
        tokens = [*self.tokens, *(f"[PAD{i}]" for i in range(have, n))]
        return dataclasses.replace(self, tokens=tokens, types=types, scores=scores)

    def to_gguf(self) -> dict[str, Any]:
        """GGUF keys and values, in the order in which they are usually written, and the folder's files in our own."""
        from llmconv.convert.vocab.keep import keep

        return self.keys() | keep(self)

    def keys(self) -> dict[str, Any]:
        """The keys and values that GGUF has for a vocabulary."""
        out: dict[str, Any] = {_MODEL: self.model}
        if self.pre:
            out[_PRE] = self.pre
        out[_TOKENS] = self.tokens
        for key, array in ((_SCORES, self.scores), (_TYPES, self.types)):
            if array is not None:
                out[key] = array
        if self.merges is not None:
            out[_MERGES] = self.merges
        out |= {ROLES[role]: np.uint32(id) for role, id in self.special.items()}
        out |= {FLAGS[name]: value for name, value in self.flags.items()}
        if self.chat_template is not None:
            out[_CHAT] = self.chat_template
        out |= self.extra
        if self.json is not None:
            out[HF_JSON] = self.json
        return out

    def to_files(self) -> dict[str, bytes]:
        """The tokenizer files of a Hugging Face folder: its own, byte for byte, where they are known, else rebuilt."""
        from llmconv.convert.vocab.rebuild import to_files

        return self.files or to_files(self)

    def to_tokenizers(self) -> Any:
        """A `tokenizers.Tokenizer` of this vocabulary; `Unsupported` without that library."""
        from llmconv.convert.vocab.rebuild import to_tokenizers

        return to_tokenizers(self)

    def tokenizer(self) -> Tokenizer:
        """What turns text to ids and back."""
        from llmconv.convert.vocab.tokenizer import make

        return make(self)

    def chat(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any) -> str:
        """The prompt text of a conversation, by the model's own template (see `chat.render`)."""
        from llmconv.convert.vocab.chat import render

        return render(self, messages, add_generation_prompt=add_generation_prompt, **variables)


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
    from llmconv.convert.vocab.keep import restore

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
    vocab.chat_template, vocab.json = take(_CHAT, str), take(HF_JSON, str)
    for role, key in ROLES.items():
        value = metadata.get(key)
        if isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= int(value) < n:
            vocab.special[role] = int(value)
            used.add(key)
    for name, key in FLAGS.items():
        if (flag := take(key, bool)) is not None:
            vocab.flags[name] = flag
    vocab.extra = {k: v for k, v in metadata.items() if k.startswith("tokenizer.") and k not in used}
    restore(vocab, metadata)
    return vocab


def json_object(name: str, data: bytes) -> dict[str, Any]:
    """A JSON file that is an object, nested no deeper than can be written again; `BadFile` for any other."""
    try:
        value = orjson.loads(data.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise BadFile(f"{name}: is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise BadFile(f"{name}: expected a JSON object, found {type(value).__name__}")
    try:
        orjson.dumps(value)
    except TypeError:
        raise BadFile(f"{name}: is nested deeper than 250 levels, expected a tokenizer's few") from None
    return value


def library(name: str) -> Any:
    """An optional library by name, or one sentence that says how to get it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise Unsupported(f"this needs the {name} library; pip install 'llmconv[tokenizers]'") from None
