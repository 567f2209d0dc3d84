"""Where tokens can be cut in two tokens, quickly: by hashes of all beginnings and ends, a length at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

__all__ = ["LONGEST", "cuts"]

_BASE = 0x9E3779B97F4A7C15  # odd, its bits well mixed; all is modulo 2**64
LONGEST = 512
"""Characters of the tokens that are asked about."""


def cuts(pieces: Iterable[str]) -> Iterator[tuple[str, int]]:
    """(token, cut) where token[:cut] and token[cut:] are tokens, all but surely: whoever asks looks once more."""
    by_length: dict[int, list[str]] = {}
    for token in pieces:
        if 0 < len(token) <= LONGEST:
            by_length.setdefault(len(token), []).append(token)
    begun = {length: _beginnings(tokens, length) for length, tokens in by_length.items()}
    known = {length: np.sort(hashes[:, -1]) for length, hashes in begun.items()}
    for length, tokens in by_length.items():
        hashes = begun[length]
        power = 1
        for cut in range(length - 1, 0, -1):
            power = power * _BASE % (1 << 64)
            if cut in known and length - cut in known:
                found = np.flatnonzero(_among(hashes[:, cut - 1], known[cut]))
                ends = hashes[found, -1] - hashes[found, cut - 1] * np.uint64(power)
                for i in found[_among(ends, known[length - cut])].tolist():
                    yield tokens[i], cut


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


def _among(values: Any, sorted_values: Any) -> Any:
    at = np.minimum(np.searchsorted(sorted_values, values), len(sorted_values) - 1)
    return sorted_values[at] == values
