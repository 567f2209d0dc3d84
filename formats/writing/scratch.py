"""What does not fit into memory for a while: bytes in a temporary file without a name."""

from __future__ import annotations

import mmap
import tempfile
import weakref
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from llmconv.errors import OutputError, at
from llmconv.formats.source import read_into
from llmconv.formats.writing.checks import output_errors
from llmconv.formats.writing.target import write_at
from llmconv.quant.block import Bytes

__all__ = ["Pages", "Rows", "Scratch"]


class Scratch:
    """Bytes that are put aside, in TMPDIR.  The file is made when it is used, and no end of the program leaves it."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._end = 0

    def add(self, data: memoryview) -> int:
        """Keep a flat view of bytes; where it is."""
        offset = self.room(len(data))
        self.put(data, offset)
        return offset

    def room(self, nbytes: int) -> int:
        """So many bytes for later."""
        offset, self._end = self._end, self._end + nbytes
        return offset

    def put(self, data: memoryview, offset: int) -> None:
        """Write at a place that `add` or `room` gave."""
        with output_errors(_place()):
            write_at(self._opened().fileno(), data, offset)

    def fill(self, out: memoryview, offset: int) -> None:
        """Read as many bytes as `out`, a flat view, has."""
        try:
            read_into(self._opened().fileno(), out, offset)
        except (OSError, EOFError) as error:
            raise OutputError(f"{at(_place())}: a temporary file there can't be read ({error})") from None

    def pages(self, offset: int, nbytes: int) -> Pages:
        """A part of it as memory that the kernel fills when it is touched."""
        return Pages(self._opened().fileno(), offset, nbytes)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._end = 0

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            with output_errors(_place()):
                self._file = tempfile.TemporaryFile(prefix="llmconv-")  # noqa: SIM115
            weakref.finalize(self, self._file.close)  # for whoever forgets to
        return self._file


class Rows:
    """Rows of bytes that were put aside, read when they are asked for: `rows[start:stop]`."""

    def __init__(self, scratch: Scratch, rows: Bytes):
        whole = np.ascontiguousarray(rows)
        self.shape, self._scratch = whole.shape, scratch
        self._offset = scratch.add(whole.reshape(-1).data)

    def __getitem__(self, some: slice) -> Bytes:
        start, stop, _ = some.indices(self.shape[0])
        out = np.empty((max(0, stop - start), self.shape[1]), np.uint8)
        self._scratch.fill(out.reshape(-1).data, self._offset + start * self.shape[1])
        return out


class Pages:
    """A mapped part of a file, which outlives its name and the `Scratch` it is of."""

    def __init__(self, descriptor: int, offset: int, nbytes: int):
        start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        self._skip, self._nbytes = offset - start, nbytes
        self._map = mmap.mmap(descriptor, self._skip + nbytes, access=mmap.ACCESS_READ, offset=start)

    def array(self, dtype: Any) -> NDArray[Any]:
        """All of it, (n,), not to be written to."""
        kind = np.dtype(dtype)
        return np.frombuffer(self._map, kind, self._nbytes // kind.itemsize, self._skip)

    def let_go(self) -> None:
        """What was touched is no longer this process's memory; it is there again when it is touched again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def _place() -> Path:
    return Path(tempfile.gettempdir())
