"""Byte-level BPE by ranks: Mistral's `tekken.json` and Llama 3's `tokenizer.model` (tiktoken's) -> `Vocab`.

Both merge the pair whose joined bytes have the lowest rank, wherever they may be cut; so every cut of a token into two
known ones becomes a merge, in the order of what they make, as Hugging Face's converter writes them.
Sources: mistral-common (`tekken.py`), meta-llama/llama-models (`llama3/tokenizer.py`).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmconv.convert.vocab import pre
from llmconv.convert.vocab.alphabet import alphabet
from llmconv.convert.vocab.model import BPE, TokenType, Vocab
from llmconv.convert.vocab.read.folder import MAX_ID, Folder
from llmconv.errors import BadFile, cut

__all__ = ["TEKKEN", "is_tiktoken", "tekken", "tiktoken"]

TEKKEN = "tekken.json"
_LINE = re.compile(rb"[A-Za-z0-9+/]{2,}={0,2} \d{1,8}\r?\n")
_CHARACTERS = {byte: character for character, byte in alphabet().items()}
_LONGEST = 4096  # bytes of a token; the longest of any model has some hundred

# What files of before tekken's version 7 leave out (`DEPRECATED_SPECIAL_TOKENS`).
_TEKKEN_SPECIAL = (
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CALLS] "
    "[IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]"
)
_LLAMA_SPECIAL = 256
# By their place behind the ranks; the others are <|reserved_special_token_N|>, counted on.
_LLAMA3 = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}
_LLAMA31 = {**_LLAMA3, 4: "finetune_right_pad_id", 8: "eom_id", 10: "python_tag"}


def is_tiktoken(data: bytes) -> bool:
    """Whether a tokenizer.model is tiktoken's: lines of base64 and a rank."""
    return _LINE.match(data) is not None


def tekken(folder: Folder) -> Vocab:
    """Mistral's: special tokens first, then as many of the ranks as the vocabulary has room for."""
    whole = folder.json(TEKKEN)
    config = whole.get("config")
    sizes = [config.get(k) if isinstance(config, dict) else None for k in ("default_vocab_size", _N_SPECIAL)]
    size, n_special = (n if isinstance(n, int) and 0 < n < MAX_ID else 0 for n in sizes)
    entries = whole.get("vocab")
    if not n_special < size or not isinstance(entries, list) or len(entries) < size - n_special:
        raise BadFile(f"{TEKKEN}: does not state its sizes, or holds fewer tokens than it states; fetch it again")
    pieces: list[bytes | None] = [None] * (size - n_special)
    for entry in entries:
        rank = entry.get("rank") if isinstance(entry, dict) else None
        if not isinstance(rank, int) or rank < 0:
            raise BadFile(f"{TEKKEN}: has the entry {cut(entry)}, expected a token with a rank; fetch it again")
        if rank < len(pieces):
            pieces[rank] = _bytes(entry.get("token_bytes"), TEKKEN)
    special = _tekken_special(whole.get("special_tokens"), n_special)
    vocab = _vocab([name for name, _ in special], pieces, TEKKEN, before=True)
    assert vocab.types is not None
    for id, (_, control) in enumerate(special):
        vocab.types[id] = TokenType.CONTROL if control else TokenType.USER_DEFINED
    vocab.special = {role: id for role, id in (("unk", 0), ("bos", 1), ("eos", 2), ("pad", 11)) if id < n_special}
    pattern = config.get("pattern")
    known = next((row for row in pre.TABLE if row.patterns == (pattern,) and not row.after), None)
    vocab.pre = folder.pre or (known.names[0] if known else "tekken")
    if known is None and not folder.pre:
        vocab.notes.append(
            f"{TEKKEN} splits text in a way that is not known here; --pre NAME names one, tekken is taken"
        )
    vocab.flags["bos"] = True
    return vocab


_N_SPECIAL = "default_num_special_tokens"


def _tekken_special(stated: Any, count: int) -> list[tuple[str, bool]]:
    """(text, whether it is a control token) of each special token."""
    found = [(f"<SPECIAL_{i}>", True) for i in range(count)]
    if stated is None:
        known = _TEKKEN_SPECIAL.split()[:count]
        found[: len(known)] = [(name, True) for name in known]
        return found
    for entry in stated if isinstance(stated, list) else [stated]:
        rank, text = (entry.get(k) if isinstance(entry, dict) else None for k in ("rank", "token_str"))
        if not isinstance(rank, int) or not 0 <= rank < count or not isinstance(text, str):
            raise BadFile(f"{TEKKEN}: has the special token {cut(entry)}, expected a text and a rank below {count}")
        found[rank] = (text, entry.get("is_control") is not False)
    return found


def tiktoken(folder: Folder, name: str) -> Vocab:
    """Llama 3's: the ranks, and behind them 256 special tokens, whose names the program knows."""
    pieces: list[bytes | None] = []
    for number, line in enumerate(folder.files[name].splitlines()):
        parts = line.split()
        if not parts:
            continue
        rank = int(parts[1]) if len(parts) == 2 and parts[1].isdigit() and len(parts[1]) < 9 else -1
        if rank != len(pieces):
            raise BadFile(f"{name}: line {number + 1} is {cut(line)}, expected base64 and the rank {len(pieces)}")
        pieces.append(_bytes(parts[0], name))
    scaled = folder.setting("rope_scaling") or folder.setting("rope_parameters")
    newer = isinstance(scaled, Mapping) and scaled.get("rope_type") == "llama3"
    names, count = _LLAMA31 if newer else _LLAMA3, -1
    special = []
    for i in range(_LLAMA_SPECIAL):
        count += i not in names
        special.append(f"<|{names[i]}|>" if i in names else f"<|reserved_special_token_{count}|>")
    vocab = _vocab(special, pieces, name, before=False)
    n = len(pieces)
    vocab.special = {"bos": n, "eos": n + 1, "eot": n + 9} | ({"eom": n + 8, "pad": n + 4} if newer else {})
    vocab.pre = folder.pre or "llama-bpe"
    vocab.flags["bos"] = True
    return vocab


def _bytes(text: Any, where: str) -> bytes:
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        found = b""
    if not 0 < len(found) <= _LONGEST:
        raise BadFile(f"{where}: holds the token {cut(text)}, expected base64 of some bytes; fetch it again")
    return found


def _vocab(special: Sequence[str], pieces: Sequence[bytes | None], where: str, *, before: bool) -> Vocab:
    """The vocabulary of these ranks, the special tokens before or behind them."""
    ranks: dict[bytes, int] = {}
    for i, piece in enumerate(pieces):
        if piece is None or ranks.setdefault(piece, i) != i:
            raise BadFile(f"{where}: rank {i} {'is missing' if piece is None else 'repeats a token'}; fetch it again")
    if len(ranks) < 256 or any(bytes([b]) not in ranks for b in range(256)):
        raise BadFile(f"{where}: lacks some of the 256 bytes, expected them among the tokens; fetch it again")
    texts = {piece: "".join(_CHARACTERS[b] for b in piece) for piece in ranks}
    tokens = [*special, *texts.values()] if before else [*texts.values(), *special]
    types = np.full(len(tokens), TokenType.NORMAL, np.int32)
    types[slice(0, len(special)) if before else slice(len(ranks), None)] = TokenType.CONTROL
    return Vocab(BPE, tokens, types, merges=_merges(ranks, texts))


def _merges(ranks: Mapping[bytes, int], texts: Mapping[bytes, str]) -> list[str]:
    """Every cut of a token into two known ones, by the rank of the token, then by those of its two parts."""
    out = []
    for piece in ranks:
        cuts = [
            (ranks[piece[:i]], ranks[piece[i:]], i)
            for i in range(1, len(piece))
            if piece[:i] in ranks and piece[i:] in ranks
        ]
        out += [f"{texts[piece[:i]]} {texts[piece[i:]]}" for _, _, i in sorted(cuts)]
    return out
