"""Bits that are kept apart: `planes` of `width` bits in bytes that hold as many weights as fit, a stride apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_float", "gathered", "spread"]

Whole = NDArray[Any]


def as_float(field: Whole) -> NDArray[np.float32]:
    return field.astype(np.float32)


def spread(packed: Whole, width: int, run: int) -> Whole:
    """(n, bytes) -> (n, weights): in each run of bytes the lowest bits first are the run's weights, then the next."""
    n, each = len(packed), 8 // width
    runs = packed.reshape(n, -1, 1, run)
    shifts = (np.arange(each, dtype=np.uint8) * width).reshape(1, 1, each, 1)
    return ((runs >> shifts) & ((1 << width) - 1)).reshape(n, -1)


def gathered(codes: Whole, width: int, run: int) -> Whole:
    """The inverse of `spread`."""
    n, each = len(codes), 8 // width
    parts = codes.reshape(n, -1, each, run).astype(np.uint8)
    out = np.zeros((n, parts.shape[1], run), np.uint8)
    for i in range(each):
        out |= parts[:, :, i] << (i * width)
    return out.reshape(n, -1)
