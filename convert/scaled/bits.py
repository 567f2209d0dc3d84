"""Integers of a few bits in words, and matrices that are read by columns."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.formats.places.remote import RemotePath
from llmconv.formats.source import read_columns
from llmconv.formats.tensor import Tensor
from llmconv.quant.kernels import codes

__all__ = ["across", "columns", "stored_words", "transposed", "unpacked"]

_KEPT_BYTES = 32 << 20
"""Of matrices that are read by columns: the last strips stay in memory, or every slab would read all rows again."""
_STRIP_BYTES = 16 << 20
_STEP_BYTES, _STEP_AFAR = 1 << 19, 8 << 20
"""Of rows that are turned at a time: of a file here while they are in the cache; at least `_RUN` of them."""
_RUN = 128


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
    """The strips of columns turned last; a matrix that is not large is one strip."""

    def __init__(self) -> None:
        self._strips: OrderedDict[tuple[int, int, bool], tuple[Tensor, _Strip]] = OrderedDict()
        self._lock = threading.Lock()

    def strip(self, tensor: Tensor, column: int, places: NDArray[np.int32] | None) -> tuple[NDArray[Any], int]:
        """All rows of the strip in which a column is, as columns (`_Strip`), and its first column."""
        assert tensor.type.dtype is not None
        size, m = tensor.type.dtype.itemsize, tensor.row_len
        width = m if tensor.nbytes <= _STRIP_BYTES else max(64, _STRIP_BYTES // (size * tensor.n_rows) // 64 * 64)
        index = column // width
        key = id(tensor), index, places is None
        with self._lock:
            found = self._strips.pop(key, None)
            if found is None:
                found = tensor, _Strip(tensor, index * width, min(m, (index + 1) * width), places)
                room = _KEPT_BYTES - found[1].nbytes
                while self._strips and sum(strip.nbytes for _, strip in self._strips.values()) > room:
                    self._strips.popitem(last=False)
            self._strips[key] = found
        return found[1].turned(), index * width


_kept = _Kept()


class _Strip:
    """Columns start..stop as rows: (stop - start, n); by `places` ((stop - start) * 8, n / 8) words, see `across`.

    They are turned when somebody asks, some rows at a time, by all threads that ask.
    """

    def __init__(self, tensor: Tensor, start: int, stop: int, places: NDArray[np.int32] | None):
        n, dtype = tensor.n_rows, tensor.type.dtype
        assert dtype is not None
        wide, each = stop - start, 1 if places is None else 8
        here = tensor.extent is not None and not isinstance(tensor.extent.path, RemotePath)
        most = _STEP_BYTES if here else _STEP_AFAR
        self._step = max(_RUN, most // max(1, wide * dtype.itemsize) // _RUN * _RUN)
        self._tensor, self._columns, self._places = tensor, (start, stop), places
        self._shape = wide * each, n // each
        self._lows, self._left = iter(range(0, n, self._step)), -(-n // self._step)
        self._lock, self._whole = threading.Lock(), threading.Event()
        self._out: NDArray[Any] | None = None
        self._error: BaseException | None = None
        self.nbytes = wide * n * dtype.itemsize

    def turned(self) -> NDArray[Any]:
        with self._lock:
            if self._out is None:
                self._out = np.empty(self._shape, self._tensor.type.dtype)
            out = self._out
        while not self._whole.is_set():
            with self._lock:
                low = next(self._lows, None)
            if low is None:
                if self._left:
                    self._whole.wait()
                break
            self._turn(out, low)
        if self._error is not None:
            raise self._error
        return out

    def _turn(self, out: NDArray[Any], low: int) -> None:
        try:
            self._turn_rows(out, low)
        except BaseException as error:  # whoever waits must know it
            self._error = error
        finally:
            with self._lock:
                self._left -= 1
                if not self._left:
                    self._whole.set()

    def _turn_rows(self, out: NDArray[Any], low: int) -> None:
        tensor, (start, stop), n = self._tensor, self._columns, self._tensor.n_rows
        rows, wide = _read(tensor, low, min(n, low + self._step), start, stop), stop - start
        if self._places is not None:
            words, flat = rows.view(np.int32).reshape(-1), out.view(np.float32).reshape(-1)
            codes.turn_numbers(words, wide, low // 8, n // 8, self._places, flat)
        elif out.itemsize == 4:
            codes.turn(rows.view(np.float32).reshape(-1), wide, low, n, out.view(np.float32).reshape(-1))
        else:
            out[:, low : low + len(rows)] = rows.T


def _read(tensor: Tensor, low: int, high: int, start: int, stop: int) -> NDArray[Any]:
    """Columns start..stop of rows low..high."""
    dtype, extent, size = tensor.type.dtype, tensor.extent, tensor.row_bytes
    assert dtype is not None
    if extent is None or isinstance(extent.path, RemotePath) or stop - start == tensor.row_len:
        return np.ascontiguousarray(tensor.rows(low, high)[:, start:stop])
    out = np.empty((high - low, stop - start), dtype)
    part = dataclasses.replace(extent, offset=extent.offset + low * size, nbytes=(high - low) * size)
    read_columns(part, size, start * dtype.itemsize, out.view(np.uint8))
    return out


def _strips(tensor: Tensor, start: int, stop: int, places: NDArray[np.int32] | None = None) -> Iterator[NDArray[Any]]:
    """What strips hold of columns start..stop, turned."""
    at, each = start, 1 if places is None else 8
    while at < stop:
        strip, first = _kept.strip(tensor, at, places)
        end = min(stop, first + len(strip) // each)
        yield strip[(at - first) * each : (end - first) * each]
        at = end


def columns(tensor: Tensor, start: int, stop: int) -> NDArray[Any]:
    """Columns start..stop of a matrix as rows: (stop - start, n)."""
    assert tensor.type.dtype is not None
    return _joined(list(_strips(tensor, start, stop)), (0, tensor.n_rows), tensor.type.dtype)


def across(tensor: Tensor, start: int, stop: int, places: NDArray[np.int32]) -> NDArray[np.int32]:
    """Columns start..stop of a matrix of words, eight numbers of four bits side by side, as rows of such words: eight
    for each.

    places: which of the eight each number of a word, lowest first, is in.   The matrix has a multiple of 8 rows.
    """
    return _joined(list(_strips(tensor, start, stop, places)), (0, tensor.n_rows // 8), np.dtype(np.int32))


def stored_words(packed: Tensor, bits: int, k: int) -> Callable[[int, int], NDArray[np.int32]] | None:
    """The words of rows of four bits as they are stored (`Coded.words`); None of other bits."""
    if bits != 4 or k % 8 or packed.row_bytes != k // 2:
        return None
    return lambda start, stop: np.ascontiguousarray(packed.blocks(start, stop)).view(np.int32)


def _joined(parts: list[NDArray[Any]], none: tuple[int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    if not parts:
        return np.empty(none, dtype)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def transposed(tensor: Tensor) -> Tensor:
    """A matrix of plain values with its dimensions exchanged."""
    n, m = tensor.shape
    return Tensor(tensor.name, (m, n), tensor.type, lambda start, stop: columns(tensor, start, stop).view(np.uint8))
