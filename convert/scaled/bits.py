"""Integers of a few bits in words, and matrices that are read by columns."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.formats.places.remote import RemotePath
from llmconv.formats.source import read_columns
from llmconv.formats.tensor import Tensor
from llmconv.quant.kernels import codes

__all__ = ["across", "columns", "down", "transposed", "unpacked"]

_KEPT_BYTES = 64 << 20
"""Of matrices that are read by columns: the last strips stay in memory, or every slab would read all rows again."""
_STRIP_BYTES = 16 << 20
_STEP_BYTES = 8 << 20


def unpacked(raw: NDArray[np.uint8], bits: int, k: int, less: int = 0) -> NDArray[np.uint8]:
    """(n, bytes) -> (n, k): the numbers that stand in the bytes one behind another, lowest bits first.

    bits: 1 to 8.  A word of 16 or 32 bits, little-endian, holds them in the same order.
    less: what is taken off each, as int8.
    """
    if less and bits != 4:
        return unpacked(raw, bits, k) - np.uint8(less)
    if bits == 8:
        return raw[:, :k]
    n, size = raw.shape
    if bits == 4:
        words = np.ascontiguousarray(raw if size % 4 == 0 else np.pad(raw, ((0, 0), (0, -size % 4)))).view(np.int32)
        wide = np.empty(words.shape, np.uint64)
        codes.unpack_along(words.reshape(-1), less, wide.reshape(-1))
        return wide.view(np.uint8)[:, :k]
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
    """The strips of columns read last; a matrix that is not large is one strip."""

    def __init__(self) -> None:
        self._strips: OrderedDict[tuple[int, int], tuple[Tensor, NDArray[Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def strip(self, tensor: Tensor, column: int) -> tuple[NDArray[Any], int]:
        """All rows of the strip in which a column is, contiguous, and its first column."""
        assert tensor.type.dtype is not None
        size, m = tensor.type.dtype.itemsize, tensor.row_len
        width = m if tensor.nbytes <= _STRIP_BYTES else max(64, _STRIP_BYTES // (size * tensor.n_rows) // 64 * 64)
        index = column // width
        with self._lock:
            found = self._strips.pop((id(tensor), index), None)
            if found is None:
                found = tensor, _read(tensor, index * width, min(m, (index + 1) * width))
                room = _KEPT_BYTES - found[1].nbytes
                while self._strips and sum(array.nbytes for _, array in self._strips.values()) > room:
                    self._strips.popitem(last=False)
            self._strips[id(tensor), index] = found
        return found[1], index * width


_kept = _Kept()


def _read(tensor: Tensor, start: int, stop: int) -> NDArray[Any]:
    """Columns start..stop of all rows."""
    n, dtype = tensor.n_rows, tensor.type.dtype
    assert dtype is not None
    if stop - start == tensor.row_len:
        return np.ascontiguousarray(tensor.rows())
    out = np.empty((n, stop - start), dtype)
    if tensor.extent is not None and not isinstance(tensor.extent.path, RemotePath):
        read_columns(tensor.extent, tensor.row_bytes, start * dtype.itemsize, out.view(np.uint8))
        return out
    step = max(1, _STEP_BYTES // max(1, tensor.row_bytes))
    for low in range(0, n, step):
        high = min(n, low + step)
        out[low:high] = tensor.rows(low, high)[:, start:stop]
    return out


def _strips(tensor: Tensor, start: int, stop: int) -> Iterator[tuple[NDArray[Any], int, int, int]]:
    """Strips that hold columns start..stop: the strip, the first of its columns, how many, and their place."""
    at = start
    while at < stop:
        strip, first = _kept.strip(tensor, at)
        count = min(stop, first + strip.shape[1]) - at
        yield strip, at - first, count, at - start
        at += count


def columns(tensor: Tensor, start: int, stop: int) -> NDArray[Any]:
    """Columns start..stop of a matrix as rows: (stop - start, n)."""
    assert tensor.type.dtype is not None
    out = np.empty((stop - start, tensor.n_rows), tensor.type.dtype)
    for strip, first, count, at in _strips(tensor, start, stop):
        out[at : at + count] = strip[:, first : first + count].T
    return out


def down(tensor: Tensor, start: int, stop: int) -> NDArray[np.uint8]:
    """Columns start..stop of a matrix of words, eight numbers of four bits one below the other, as rows."""
    out = np.empty((stop - start, tensor.n_rows), np.uint64)
    for strip, first, count, at in _strips(tensor, start, stop):
        codes.unpack_down(strip.reshape(-1), strip.shape[1], first, count, out[at : at + count].reshape(-1))
    return out.view(np.uint8)


def across(tensor: Tensor, start: int, stop: int, places: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Columns start..stop of a matrix of words, eight numbers of four bits side by side, as rows: eight for each.

    places: which of the eight each number of a word, lowest first, is in.   The matrix has a multiple of 8 rows.
    """
    out = np.empty((stop - start, tensor.n_rows), np.uint64)
    for strip, first, count, at in _strips(tensor, start, stop):
        codes.unpack_across(strip.reshape(-1), strip.shape[1], first, count, places, out[at : at + count].reshape(-1))
    return out.view(np.uint8).reshape((stop - start) * 8, tensor.n_rows)


def transposed(tensor: Tensor) -> Tensor:
    """A matrix of plain values with its dimensions exchanged."""
    n, m = tensor.shape
    return Tensor(tensor.name, (m, n), tensor.type, lambda start, stop: columns(tensor, start, stop).view(np.uint8))
