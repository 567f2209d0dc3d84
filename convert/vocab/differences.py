"""Long lists as what differs from a guess: runs of the guess, and items of their own.

Most of a tokenizer's files can be guessed from GGUF's arrays: tokens in the order of their ids, merges in that of their
scores.  What is kept is where the guess is wrong, so that nothing has to be guessed right.
"""

from __future__ import annotations

import lzma
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.vocab.cuts import cuts
from llmconv.errors import BadFile

__all__ = ["again", "away", "column", "column_again", "merges_by_score", "packed", "unpacked"]

SMALL = 2048
"""Bytes below which compressing is not worth a key that nobody can read."""
MOST = 1 << 28
"""Bytes that one file unpacks to, at most."""


def away(made: Sequence[Any], guess: Sequence[Any]) -> tuple[dict[str, Any], list[int]]:
    """`made` as runs of the guess [start, count], a start of -1 for items that are not in it (`own`); and each item's
    place in the guess, -1 for none."""
    if len(made) <= len(guess) and all(a == b for a, b in zip(made, guess, strict=False)):
        return {"runs": [[0, len(made)]]}, list(range(len(made)))
    index: dict[Any, int] = {}
    for i, item in enumerate(guess):
        index.setdefault(item, i)
    runs: list[list[int]] = []
    own, places = [], []
    after = -1
    for item in made:
        place = after if 0 <= after < len(guess) and guess[after] == item else index.get(item, -1)
        if runs and (place == -1 == runs[-1][0] or (place == after != -1)):
            runs[-1][1] += 1
        else:
            runs.append([place, 1])
        if place == -1:
            own.append(item)
        after = place + 1 if place >= 0 else -1
        places.append(place)
    return {"runs": runs, "own": own} if own else {"runs": runs}, places


def again(left: Mapping[str, Any], guess: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """The way back of `away`: the list, and the places."""
    own = iter(left.get("own", ()))
    made: list[Any] = []
    places: list[int] = []
    for start, count in left["runs"]:
        if start == -1:
            made += [next(own) for _ in range(min(count, MOST))]
            places += [-1] * (len(made) - len(places))
        else:
            made += guess[start : start + count]
            places += range(start, min(start + count, len(guess)))
    return made, places


def column(made: Sequence[Any], guess: Sequence[Any]) -> dict[str, Any]:
    """Two lists of one length as where they differ."""
    at = [i for i, (a, b) in enumerate(zip(made, guess, strict=True)) if a != b]
    return {"at": at, "is": [made[i] for i in at]} if at else {}


def column_again(left: Mapping[str, Any], guess: Sequence[Any]) -> list[Any]:
    """The way back of `column`."""
    out = list(guess)
    for i, value in zip(left.get("at", ()), left.get("is", ()), strict=True):
        out[i] = value
    return out


def merges_by_score(
    ids: Mapping[str, int], scores: NDArray[np.float32] | None
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.intp]]]:
    """Every way to cut a piece in two pieces, (n, 2) ids of the parts, and how programs order these merges.

    "parts", "lengths": the best piece first, and of one piece by the ids of its parts, or the longest first part first;
    "ids": by the piece's id.
    """
    tokens, numbers = tuple(ids), np.fromiter(ids.values(), np.int64, len(ids))
    table = cuts(tokens)
    piece, left_id, right_id = numbers[table[:, [0, 2, 3]]].T
    first, size = table[:, 1], np.fromiter(map(len, tokens), np.int64, len(tokens))[table[:, 0]]
    rank = np.zeros(len(table)) if scores is None else _at(scores, piece)
    place = np.arange(len(table))
    return np.stack([left_id, right_id], axis=1), {
        "parts": np.lexsort((right_id, left_id, piece, -rank)),
        "lengths": np.lexsort((place, first - size, -first, -rank)),
        "ids": np.lexsort((size - first, first, piece)),
    }


def _at(scores: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    inside = (ids >= 0) & (ids < len(scores))
    return np.where(inside, scores[np.where(inside, ids, 0)] if len(scores) else 0, 0).astype(np.float64)


def packed(data: bytes) -> str | NDArray[np.uint8]:
    """Bytes as a GGUF's key holds them: a text where they are a short one, else compressed (xz)."""
    if len(data) <= SMALL:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            pass
    return np.frombuffer(lzma.compress(data, check=lzma.CHECK_CRC32), np.uint8)


def unpacked(value: Any, key: str) -> bytes:
    """The way back of `packed`; `BadFile` for what it does not write."""
    if isinstance(value, str):
        return value.encode()
    try:
        reader = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MOST)
        data = reader.decompress(np.asarray(value).astype(np.uint8).tobytes(), MOST)
        if reader.eof:
            return data
    except (lzma.LZMAError, TypeError, ValueError):
        pass
    raise BadFile(f"{key}: is damaged: it can't be unpacked")
