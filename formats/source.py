"""Reading ranges of an input file that somebody else may change.

Bytes come through `pread`, never through a mapping: a mapped file that is cut meanwhile kills the process
(SIGBUS), a short read is a sentence.  The file is opened for each read, so that a model in a thousand shards
needs no thousand descriptors, and compared with what it was when its header was read.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from llmconv.errors import BadFile, at
from llmconv.formats.files import open_regular, regular_size
from llmconv.formats.places.ranges import Filled, fill
from llmconv.formats.places.remote import RemotePath
from llmconv.formats.tensor import BlockClass, Extent, Tensor
from llmconv.quant.block import Bytes

__all__ = ["Source", "read_back", "read_columns", "read_extent", "read_into", "reading"]

_MOST_AT_ONCE = 1 << 30  # Linux reads at most 2 GB in a call
_BETWEEN = 1 << 22  # bytes of rows that are read together where their columns are wanted


@dataclass(frozen=True, slots=True)
class Source:
    """A regular file as it was when it was opened: its size, time of change and identity."""

    path: Path
    size: int
    stamp: tuple[int, int, int]
    start: int = 0
    """Where it begins in the file, for one that lies inside another (see `window`)."""

    @staticmethod
    def of(path: Path) -> Source:
        if isinstance(path, RemotePath):
            regular_size(path)
            status = path.stat()
        else:
            with open_regular(path) as file:
                status = os.fstat(file.fileno())
        return Source(path, status.st_size, _stamp(status))

    def window(self, start: int, size: int) -> Source:
        """A part of it, as a file of its own."""
        self._check_range(start, size)
        return replace(self, start=self.start + start, size=size)

    def read(self, offset: int, nbytes: int) -> Bytes:
        """Exactly `nbytes` bytes from `offset`, in fresh memory."""
        self._check_range(offset, nbytes)
        out = np.empty(nbytes, np.uint8)
        self.fill(offset, out.data)
        return out

    def opened(self) -> BinaryIO:
        """It as Python reads files."""
        return io.BufferedReader(Filled(self.fill, self.size), 1 << 12)

    def _check_range(self, offset: int, nbytes: int) -> None:
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise BadFile(
                f"{at(self.path)}: ends at byte {self.size:,}, expected {nbytes:,} bytes at {offset:,}; "
                "the file is cut short, fetch it again"
            )

    def fill(self, offset: int, out: memoryview) -> None:
        """As many bytes from `offset` as `out` has (a flat one, of bytes)."""
        self._check_range(offset, len(out))
        if not len(out):
            return
        if isinstance(self.path, RemotePath):
            if self.stamp != _stamp(self.path.stat()):
                raise BadFile(f"{at(self.path)}: changed since it was opened; open it again")
            fill(self.path, self.start + offset, out)
            return
        with open_regular(self.path) as file, reading(file.fileno(), self.path, self.stamp):
            read_into(file.fileno(), out, self.start + offset)

    def tensor(self, name: str, shape: tuple[int, ...], type: BlockClass, offset: int) -> Tensor:
        """The tensor whose bytes lie at `offset`, read when asked for."""
        row = type.row_bytes(shape[-1] if shape else 1)
        tensor = Tensor(name, shape, type, lambda a, b: self.read(offset + a * row, (b - a) * row).reshape(b - a, row))
        extent = Extent(self.path, self.start + offset, tensor.nbytes, self.stamp)
        return Tensor(name, shape, type, tensor.read, extent, (self.path, extent.offset))


def read_extent(extent: Extent, out: memoryview) -> None:
    """A tensor's bytes from their file straight into `out`, a flat view of as many bytes.

    `BadFile` when the file is no longer the one that was opened.
    """
    source = Source.of(extent.path) if extent.stamp is None else Source(extent.path, extent.stamp[0], extent.stamp)
    source.fill(extent.offset, out)


def read_back(tensor: Tensor, descriptor: int) -> Tensor:
    """A tensor of a file that is still being written, and changes."""
    extent, row = tensor.extent, tensor.row_bytes
    assert extent is not None

    def read(start: int, stop: int) -> Bytes:
        out = np.empty((stop - start, row), np.uint8)
        if out.size:
            with reading(descriptor, extent.path, None):
                read_into(descriptor, out.reshape(-1).data, extent.offset + start * row)
        return out

    return replace(tensor, read=read, extent=None)


def read_columns(extent: Extent, row_bytes: int, first: int, out: Bytes) -> None:
    """Bytes `first` and on of every row of a local tensor's bytes: (rows, bytes).

    Rows are read several at a time, with what is between them, unless that is much more than what is wanted.
    """
    rows, wide = out.shape
    many = min(rows, max(1, _BETWEEN // row_bytes)) if row_bytes <= 32 * wide else 1
    room = np.empty(many * row_bytes, np.uint8)
    with open_regular(extent.path) as file, reading(file.fileno(), extent.path, extent.stamp):
        for row in range(0, rows, many):
            count = min(many, rows - row)
            size = (count - 1) * row_bytes + wide
            read_into(file.fileno(), room[:size].data, extent.offset + row * row_bytes + first)
            out[row : row + count] = np.lib.stride_tricks.as_strided(room, (count, wide), (row_bytes, 1))


@contextlib.contextmanager
def reading(descriptor: int, path: Path, stamp: tuple[int, int, int] | None) -> Iterator[None]:
    """While bytes of an open file are read: `BadFile` when it is not the one that was opened, is cut, or fails.

    stamp: what the file was when its header was read; None where nobody knows.
    """
    _check_unchanged(descriptor, path, stamp)
    try:
        yield
    except EOFError:
        raise BadFile(f"{at(path)}: was cut while it was being read; fetch it again") from None
    except OSError as error:
        raise BadFile(f"{at(path)}: can't be read ({error.strerror})") from None
    _check_unchanged(descriptor, path, stamp)


def _check_unchanged(descriptor: int, path: Path, stamp: tuple[int, int, int] | None) -> None:
    if stamp is not None and _stamp(os.fstat(descriptor)) != stamp:
        raise BadFile(f"{at(path)}: changed while it was being read; run again when nothing writes to it")


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino


def read_into(descriptor: int, out: memoryview, offset: int) -> None:
    """Fill `out` from `offset`; `EOFError` when the file ends first."""
    if hasattr(os, "preadv"):
        done = 0
        while done < len(out):
            n = os.preadv(descriptor, [out[done : done + _MOST_AT_ONCE]], offset + done)
            if n == 0:
                raise EOFError
            done += n
    else:  # Windows has no positioned reads; each call has its own descriptor, so that seeking is safe
        os.lseek(descriptor, offset, os.SEEK_SET)
        done = 0
        while done < len(out):
            piece = os.read(descriptor, min(len(out) - done, 1 << 24))
            if not piece:
                raise EOFError
            out[done : done + len(piece)] = piece
            done += len(piece)
