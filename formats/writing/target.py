"""What is to be written: tensors, and for each the places in open files where it goes and the types it takes there."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.formats.writing.checks import output_errors
from llmconv.quant.block import Bytes

__all__ = ["Item", "Proving", "Sink", "Target", "Told", "to_disk", "write_at"]

Told = Callable[[int, int], None]
"""Told of rows that are written, by the thread that wrote them."""


@dataclass(frozen=True, slots=True)
class Sink:
    """A file being written: its final path, for messages, and its descriptor, whose position is not used.

    lock: held while writing; the kernel lets one thread at a time write to a file, and makes the others spin.
    """

    path: Path
    descriptor: int
    lock: threading.Lock = field(default_factory=threading.Lock, compare=False)

    def write(self, data: memoryview, offset: int) -> None:
        """All of `data` at `offset`, and on to the disk, so that the final flush has little left to wait for."""
        with output_errors(self.path), self.lock:
            write_at(self.descriptor, data, offset)
            to_disk(self.descriptor, offset, len(data))


@dataclass(frozen=True, slots=True)
class Target:
    """Where a tensor goes.

    type: what it is stored as there.  offset: of its first byte.
    importance: (matrices, row_len) float32, one row for each stacked matrix, all zeros for one without; or None.
    change: applied to the bytes of the type before they are written (another byte order).
    """

    sink: Sink
    type: BlockClass
    offset: int
    importance: NDArray[np.float32] | None = None
    change: Callable[[Tensor, Bytes], Bytes] | None = None


@dataclass(frozen=True)
class Proving:
    """How a file is compared, while it is written, with what it was made of.

    last: tensors whose rows are told of; all others are written before them.
    begin: given the file with those others in it, its tensors to be read back; gives whom to tell of a name's rows.
    end: called when all is written, and the file has no name yet.
    """

    last: Set[str]
    begin: Callable[[Checkpoint], Callable[[str], Told | None]]
    end: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Item:
    """A tensor to read, and what is made of it."""

    tensor: Tensor
    targets: Sequence[Target]
    where: str = ""
    """The source file, for messages."""
    written: Told | None = None

    @property
    def encodes(self) -> bool:
        """Whether any target stores it as another type."""
        return self.tensor.type.is_float and any(t.type is not self.tensor.type for t in self.targets)

    @property
    def stacked_rows(self) -> int:
        """Rows of one matrix of a stack, where importance differs from matrix to matrix; else all rows."""
        shape = self.tensor.shape
        many = any(t.importance is not None and len(t.importance) > 1 for t in self.targets)
        return shape[-2] if many else self.tensor.n_rows


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done : done + (1 << 30)], offset + done)


def to_disk(descriptor: int, offset: int, nbytes: int) -> None:
    """Let the kernel begin to write that range out.  It forgets pages that are clean, and none of these is yet."""
    with contextlib.suppress(OSError, AttributeError):  # not everywhere
        os.posix_fadvise(descriptor, offset, nbytes, os.POSIX_FADV_DONTNEED)
