"""The codebooks of the IQ1, IQ2 and IQ3 types, from the `gguf` package's tables, and what their search needs.

A codebook is a list of points in eight (IQ1, IQ2) or four (IQ3) dimensions; a weight's level there is 0, 1 or 2,
or for IQ3 0 … 7.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

_SHARED = {"IQ1_M": "IQ1_S"}


@functools.cache
def values(name: str) -> NDArray[np.uint8]:
    """The points of type `name` as decoding uses them, flat; IQ1's -1, 0 and 1 plus 1."""
    from gguf import quants

    table = getattr(quants, _SHARED.get(name, name))
    table.init_grid()
    grid = np.asarray(table.grid).reshape(-1)
    if name.startswith("IQ1"):
        grid = grid + 1
    return grid.astype(np.uint8)
