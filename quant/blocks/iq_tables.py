"""The codebooks of the IQ1, IQ2 and IQ3 types (`codebooks.txt`), and what their search needs.

A codebook is a list of entries: points in eight (IQ1, IQ2) or four (IQ3) dimensions with levels 0, 1, 2 or, for
IQ3, 0 … 7 in each.  A point is also a number, with the levels two (IQ3: three) bits apart, the first one lowest.
"""

from __future__ import annotations

import functools
import itertools
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmconv.quant.kernels import iq_neighbours
from llmconv.quant.kernels.compiling.cache import really

_SHARED = {"IQ1_M": "IQ1_S"}
_SHELLS = {"IQ2_XXS": 2, "IQ2_XS": 2, "IQ2_S": 1, "IQ1_S": 3, "IQ3_XXS": 2, "IQ3_S": 3}
"""How many different distances from a point count as near: `nwant` of ggml's `iq2xs_init_impl`, `iq3xs_init_impl`."""
_LOCK = threading.Lock()


class Codebook(NamedTuple):
    """A list of entries; see the module."""

    size: int
    """Dimensions."""
    bits: int
    """Between the levels of a point's number."""
    entries: NDArray[np.int64]
    """Their numbers."""
    stands_for: NDArray[np.uint8]
    """What each level is; IQ1's -1, 0 and 1 plus 1."""

    def levels(self) -> NDArray[np.uint8]:
        """The entries' levels, flat."""
        apart = self.entries[:, None] >> self.bits * np.arange(self.size)
        return (apart & (1 << self.bits) - 1).astype(np.uint8).reshape(-1)


@functools.cache
def _codebooks() -> dict[str, Codebook]:
    text = Path(__file__).with_name("codebooks.txt").read_text("ascii")
    found: dict[str, tuple[str, list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        name, colon, head = line.partition(": ")
        if colon:
            words: list[str] = []
            found[name] = head, words
        else:
            words += line.split()
    return {name: _codebook(*parts) for name, parts in found.items()}


def _codebook(head: str, words: list[str]) -> Codebook:
    numbers, _, stands_for = head.partition("; ")
    size, bits = map(int, numbers.split(", "))
    return Codebook(size, bits, np.array([int(w, 16) for w in words]), np.array(stands_for.split(), np.uint8))


def codebook(name: str) -> Codebook:
    """That of type `name`."""
    return _codebooks()[_SHARED.get(name, name)]


@functools.cache
def values(name: str) -> NDArray[np.uint8]:
    """The entries of type `name` as decoding uses them, flat; IQ1's -1, 0 and 1 plus 1."""
    book = codebook(name)
    return book.stands_for[book.levels()]


class Search(NamedTuple):
    """A codebook with the neighbours of the points that are not in it; see `kernels.iq_neighbours`."""

    levels: NDArray[np.uint8]
    """The entries' levels, flat."""
    entry: NDArray[np.int16]
    """At a point's number, the entry that it is, or -1 - its place in `first`."""
    first: NDArray[np.int32]
    """Where a point's neighbours begin in `numbers`; they end where the next one's begin."""
    numbers: NDArray[np.uint16]
    """The neighbours' numbers, the nearest first; then zeros, so that sixteen can be read from anywhere."""


def search(name: str) -> Search:
    """The tables that encoding type `name` needs; built when first asked for, once a process."""
    with _LOCK:
        return _search(_SHARED.get(name, name))


@functools.cache
def _search(name: str) -> Search:
    book = _codebooks()[name]
    levels, size, bits = book.levels(), book.size, book.bits
    entry = np.full(1 << bits * size, -1, np.int16)
    entry[book.entries] = np.arange(len(book.entries))
    every = np.array(list(itertools.product(range(len(book.stands_for)), repeat=size)), np.int32)
    every = every @ (1 << bits * np.arange(size))
    points = every[entry[every] < 0].astype(np.int32)
    entry[points] = -1 - np.arange(len(points))
    first = np.empty(len(points) + 1, np.int32)
    given = {"size": size, "bits": bits, "points": points, "shells": _SHELLS[name], "first": first}
    with really():
        iq_neighbours.neighbours(levels, **given, numbers=np.empty(0, np.uint16))
        numbers = np.zeros(first[-1] + 16, np.uint16)
        iq_neighbours.neighbours(levels, **given, numbers=numbers)
    return Search(levels, entry, first, numbers)
