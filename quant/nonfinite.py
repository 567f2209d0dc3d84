"""Finding weights that a conversion must not let through: NaN, infinities, and values too large for float16.

The bit patterns of floats of one sign are ordered as integers, so two integer maxima tell whether a slab holds
any such weight: no temporary array, several GB/s.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.quant.kernels import codes as kernels

__all__ = ["F16_MAX", "first_nonfinite", "first_overflow"]

F16_MAX = 65504.0
"""The greatest finite float16."""

_INFINITE = 0x7F800000
"""The bits of a float32's infinity; those of numbers are less, those of NaN more."""
_CHUNK = 1 << 18  # weights looked at while they are in the cache; in fewer, the calls cost more than the looking


def first_nonfinite(rows: NDArray[Any], compiled: bool = False) -> int | None:
    """The flat index (row by row) of the first NaN or infinity in float64, float32, float16 or bfloat16; or None.

    compiled: a kernel may look, which whoever encodes has anyway.
    """
    if compiled and rows.dtype == np.float32 and rows.flags.c_contiguous:
        found = np.empty(1, np.int32)
        kernels.largest(rows.reshape(-1).view(np.int32), found)
        if found[0] < _INFINITE:
            return None
    return first_overflow(rows, np.inf)


def first_overflow(rows: NDArray[Any], limit: float = F16_MAX) -> int | None:
    """The flat index of the first weight that is not within -limit .. limit (NaN is not); or None.

    A limit of infinity means the type's own: then only NaN and infinities are beyond it.
    """
    signed, unsigned = np.dtype(f"i{rows.dtype.itemsize}"), np.dtype(f"u{rows.dtype.itemsize}")
    with np.errstate(over="ignore"):
        largest = np.asarray(limit, np.float64).astype(rows.dtype)
    bound = int(largest.view(unsigned))
    if not np.isfinite(np.float64(largest)) or np.float64(largest) > limit:
        bound -= 1  # the greatest value below
    sign = 1 << (8 * rows.dtype.itemsize - 1)
    flat = rows.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        bits = part.view(unsigned)
        if int(part.view(signed).max()) > bound or int(bits.max()) > sign | bound:
            return start + int(np.argmax(bits & unsigned.type(sign - 1) > bound))
    return None
