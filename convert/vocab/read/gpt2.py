"""Byte-level BPE: vocab.json + merges.txt -> `Vocab`."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from llmconv.convert.vocab import pre
from llmconv.convert.vocab.model import BPE, Vocab
from llmconv.convert.vocab.read import slow
from llmconv.convert.vocab.read.folder import Added, Folder
from llmconv.convert.vocab.read.tokens import add, dense
from llmconv.errors import BadFile, cut

__all__ = ["join", "merge_lines", "read", "strange_merge"]


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


def strange_merge(merges: Sequence[Any], known: Container[str], skipped: int = 0) -> int | None:
    """The place of the first merge of which a part or the result is none of the `known` tokens; None: all are.

    skipped: characters of a second part that its result does not have (a continuing_subword_prefix).
    """
    for i, merge in enumerate(merges):  # hundreds of thousands: nothing but look-ups here
        left, _, right = merge.partition(" ") if type(merge) is str else (merge[0], "", merge[1])
        if left not in known or right not in known or left + right[skipped:] not in known:
            return i
    return None


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
    """A vocabulary from vocab.json + merges.txt; the tokenizer's class says how text is split."""
    kind, note = slow.find(folder)
    tokens, types = dense("vocab.json", folder.json("vocab.json"))
    merges = merge_lines(folder.files["merges.txt"])
    added = folder.added()
    texts = {t: i for i, t in enumerate(tokens)}
    strange = strange_merge(merges, texts)
    if not added and "<|endoftext|>" in texts:
        # GPT-2's own folder: the library adds this one by itself.
        id = texts["<|endoftext|>"]
        added = {id: Added(id, "<|endoftext|>", True)}
    tokens, types = add(tokens, types, added.values(), folder.size(len(tokens)))
    vocab = Vocab(BPE, tokens, types, merges=merges, pre=folder.pre or kind.pre)
    if not folder.json("tokenizer_config.json") and len(added) == 1:
        only = next(iter(added))
        vocab.special = {"bos": only, "eos": only}
    row = pre.by_name(vocab.pre)
    if row is not None and row.nfc != kind.nfc and not folder.pre:
        vocab.flags["nfc"] = kind.nfc
    _spaces(vocab, folder, kind)
    for role, token in zip(("bos", "eos"), kind.around, strict=True):
        vocab.flags[role] = token in texts
        if token in texts:
            vocab.special[role] = texts[token]
    vocab.notes += [note] if note else []
    if strange is not None:
        vocab.notes.append(
            f"merges.txt: {cut(merges[strange])} is of or to what is no token of vocab.json: kept, but the tokenizers "
            "library takes no such merges, and llama.cpp may split texts otherwise"
        )
    return vocab


def _spaces(vocab: Vocab, folder: Folder, kind: slow.Slow) -> None:
    stated = folder.json("tokenizer_config.json").get("add_prefix_space")
    if stated is True or (kind.leading_space and stated is not False):
        vocab.flags["leading_space"] = True
        vocab.notes.append(
            "this tokenizer puts a space before a text, which llama.cpp doesn't do for its kind: the first word of a "
            "text may get other ids there"
        )
