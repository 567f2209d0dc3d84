"""Where tokens can be cut in two tokens, quickly: by hashes of all beginnings and ends, a length at a time."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["cuts"]

_BASE = 0x9E3779B97F4A7C15  # odd, its bits well mixed; all is modulo 2**64
_LONGEST = 512
"""Characters of the tokens that are hashed, and of the first parts of longer ones."""


@functools.lru_cache(maxsize=1)
def cuts(tokens: tuple[str, ...]) -> NDArray[np.int64]:
    """(n, 4): places of a token and of the two that it is, with the length of the first: token, length, first, second.

    tokens: each is there once.  In the order of tokens, and of lengths.
    """
    found = np.concatenate([np.empty((0, 4), np.int64), *_by_hashes(tokens)])
    sure = [tokens[whole] == tokens[a] + tokens[b] for whole, _, a, b in found.tolist()]
    table = np.concatenate([found[np.array(sure, bool)], _of_long_ones(tokens)])
    table = table[np.lexsort((table[:, 1], table[:, 0]))]
    table.flags.writeable = False  # whoever asks again is given the same
    return table


def _by_hashes(tokens: Sequence[str]) -> Iterator[NDArray[np.int64]]:
    """Rows of the table, all but surely true."""
    by_length: dict[int, list[int]] = {}
    for place, token in enumerate(tokens):
        if 0 < len(token) <= _LONGEST:
            by_length.setdefault(len(token), []).append(place)
    places = {length: np.array(of, np.int64) for length, of in by_length.items()}
    begun = {length: _beginnings([tokens[i] for i in of], length) for length, of in by_length.items()}
    orders = {length: np.argsort(hashes[:, -1]) for length, hashes in begun.items()}
    known = {length: begun[length][order, -1] for length, order in orders.items()}
    for length, hashes in begun.items():
        power = 1
        for cut in range(length - 1, 0, -1):
            power = power * _BASE % (1 << 64)
            if cut not in known or length - cut not in known:
                continue
            rows, first = _among(hashes[:, cut - 1], known[cut])
            ends = hashes[rows, -1] - hashes[rows, cut - 1] * np.uint64(power)
            some, second = _among(ends, known[length - cut])
            parts = places[cut][orders[cut][first[some]]], places[length - cut][orders[length - cut][second]]
            yield np.stack([places[length][rows[some]], np.full(len(some), cut), *parts], axis=1)


def _of_long_ones(tokens: Sequence[str]) -> NDArray[np.int64]:
    long = [place for place, token in enumerate(tokens) if len(token) > _LONGEST]
    ids = {token: place for place, token in enumerate(tokens)} if long else {}
    rows = [
        (place, cut, ids[tokens[place][:cut]], ids[tokens[place][cut:]])
        for place in long
        for cut in range(1, _LONGEST)
        if tokens[place][:cut] in ids and tokens[place][cut:] in ids
    ]
    return np.array(rows, np.int64).reshape(-1, 4)


def _beginnings(tokens: list[str], length: int) -> Any:
    """[token, n]: the hash of its first n + 1 characters; that of a text is one of its characters alone."""
    data = "".join(tokens).encode("utf-32-le", "surrogatepass")
    characters = np.frombuffer(data, "<u4").reshape(-1, length).astype(np.uint64)
    out = np.empty_like(characters)
    sofar = np.zeros(len(tokens), np.uint64)
    for i in range(length):
        sofar = sofar * np.uint64(_BASE) + characters[:, i] + np.uint64(1)
        out[:, i] = sofar
    return out


def _among(values: Any, sorted_values: Any) -> tuple[Any, Any]:
    """Which of the values are among others, and at which places of those."""
    at = np.minimum(np.searchsorted(sorted_values, values), len(sorted_values) - 1)
    found = np.flatnonzero(sorted_values[at] == values)
    return found, at[found]
