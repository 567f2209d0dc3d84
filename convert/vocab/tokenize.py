"""Text to ids and back.

Special tokens in the text are ordinary text unless `parse_special` is given, so that a text can't smuggle in control
tokens; user-defined tokens always match.  That is llama.cpp's rule, and the `tokenizers` library's with
`encode_special_tokens`.
"""

from __future__ import annotations

import codecs
import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from llmconv.convert.vocab import words
from llmconv.convert.vocab.alphabet import alphabet, to_bytes
from llmconv.convert.vocab.merger import ScoreMerger
from llmconv.convert.vocab.model import BPE, CHARACTERS, GEMMA4, SPACE, SPM, UNIGRAM, WORDPIECE, WORDS, TokenType, Vocab
from llmconv.convert.vocab.write.library import refusing, to_tokenizers, without_special_pieces
from llmconv.convert.vocab.write.tokenizer_json import normalizers
from llmconv.errors import Unsupported, UsageError

__all__ = ["Stream", "Tokenizer", "tokenizer"]

_HIDDEN = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED)


class Tokenizer:
    """Base of the tokenizers: special tokens, decoding, streaming.  A kind defines `_encode` and `_bytes`."""

    def __init__(self, vocab: Vocab) -> None:
        self.vocab = vocab
        self.bos, self.eos, self.unk = vocab.bos, vocab.eos, vocab.unk
        self._types: list[int] | None = None if vocab.types is None else vocab.types.tolist()
        self._tokens = list(vocab.tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def encode(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """The ids of a text.

        add_special: put BOS, EOS or [CLS] and [SEP] around it where the model wants them.
        parse_special: special tokens written out in the text ("<s>", "<|im_start|>") become those tokens.
        """
        ids = self._encode(text, parse_special)
        if not add_special:
            return ids
        before, after = self.around
        return before + ids + after

    def beginning(self, text: str, count: int) -> str:
        """A beginning of the text that is known to begin with the same `count` ids as all of it, or all of it.

        Its further ids may be others: its end is no end of a word.
        """
        return text

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """The text of ids; control tokens are left out unless `special`.  Broken UTF-8 becomes U+FFFD."""
        stream = self.stream(special)
        return "".join([*(stream.push(id) for id in ids), stream.flush()])

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Each id's text on its own, for people; bytes that are no whole character show as U+FFFD."""
        return [self._shown(self._check(id)).decode("utf-8", "replace") for id in ids]

    def stream(self, special: bool = False, start: bool = True) -> Stream:
        """A decoder for ids that come one at a time.

        start: they begin a text, so a space that only marks the first word's beginning is dropped; False for the
        continuation of another.
        """
        return Stream(self, special, start)

    def dropped(self, text: str) -> Mapping[str, int]:
        """What of a text becomes no token, not even the unknown one: characters or words, how often each."""
        return {}

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        raise NotImplementedError

    def _bytes(self, id: int) -> bytes:
        """What a normal token stands for."""
        raise NotImplementedError

    def _type(self, id: int) -> int:
        return TokenType.NORMAL if self._types is None else self._types[id]

    def _check(self, id: int) -> int:
        if not 0 <= id < len(self._tokens):
            raise UsageError(f"token id {id} is not in the vocabulary, expected 0 to {len(self._tokens) - 1}")
        return id

    def _shown(self, id: int) -> bytes:
        type = self._type(id)
        if type == TokenType.BYTE:
            return _byte(self._tokens[id])
        if type == TokenType.NORMAL:
            return self._bytes(id)
        return self._tokens[id].encode("utf-8", "surrogatepass")

    @property
    def around(self) -> tuple[list[int], list[int]]:
        vocab = self.vocab
        if vocab.model == WORDPIECE:
            first, last = vocab.special.get("cls", vocab.bos), vocab.special.get("sep")
        else:
            first = self.bos if vocab.flag("bos") else None
            last = self.eos if vocab.flag("eos") else None
        return [] if first is None else [first], [] if last is None else [last]

    # What a decoded text starts with too much: the space that was put before it.
    _strips_space = False


class Stream:
    """Ids to text, one at a time: `push` gives what has become readable, `flush` the rest."""

    def __init__(self, tokenizer: Tokenizer, special: bool, start: bool = True) -> None:
        self._tokenizer, self._special = tokenizer, special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._start = start and tokenizer._strips_space

    def push(self, id: int) -> str:
        tokenizer = self._tokenizer
        if not self._special and tokenizer._type(tokenizer._check(id)) in _HIDDEN:
            return ""
        data = tokenizer._shown(tokenizer._check(id))
        if self._start and data:
            data, self._start = data.removeprefix(b" "), False
        return self._decoder.decode(data)

    def flush(self) -> str:
        return self._decoder.decode(b"", True)


def _byte(token: str) -> bytes:
    try:
        return bytes([int(token[3:5], 16)]) if token.startswith("<0x") else token.encode("utf-8", "surrogatepass")
    except ValueError:
        return token.encode("utf-8", "surrogatepass")


class LibraryTokenizer(Tokenizer):
    """Byte-level BPE, WordPiece, Unigram: the `tokenizers` library does the work."""

    def __init__(self, vocab: Vocab) -> None:
        super().__init__(vocab)
        # sentencepiece's rule, which a tokenizer.json has no word for: a space before any text.
        self._prefixes = vocab.model == UNIGRAM and vocab.flag("space_prefix_text") and vocab.flag("space_prefix")
        self._strips_space = vocab.model in (WORDPIECE, WORDS) or (
            vocab.model == UNIGRAM and (vocab.flag("space_prefix") or vocab.flag("remove_extra_whitespaces"))
        )

    def prepare(self) -> None:
        """Make what tokenizes; `Unsupported` or `BadFile` where that can't be."""
        _ = self._library, self._plain

    @cached_property
    def _library(self) -> Any:
        return self._made(self._split)

    @cached_property
    def _plain(self) -> Any:
        """What tokenizes without special tokens in the text."""
        library = self._library  # which the document is checked for
        if self.vocab.model != UNIGRAM:
            return library
        return self._made(self._split, without_special_pieces(self._split))

    @property
    def _split(self) -> Vocab:
        flags = {**self.vocab.flags, "space_prefix": False}
        return dataclasses.replace(self.vocab, flags=flags) if self._prefixes else self.vocab

    @staticmethod
    def _made(*given: Any) -> Any:
        library = to_tokenizers(*given)
        library.no_truncation()
        library.no_padding()
        return library

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        library = self._library if parse_special else self._plain
        if self._prefixes:
            text = text.lstrip(" ") if self.vocab.flag("remove_extra_whitespaces") else text
            text = SPACE + text if text else text
        with refusing("this text"):
            library.encode_special_tokens = not parse_special
            ids: list[int] = library.encode(text, add_special_tokens=False).ids
        return ids

    def beginning(self, text: str, count: int) -> str:
        if self.vocab.model not in (BPE, WORDPIECE):
            return text
        size = 8 * count + 1024
        while (cut := text.rfind("\n", 0, size)) > 0 and size < len(text) // 2:
            # A word's rule may look beyond its end, as one for numbers by three does, but over no end of a line.
            with refusing("this text"):
                self._plain.encode_special_tokens = True
                words = self._plain.encode(text[:cut], add_special_tokens=False).word_ids
            within = words[:count]
            if len(within) == count and None not in words[count:] and len({*words[count:]} - {*within}) > 2:
                return text[:cut]
            size *= 2
        return text

    def dropped(self, text: str) -> Mapping[str, int]:
        if not self.vocab.over_bytes or self._library.model.unk_token is not None:
            return {}
        missing = {byte for letter, byte in alphabet().items() if letter not in self._letters}
        counts = Counter(text) if missing else {}
        return {c: n for c, n in counts.items() if not missing.isdisjoint(c.encode("utf-8", "replace"))}

    @cached_property
    def _letters(self) -> set[str]:
        """The tokens of one character."""
        return {token for token in self._tokens if len(token) == 1}

    def _bytes(self, id: int) -> bytes:
        token = self._tokens[id]
        if self.vocab.over_bytes:
            return to_bytes(token)
        if self.vocab.model == WORDS:
            token = " " + token
        return token.replace(SPACE, " ").encode("utf-8", "surrogatepass")


def _only_normalizing(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """A tokenizer.json that does nothing but normalise."""
    model = {"type": "BPE", "vocab": {}, "merges": []}
    return {"version": "1.0", "normalizer": {"type": "Sequence", "normalizers": steps}, "model": model}


class SentencePieceTokenizer(Tokenizer):
    """sentencepiece's BPE by scores, exactly as llama.cpp does it; no library needed (but to normalise text)."""

    _normalizer: Any = None

    def __init__(self, vocab: Vocab) -> None:
        super().__init__(vocab)
        self._strips_space = vocab.flag("space_prefix")
        self._whole_text = self._strips_space and vocab.flag("space_prefix_text")
        self._unless_there = vocab.flag("space_prefix_first")  # Metaspace's rule
        self._first_only = self._whole_text or self._unless_there
        self._merger = ScoreMerger(vocab)
        steps = normalizers(vocab)
        if steps:  # llama.cpp doesn't; sentencepiece and the model's training do
            self._normalizer = to_tokenizers(vocab, _only_normalizing(steps)).normalizer

    @cached_property
    def _special(self) -> list[tuple[str, int, bool]]:
        """(text, id, only when parsing special tokens), the longest first."""
        control = (TokenType.CONTROL, TokenType.UNKNOWN)
        found = [
            (self._tokens[id], id, type in control)
            for id, type in enumerate(self._types or ())
            if type in (*control, TokenType.USER_DEFINED) and self._tokens[id]
        ]
        return sorted(found, key=lambda s: -len(s[0].encode("utf-8", "surrogatepass")))

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        if self._normalizer is not None and text:
            text = self._normalizer.normalize_str(text)
        if self._whole_text and text:
            text = " " + text
        fragments: list[str | int] = [text] if text else []
        for token, id, control in self._special:
            if token not in text or (control and not parse_special):
                continue
            cut: list[str | int] = []
            for fragment in fragments:
                if isinstance(fragment, int):
                    cut.append(fragment)
                    continue
                for i, part in enumerate(fragment.split(token)):
                    cut += [id] if i else []
                    cut += [part] if part else []
            fragments = cut
        out: list[int] = []
        prefixed = self._strips_space and not self._whole_text  # the start counts as a special token
        for fragment in fragments:
            if isinstance(fragment, int):
                out.append(fragment)
            else:
                piece = fragment.replace(" ", SPACE)
                if prefixed and not (self._unless_there and piece.startswith(SPACE)):
                    piece = SPACE + piece
                out += self._merger.encode(piece)
            prefixed = self._strips_space and not self._first_only and isinstance(fragment, int)
        return out

    def _bytes(self, id: int) -> bytes:
        return self._tokens[id].replace(SPACE, " ").encode("utf-8", "surrogatepass")


class WordTokenizer(Tokenizer):
    """Whole words; an unknown word is the unknown token, or left out where there is none."""

    _strips_space = True

    def __init__(self, vocab: Vocab) -> None:
        super().__init__(vocab)
        self._ids = {token: id for id, token in enumerate(self._tokens)}
        self._lowercase = vocab.flag("lowercase")

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        found = (self._find(part, parse_special) for part in self._parts(text))
        return [id for id in found if id is not None]

    def dropped(self, text: str) -> Mapping[str, int]:
        parts = Counter(self._parts(text)) if self.unk is None else {}
        return {part: n for part, n in parts.items() if self._find(part, parse_special=False) is None}

    def _parts(self, text: str) -> Iterable[str]:
        return words.split(text, lowercase=False)

    def _find(self, word: str, parse_special: bool) -> int | None:
        if parse_special and (id := self._ids.get(word)) is not None and self._type(id) in _HIDDEN:
            return id
        return self._ids.get(word.lower() if self._lowercase else word, self.unk)

    def _shown(self, id: int) -> bytes:
        return self._bytes(id)

    def _bytes(self, id: int) -> bytes:
        return (" " + self._tokens[id]).encode("utf-8", "surrogatepass")


class CharacterTokenizer(WordTokenizer):
    """One token a character."""

    _strips_space = False

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        return super()._encode(text, parse_special=False)

    def _parts(self, text: str) -> Iterable[str]:
        return text

    def _bytes(self, id: int) -> bytes:
        return self._tokens[id].encode("utf-8", "surrogatepass")


def tokenizer(vocab: Vocab, at_once: bool = True) -> Tokenizer:
    """The tokenizer of a vocabulary; `Unsupported` for kinds that aren't run here.

    at_once: False for one that is made, or refused, when it first tokenizes.
    """
    if vocab.model == WORDS and vocab.json is None:
        return WordTokenizer(vocab)
    if vocab.model == CHARACTERS:
        return CharacterTokenizer(vocab)
    if vocab.model == SPM:
        return SentencePieceTokenizer(vocab)
    if vocab.model in (BPE, WORDPIECE, UNIGRAM, GEMMA4, WORDS) or vocab.json is not None:
        made = LibraryTokenizer(vocab)
        if at_once:
            made.prepare()
        return made
    raise Unsupported(f"tokenizer.ggml.model: llmconv can't tokenize with {vocab.model!r}; it can convert the model")
