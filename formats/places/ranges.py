"""Ranges of remote files, fetched in pieces by several threads, ahead of who reads on.

A long read takes whole pieces, and those behind them are fetched meanwhile; a short one (a header) takes little more
than itself.  Pieces are kept until newer ones need their room, so that memory has a bound whatever the model's size.
"""

from __future__ import annotations

import functools
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from llmconv.errors import BadFile, at
from llmconv.formats.places.remote import RemotePath, Store

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["Filled", "expect", "fill", "open_remote"]

_PIECE = 4 << 20
_FIRST = 256 << 10  # of a file's first bytes, where headers are; and the least that is fetched
_LONG = 1 << 20  # a read of so many bytes is of weights
_AHEAD = 6  # pieces
_MOST = 64 << 20  # bytes kept
_THREADS = 8

_Key = tuple[Store, str, int, int]
"""Store, file in it, offset, bytes; a store that is asked anew is another, which may have other bytes."""


class _Pieces:
    """What was fetched lately or is being fetched."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a piece that failed at once is forgotten by who asked for it
        self._found: OrderedDict[_Key, Future[bytes]] = OrderedDict()
        self._threads: ThreadPoolExecutor | None = None
        self._kept = 0

    @property
    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            from concurrent.futures import ThreadPoolExecutor  # with it logging: not for local files

            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="llmconv-fetch")
        return self._threads

    def ask(self, path: RemotePath, offset: int, size: int) -> Future[bytes]:
        """The bytes of a piece, as soon as they are there."""
        key = path.store, path.within, offset, size
        with self._lock:
            found = self._found.get(key)
            if found is None:
                found = self._found[key] = self._pool.submit(path.store.read, path.within, offset, size)
                self._kept += size
                found.add_done_callback(lambda done: self._forget_failed(key, done))
            else:
                self._found.move_to_end(key)
            self._shrink()
            return found

    def has(self, path: RemotePath, offset: int, size: int) -> bool:
        with self._lock:
            return (path.store, path.within, offset, size) in self._found

    def _shrink(self) -> None:
        for key in list(self._found):
            if self._kept <= _MOST:
                return
            if self._found[key].done():
                self._kept -= key[3]
                del self._found[key]

    def _forget_failed(self, key: _Key, done: Future[bytes]) -> None:
        if done.cancelled() or done.exception() is not None:
            with self._lock:
                if self._found.pop(key, None) is not None:
                    self._kept -= key[3]


_pieces = _Pieces()


def fill(path: RemotePath, offset: int, out: memoryview) -> None:
    """As many bytes from `offset` as `out` has; they are known to be within the file."""
    size = path.stat().st_size
    end = offset + len(out)
    if not len(out):
        return
    if end <= min(_FIRST, size):
        out[:] = _pieces.ask(path, 0, min(_FIRST, size)).result()[offset:end]
        return
    first, last = offset // _PIECE, (end - 1) // _PIECE
    known = all(_pieces.has(path, *_range(i, size)) for i in range(first, last + 1))
    if len(out) < _LONG and not known:
        start = max(0, min(offset, size - _FIRST))
        piece = _pieces.ask(path, start, min(max(_FIRST, end - start), size - start)).result()
        out[:] = piece[offset - start : end - start]
        return
    for i in range(first, min(last + _AHEAD + 1, -(-size // _PIECE))):  # those beyond the last: ahead
        if i <= first + 2 * _AHEAD:
            _pieces.ask(path, *_range(i, size))
    for i in range(first, last + 1):
        start, length = _range(i, size)
        piece = _pieces.ask(path, start, length).result()
        lo, hi = max(offset, start), min(end, start + length)
        out[lo - offset : hi - offset] = piece[lo - start : hi - start]


def _range(i: int, size: int) -> tuple[int, int]:
    return i * _PIECE, min(_PIECE, size - i * _PIECE)


def expect(files: Iterable[Path]) -> None:
    """The headers of these files are read soon: those that are remote are fetched together."""
    for file in files:
        if isinstance(file, RemotePath) and (entry := file.entry) is not None and entry.size:
            _pieces.ask(file, 0, min(_FIRST, entry.size))


def open_remote(path: RemotePath, expected: str = "a model file") -> BinaryIO:
    """The file, buffered; `BadFile` when it is not there."""
    entry = path.entry
    if entry is None:
        what = f"is a folder, expected {expected}" if path.is_dir() else "no such file; check the path"
        raise BadFile(f"{at(path)}: {what}")
    return io.BufferedReader(Filled(functools.partial(fill, path), entry.size), 1 << 16)


class Filled(io.RawIOBase):
    """Bytes as Python reads files.   fill(offset, out): puts as many into `out` as it has.   size: of them all."""

    def __init__(self, fill: Callable[[int, memoryview], None], size: int):
        self._fill, self._size, self._position = fill, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = max(0, offset + (0, self._position, self._size)[whence])
        return self._position

    def readinto(self, out: Any) -> int:
        view = memoryview(out).cast("B")
        n = max(0, min(len(view), self._size - self._position))
        self._fill(self._position, view[:n])
        self._position += n
        return n
