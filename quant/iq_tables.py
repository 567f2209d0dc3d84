"""The codebooks of the IQ1, IQ2 and IQ3 types, from the `gguf` package's tables, and what their search needs.

A codebook is a list of entries: points in eight (IQ1, IQ2) or four (IQ3) dimensions with levels 0, 1, 2 or, for
IQ3, 0 … 7 in each.  A point is also a number, with the levels two (IQ3: three) bits apart, the first one lowest.
"""

from __future__ import annotations

import functools
import itertools
import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_SHARED = {"IQ1_M": "IQ1_S"}
_SHELLS = {"IQ2_XXS": 2, "IQ2_XS": 2, "IQ2_S": 1, "IQ1_S": 3, "IQ3_XXS": 2, "IQ3_S": 3}
"""How many different distances from a point count as near: `nwant` of ggml's `iq2xs_init_impl`, `iq3xs_init_impl`."""
_LOCK = threading.Lock()


@functools.cache
def values(name: str) -> NDArray[np.uint8]:
    """The entries of type `name` as decoding uses them, flat; IQ1's -1, 0 and 1 plus 1."""
    from gguf import quants

    table = getattr(quants, _SHARED.get(name, name))
    table.init_grid()
    grid = np.asarray(table.grid).reshape(-1)
    if name.startswith("IQ1"):
        grid = grid + 1
    return grid.astype(np.uint8)


class Search(NamedTuple):
    """A codebook with the neighbours of the points that are not in it; see `kernels.iq_neighbours`."""

    levels: NDArray[np.uint8]
    """The entries' levels, flat."""
    entry: NDArray[np.int32]
    """At a point's number, the entry that it is, or -1 - its place in `first`."""
    first: NDArray[np.int32]
    """The chunk where a point's neighbours begin; they end where the next one's begin."""
    members: NDArray[np.int32]
    """The neighbours, sixteen a chunk."""
    coordinates: NDArray[np.uint8]
    """Their levels: for each chunk and dimension, sixteen."""
    counts: NDArray[np.int32]
    """How many neighbours a point has; the last chunk repeats its last one."""


def search(name: str) -> Search:
    """The tables that encoding type `name` needs; built when first asked for, once a process."""
    with _LOCK:
        return _search(_SHARED.get(name, name))


@functools.cache
def _search(name: str) -> Search:
    from llmconv.quant.kernels import iq_neighbours

    size, bits, kinds = (4, 3, 8) if name.startswith("IQ3") else (8, 2, 3)
    grid = values(name)
    levels = np.searchsorted(np.unique(grid), grid).astype(np.uint8)
    weights = 1 << bits * np.arange(size)
    entry = np.full(1 << bits * size, -1, np.int32)
    entry[levels.reshape(-1, size) @ weights] = np.arange(len(levels) // size)
    every = np.array(list(itertools.product(range(kinds), repeat=size)), np.int32) @ weights
    points = every[entry[every] < 0].astype(np.int32)
    entry[points] = -1 - np.arange(len(points))
    first = np.empty(len(points) + 1, np.int32)
    counts = np.empty(len(points), np.int32)
    arguments = levels, size, bits, points, _SHELLS[name], first, counts
    iq_neighbours.neighbours(*arguments, np.empty(0, np.int32), np.empty(0, np.uint8))
    members = np.empty(first[-1] * 16, np.int32)
    coordinates = np.empty(first[-1] * 16 * size, np.uint8)
    iq_neighbours.neighbours(*arguments, members, coordinates)
    return Search(levels, entry, first, members, coordinates, counts)
