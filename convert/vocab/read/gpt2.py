"""Byte-level BPE: vocab.json + merges.txt -> `Vocab`."""

from __future__ import annotations

from typing import Any

from llmconv.convert.vocab.model import BPE, Vocab
from llmconv.convert.vocab.read.folder import Added, Folder
from llmconv.convert.vocab.read.tokens import add, dense
from llmconv.errors import BadFile

__all__ = ["join", "merge_lines", "read"]


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


def read(folder: Folder) -> Vocab:
    """A vocabulary from vocab.json + merges.txt: GPT-2's pre-tokenizer unless told otherwise."""
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
