"""Byte-level BPE: GPT-2's byte alphabet, vocab.json + merges.txt."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from llmconv.convert.vocab.base import BPE, TokenType, Vocab
from llmconv.errors import BadFile

if TYPE_CHECKING:
    from llmconv.convert.vocab.sources import Added, Folder

__all__ = ["add", "alphabet", "join", "merge_lines", "read", "to_bytes"]


@lru_cache
def alphabet() -> dict[str, int]:
    """Character -> byte of GPT-2's printable alphabet for bytes.

    Bytes that print in Latin-1 stand for themselves; the others, in order, take the characters from U+0100 up
    (`bytes_to_unicode` in GPT-2's encoder.py).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(other)}


def to_bytes(token: str) -> bytes:
    """The bytes that a token in the byte alphabet stands for; its UTF-8 where it isn't in the alphabet."""
    table = alphabet()
    try:
        return bytes(table[c] for c in token)
    except KeyError:
        return token.encode("utf-8", "surrogatepass")


def join(merges: Any) -> list[str]:
    """tokenizer.json's merges, "a b" or ["a", "b"], as GGUF writes them: "a b", a space inside a part as "Ġ"."""
    if not isinstance(merges, list):
        raise BadFile(f"tokenizer.json: model.merges: expected an array, found {type(merges).__name__}")
    out = []
    for merge in merges:  # hundreds of thousands: no pattern matching here
        if type(merge) is list and len(merge) == 2 and type(merge[0]) is type(merge[1]) is str:
            joined = " ".join(merge)
            if joined.count(" ") > 1:
                joined = " ".join(part.replace(" ", "Ġ") for part in merge)
            out.append(joined)
        elif type(merge) is str:
            out.append(merge)
        else:
            raise BadFile(f"tokenizer.json: model.merges[{len(out)}]: expected 'left right' or [left, right]")
    return out


def merge_lines(data: bytes) -> list[str]:
    """The merges of a merges.txt, by rank: `left right` a line, after an optional `#version` line."""
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise BadFile(f"merges.txt: is not valid UTF-8 (byte {error.start})") from None
    out = []
    for number, line in enumerate(lines):
        line = line.removesuffix("\r")
        if not line or (number == 0 and line.startswith("#version")):
            continue
        if line.count(" ") != 1 or line.startswith(" ") or line.endswith(" "):
            raise BadFile(f"merges.txt: line {number + 1} is {line[:60]!r}, expected two tokens with a space between")
        out.append(line)
    return out


def add(tokens: list[str], types: Any, added: Iterable[Added], size: int) -> tuple[list[str], Any]:
    """Tokens and types with the added ones put in: control if special (or looking so), else user-defined.

    A user-defined token is written as text, with plain spaces, as llama.cpp matches it.
    """
    from llmconv.convert.vocab.sources import special_looking

    by_id = {a.id: a for a in added}
    n = max([len(tokens), *(i + 1 for i in by_id)])
    if n > max(size, len(tokens)) + 65536:
        raise BadFile(
            f"added token {by_id[n - 1].content!r} has id {n - 1}, expected one near the {len(tokens)} tokens"
        )
    tokens = tokens + [f"[PAD{i}]" for i in range(len(tokens), n)]
    grown = np.full(n, TokenType.UNUSED, np.int32)
    grown[: len(types)] = types
    for id, token in by_id.items():
        control = token.special or special_looking(token.content)
        tokens[id] = token.content if control else token.content.replace("▁", " ")
        grown[id] = TokenType.CONTROL if control else TokenType.USER_DEFINED
    return tokens, grown


def read(folder: Folder) -> Vocab:
    """A vocabulary from vocab.json + merges.txt: GPT-2's pre-tokenizer unless told otherwise."""
    from llmconv.convert.vocab.sources import Added, dense

    tokens, types = dense("vocab.json", folder.json("vocab.json"))
    merges = merge_lines(folder.files["merges.txt"])
    added = folder.added()
    if not added and "<|endoftext|>" in (texts := {t: i for i, t in enumerate(tokens)}):
        # GPT-2's own folder: the library adds this one by itself.
        id = texts["<|endoftext|>"]
        added = {id: Added(id, "<|endoftext|>", True)}
    tokens, types = add(tokens, types, added.values(), folder.size(len(tokens)))
    vocab = Vocab(BPE, tokens, types, merges=merges, pre=folder.pre or "gpt-2")
    if not folder.json("tokenizer_config.json") and len(added) == 1:
        only = next(iter(added))
        vocab.special = {"bos": only, "eos": only}
    vocab.flags.setdefault("bos", False)
    return vocab
