"""Integers of a few bits in words, and matrices that are read by columns."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.formats.tensor import Tensor

__all__ = ["columns", "transposed", "unpacked"]

_KEPT_BYTES = 128 << 20
"""Of matrices that are read by columns: the last ones stay in memory, or every slab would read them whole."""
_STEP_BYTES = 8 << 20


def unpacked(raw: NDArray[np.uint8], bits: int, k: int) -> NDArray[np.uint8]:
    """(n, bytes) -> (n, k): the numbers that stand in the bytes one behind another, lowest bits first.

    bits: 1 to 8.  A word of 16 or 32 bits, little-endian, holds them in the same order.
    """
    if bits == 8:
        return raw[:, :k]
    n, size = raw.shape
    mask = np.uint8((1 << bits) - 1)
    if 8 % bits == 0:
        each = 8 // bits
        out = np.empty((n, size, each), np.uint8)
        for i in range(each):
            np.right_shift(raw, np.uint8(i * bits), out=out[:, :, i])
        out &= mask
        return out.reshape(n, size * each)[:, :k]
    runs = -(-k // 8)  # eight numbers in so many bytes as they have bits
    padded = np.zeros((n, runs * bits), np.uint8)
    padded[:, :size] = raw[:, : runs * bits]
    run = padded.reshape(n, runs, bits).astype(np.uint16)
    out = np.empty((n, runs, 8), np.uint8)
    for i in range(8):
        byte, shift = divmod(i * bits, 8)
        pair = run[:, :, byte] | (run[:, :, byte + 1] << np.uint16(8) if byte + 1 < bits else np.uint16(0))
        out[:, :, i] = (pair >> np.uint16(shift)).astype(np.uint8) & mask
    return out.reshape(n, runs * 8)[:, :k]


class _Kept:
    """The matrices read last."""

    def __init__(self) -> None:
        self._arrays: OrderedDict[int, tuple[Tensor, NDArray[Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def whole(self, tensor: Tensor) -> NDArray[Any] | None:
        """All rows of a matrix, or None for one that is too large to be kept."""
        if tensor.nbytes > _KEPT_BYTES:
            return None
        with self._lock:
            found = self._arrays.pop(id(tensor), None)
            if found is None:
                found = tensor, tensor.rows()
                room = _KEPT_BYTES - tensor.nbytes
                while self._arrays and sum(t.nbytes for t, _ in self._arrays.values()) > room:
                    self._arrays.popitem(last=False)
            self._arrays[id(tensor)] = found
            return found[1]


_kept = _Kept()


def columns(tensor: Tensor, start: int, stop: int) -> NDArray[Any]:
    """Columns start..stop of a matrix as rows: (stop - start, n)."""
    whole = _kept.whole(tensor)
    if whole is not None:
        return np.ascontiguousarray(whole[:, start:stop].T)
    n = tensor.n_rows
    assert tensor.type.dtype is not None
    out = np.empty((stop - start, n), tensor.type.dtype)
    step = max(1, _STEP_BYTES // max(1, tensor.row_bytes))
    for low in range(0, n, step):
        high = min(n, low + step)
        out[:, low:high] = tensor.rows(low, high)[:, start:stop].T
    return out


def transposed(tensor: Tensor) -> Tensor:
    """A matrix of plain values with its dimensions exchanged."""
    n, m = tensor.shape
    return Tensor(tensor.name, (m, n), tensor.type, lambda start, stop: columns(tensor, start, stop).view(np.uint8))
