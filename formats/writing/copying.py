"""Bytes that lie unchanged in an input file, copied by the kernel, one piece after another.

A disk gains nothing from two copies at once.  Tensors that follow each other in both files are copied as one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from llmconv.formats.files import open_regular
from llmconv.formats.places.remote import RemotePath
from llmconv.formats.source import read_into, reading
from llmconv.formats.tensor import Extent
from llmconv.formats.writing.checks import output_errors
from llmconv.formats.writing.target import Item, Sink, to_disk

__all__ = ["copies", "is_copied"]

_COPY_BYTES = 16 << 20  # what the kernel copies at a time: progress moves, an interrupt is noticed, the disk begins
_NOT_HERE = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM, errno.ETXTBSY}


def is_copied(item: Item, check: bool) -> bool:
    """Whether an item's bytes go as they are from one file to one other, and nobody has to look at them."""
    extent = item.tensor.extent
    if (
        extent is None
        or isinstance(extent.path, RemotePath)
        or len(item.targets) != 1
        or item.written is not None
        or (check and item.tensor.type.is_float)
    ):
        return False
    return item.targets[0].change is None and item.targets[0].type is item.tensor.type


@dataclass(frozen=True)
class _Run:
    """Items that follow each other in both files."""

    extent: Extent
    sink: Sink
    offset: int
    items: Sequence[Item]

    def followed_by(self, other: _Run) -> bool:
        a, b = self.extent, other.extent
        there = self.offset + a.nbytes == other.offset and self.sink is other.sink
        return there and a.offset + a.nbytes == b.offset and a.path == b.path and a.stamp == b.stamp


def copies(items: Iterable[Item]) -> Iterator[Callable[[], tuple[int, str, Sequence[Item]]]]:
    """Pieces of work; each gives the bytes it copied, the name of a tensor, and the items that are complete by it."""
    for run in _runs(items):
        extent = run.extent
        for start in range(0, extent.nbytes, _COPY_BYTES) or (0,):
            piece = replace(extent, offset=extent.offset + start, nbytes=min(_COPY_BYTES, extent.nbytes - start))
            last = start + piece.nbytes == extent.nbytes
            yield _piece(piece, run, run.offset + start, run.items if last else ())


def _runs(items: Iterable[Item]) -> Iterator[_Run]:
    last: _Run | None = None
    for item in items:
        target = item.targets[0]
        assert item.tensor.extent is not None
        run = _Run(item.tensor.extent, target.sink, target.offset, [item])
        if last is not None and last.followed_by(run):
            nbytes = last.extent.nbytes + run.extent.nbytes
            last = replace(last, extent=replace(last.extent, nbytes=nbytes), items=[*last.items, item])
            continue
        if last is not None:
            yield last
        last = run
    if last is not None:
        yield last


def _piece(
    extent: Extent, run: _Run, offset: int, complete: Sequence[Item]
) -> Callable[[], tuple[int, str, Sequence[Item]]]:
    def copy() -> tuple[int, str, Sequence[Item]]:
        sink = run.sink
        with open_regular(extent.path) as file, reading(file.fileno(), extent.path, extent.stamp):
            if not _kernel_copy(file.fileno(), sink, extent, offset):
                _plain_copy(file.fileno(), sink, extent, offset)
        to_disk(sink.descriptor, offset, extent.nbytes)
        return extent.nbytes, run.items[-1].tensor.name, complete

    return copy


def _kernel_copy(source: int, sink: Sink, extent: Extent, offset: int) -> bool:
    """Copy inside the kernel; False when this pair of files can't.  `EOFError` when the source ends first."""
    if not hasattr(os, "copy_file_range"):
        return False
    done = 0
    while done < extent.nbytes:
        with output_errors(sink.path):
            try:
                n = os.copy_file_range(
                    source, sink.descriptor, extent.nbytes - done, extent.offset + done, offset + done
                )
            except OSError as error:
                if done == 0 and error.errno in _NOT_HERE:
                    return False
                raise
        if n == 0:
            if done == 0:  # some virtual file systems claim to copy and copy nothing
                return False
            raise EOFError
        done += n
    return True


def _plain_copy(source: int, sink: Sink, extent: Extent, offset: int) -> None:
    buffer = memoryview(bytearray(min(extent.nbytes, 1 << 20)))
    for start in range(0, extent.nbytes, max(1, len(buffer))):
        piece = buffer[: min(len(buffer), extent.nbytes - start)]
        read_into(source, piece, extent.offset + start)
        sink.write(piece, offset + start)
