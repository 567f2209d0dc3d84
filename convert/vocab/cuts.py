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
    table = np.concatenate([np.empty((0, 4), np.int64), *_by_hashes(tokens), _of_long_ones(tokens)])
    table = table[np.lexsort((table[:, 1], table[:, 0]))]
    table.flags.writeable = False  # whoever asks again is given the same
    return table


def _by_hashes(tokens: Sequence[str]) -> Iterator[NDArray[np.int64]]:
    """Rows of the table, but for tokens that are longer."""
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    places = {int(n): np.flatnonzero(lengths == n) for n in np.unique(lengths) if 0 < n <= _LONGEST}
    letters = {length: _letters([tokens[i] for i in of.tolist()], length) for length, of in places.items()}
    begun = {length: _beginnings(of) for length, of in letters.items()}
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
            whole, a, b = rows[some], orders[cut][first[some]], orders[length - cut][second]
            mine = letters[length][whole]
            sure = (mine[:, :cut] == letters[cut][a]).all(1) & (mine[:, cut:] == letters[length - cut][b]).all(1)
            parts = places[length][whole], np.full(len(whole), cut), places[cut][a], places[length - cut][b]
            yield np.stack(parts, axis=1)[sure]


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


def _letters(tokens: list[str], length: int) -> NDArray[np.uint32]:
    """[token, n]: its n-th character's number."""
    data = "".join(tokens).encode("utf-32-le", "surrogatepass")
    return np.frombuffer(data, "<u4").reshape(-1, length)


def _beginnings(letters: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """[token, n]: the hash of its first n + 1 characters; that of a text is one of its characters alone."""
    out = np.empty(letters.shape, np.uint64)
    sofar = np.zeros(len(letters), np.uint64)
    for i in range(letters.shape[1]):
        sofar = sofar * np.uint64(_BASE) + letters[:, i] + np.uint64(1)
        out[:, i] = sofar
    return out


def _among(values: Any, sorted_values: Any) -> tuple[Any, Any]:
    """Which of the values are among others, and at which places of those."""
    at = np.minimum(np.searchsorted(sorted_values, values), len(sorted_values) - 1)
    found = np.flatnonzero(sorted_values[at] == values)
    return found, at[found]
