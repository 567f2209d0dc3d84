"""The quantizing stream: rows are read once, encoded to every type asked for, and written where they belong.

Each thread takes the next slab of rows, reads it, encodes it and writes it at its planned offset; nothing waits for
anything else, and system calls and kernels release the GIL.  Memory is slabs x threads, whatever the model's size.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llmconv.errors import BadFile, Unsupported, at
from llmconv.formats.files import open_regular, output_errors
from llmconv.formats.source import read_into
from llmconv.formats.stream import check_unchanged, thread_count, to_disk, write_at
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.progress import Meter
from llmconv.quant.block import Bytes
from llmconv.quant.nonfinite import first_nonfinite

__all__ = ["Item", "Sink", "Target", "stream"]

SLAB_WEIGHTS = 1 << 20
"""Weights worked on at a time by a thread; fewer when there are many threads or outputs (see `_MOST_BYTES`)."""
_MOST_BYTES = 96 << 20  # slabs of all threads together, as they are read and as they are written
_FEWEST = 1 << 14


@dataclass(frozen=True, slots=True)
class Sink:
    """A file being written: its final path, for messages, and its descriptor.

    lock: held while writing; the kernel lets one thread at a time write to a file, and makes the others spin.
    """

    path: Path
    descriptor: int
    lock: threading.Lock = field(default_factory=threading.Lock, compare=False)


@dataclass(frozen=True, slots=True)
class Target:
    """Where an encoded tensor goes.

    importance: (matrices, row_len) float32, one row for each stacked matrix; or None.
    """

    sink: Sink
    type: BlockClass
    offset: int
    importance: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """A tensor to read, and what is made of it."""

    tensor: Tensor
    targets: Sequence[Target]
    where: str = ""
    """The source file, for messages."""

    @property
    def stacked_rows(self) -> int:
        """Rows of one matrix of a stack, where importance differs from matrix to matrix; else all rows."""
        shape = self.tensor.shape
        many = any(t.importance is not None and len(t.importance) > 1 for t in self.targets)
        return shape[-2] if many else self.tensor.n_rows


def stream(
    items: Sequence[Item],
    *,
    jobs: int | None = None,
    allow_nonfinite: bool = False,
    meter: Meter | None = None,
    finished: Callable[[Item], None] | None = None,
) -> None:
    """Read, encode and write every item.

    jobs: threads; as many as this process may use processors by default.
    allow_nonfinite: let NaN and infinity through, instead of refusing them by tensor and index.
    meter: called with (bytes just read, tensor name); finished: called when all of an item is written.  Both are
        called from this thread.

    Raises `Unsupported` for a weight that is not finite or overflows its type, `BadFile` for a source that was cut or
    changed meanwhile, `OutputError` for a full disk.
    """
    jobs = thread_count(jobs)
    left: dict[int, int] = {}
    tasks = _tasks(items, jobs, left)

    def report(item: Item, nbytes: int) -> None:
        if meter is not None:
            meter(nbytes, item.tensor.name)
        left[id(item)] -= 1
        if finished is not None and left[id(item)] == 0:
            finished(item)

    if jobs == 1:
        worker = _Worker(allow_nonfinite)
        try:
            for item, start, stop in tasks:
                report(item, worker.encode(item, start, stop))
        finally:
            worker.close()
    else:
        _threaded(tasks, jobs, allow_nonfinite, report)


def _tasks(items: Sequence[Item], jobs: int, left: dict[int, int]) -> Iterator[tuple[Item, int, int]]:
    """(item, first row, last row) of every slab; `left` counts an item's slabs before the first is given out."""
    for item in items:
        rows, row_len = item.tensor.n_rows, max(1, item.tensor.row_len)
        whole = item.stacked_rows
        row_bytes = item.tensor.row_bytes + sum(t.type.row_bytes(item.tensor.row_len) for t in item.targets)
        if not item.tensor.type.is_plain():
            row_bytes += 4 * row_len  # decoded
        fitting = _MOST_BYTES // jobs // max(1, row_bytes)
        step = max(1, _FEWEST // row_len, min(SLAB_WEIGHTS // row_len, fitting))
        starts = [s for matrix in range(0, rows, max(1, whole)) for s in range(matrix, min(rows, matrix + whole), step)]
        bounds = [(s, min(s + step, rows, (s // whole + 1) * whole)) for s in starts]
        left[id(item)] = max(1, len(bounds))
        for start, stop in bounds or [(0, 0)]:
            yield item, start, stop


def _threaded(
    tasks: Iterator[tuple[Item, int, int]], jobs: int, allow_nonfinite: bool, report: Callable[[Item, int], None]
) -> None:
    lock, halt = threading.Lock(), threading.Event()
    done: SimpleQueue[tuple[Item, int] | BaseException | None] = SimpleQueue()

    def work() -> None:
        worker = _Worker(allow_nonfinite)
        try:
            while not halt.is_set():
                with lock:
                    task = next(tasks, None)
                if task is None:
                    break
                done.put((task[0], worker.encode(*task)))
        except BaseException as error:
            halt.set()
            done.put(error)
        finally:
            worker.close()
            done.put(None)

    threads = [threading.Thread(target=work, name=f"llmconv-encode-{i}", daemon=True) for i in range(jobs)]
    running, failure = 0, None
    try:
        for thread in threads:
            thread.start()
            running += 1
        while running:
            message = done.get()
            if message is None:
                running -= 1
            elif isinstance(message, BaseException):
                failure = failure or message
            else:
                report(*message)
    finally:
        halt.set()
        _join(threads)
    if failure is not None:
        raise failure


def _join(threads: Sequence[threading.Thread]) -> None:
    """Wait for all of them, whatever the user presses: they write to files that are closed next."""
    for thread in threads:
        while thread.ident is not None and thread.is_alive():
            with contextlib.suppress(KeyboardInterrupt):
                thread.join()


class _Worker:
    """What one thread needs: buffers that are used again, and the source file that is open."""

    def __init__(self, allow_nonfinite: bool):
        self._check = not allow_nonfinite
        self._buffers: dict[str, Bytes] = {}
        self._open: tuple[Path, BinaryIO] | None = None

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def encode(self, item: Item, start: int, stop: int) -> int:
        """Rows start..stop to all targets; the bytes read."""
        tensor = item.tensor
        blocks = self._read(tensor, start, stop)
        values: NDArray[Any] | None = None
        if tensor.type.is_float:
            values = self._values(tensor, blocks)
            if self._check:
                self._refuse_nonfinite(item, values, start)
        made: dict[tuple[str, int], Bytes] = {}
        for target in item.targets:
            key = (target.type.name, id(target.importance))
            if key not in made:
                made[key] = self._encoded(item, target, blocks, values, start, len(made))
            data = made[key]
            if data.size:
                descriptor, offset = target.sink.descriptor, target.offset + start * data.shape[1]
                with output_errors(target.sink.path), target.sink.lock:
                    write_at(descriptor, data.reshape(-1).data, offset)
                    to_disk(descriptor, offset, data.nbytes)
        return blocks.nbytes

    def _encoded(
        self, item: Item, target: Target, blocks: Bytes, values: NDArray[Any] | None, start: int, index: int
    ) -> Bytes:
        tensor, kind = item.tensor, target.type
        if kind is tensor.type or values is None:
            return np.ascontiguousarray(blocks)
        importance = target.importance
        if importance is not None:
            importance = importance[min(start // max(1, item.stacked_rows), len(importance) - 1)]
        n, row = len(blocks), kind.row_bytes(tensor.row_len)
        out = kind.encode(values, importance, self._buffer(f"out{index}", n * row).reshape(n, row))
        if self._check and values.dtype != np.float16:  # a scale of float16 weights can't overflow
            self._refuse_overflow(item, kind, out, start)
        return out

    def _buffer(self, name: str, nbytes: int) -> Bytes:
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < nbytes:
            buffer = self._buffers[name] = np.empty(nbytes, np.uint8)
        return buffer[:nbytes]

    def _values(self, tensor: Tensor, blocks: Bytes) -> NDArray[Any]:
        if tensor.type.is_plain():
            return tensor.type.decode(blocks)
        out = self._buffer("values", len(blocks) * tensor.row_len * 4).view(np.float32)
        return tensor.type.decode(blocks, out.reshape(len(blocks), tensor.row_len))

    def _read(self, tensor: Tensor, start: int, stop: int) -> Bytes:
        extent, row = tensor.extent, tensor.row_bytes
        if extent is None:
            return tensor.read(start, stop)
        out = self._buffer("in", (stop - start) * row)
        if len(out):
            file = self._source(extent.path)
            check_unchanged(file.fileno(), extent)
            try:
                read_into(file.fileno(), out.data, extent.offset + start * row)
            except EOFError:
                raise BadFile(f"{at(extent.path)}: was cut while it was being read; fetch it again") from None
            except OSError as error:
                raise BadFile(f"{at(extent.path)}: can't be read ({error.strerror})") from None
            check_unchanged(file.fileno(), extent)
        return out.reshape(stop - start, row)

    def _source(self, path: Path) -> BinaryIO:
        if self._open is None or self._open[0] != path:
            self.close()
            self._open = path, open_regular(path)
        return self._open[1]

    def _refuse_nonfinite(self, item: Item, values: NDArray[Any], start: int) -> None:
        index = first_nonfinite(values)
        if index is not None:
            flat = start * item.tensor.row_len + index
            place = [int(i) for i in np.unravel_index(flat, item.tensor.shape)] if item.tensor.shape else []
            raise Unsupported(
                f"{_of(item)}: weight {place} is {values.reshape(-1)[index]}; "
                "repair the model, or let it through with --allow-nonfinite"
            )

    def _refuse_overflow(self, item: Item, kind: BlockClass, out: Bytes, start: int) -> None:
        if kind.dtype is not None:
            index = first_nonfinite(kind.decode(out)) if kind.dtype.itemsize < 4 else None
            row = None if index is None else index // item.tensor.row_len
        else:
            row = _overflowed_row(kind, out)
        if row is not None:
            raise Unsupported(
                f"{_of(item)}: row {start + row} is too large for {kind.name}; "
                "choose another type for it (--tensor-type), or let it through with --allow-nonfinite"
            )


def _of(item: Item) -> str:
    name = f"tensor {item.tensor.name!r}"
    return f"{item.where}: {name}" if item.where else name


def _overflowed_row(kind: BlockClass, out: Bytes) -> int | None:
    """The first row with a float16 scale that is infinite or not a number."""
    blocks = out.reshape(-1).view(kind.layout)
    for name in kind.layout.names or ():
        if kind.layout[name] == np.float16:
            bits = blocks[name].view(np.uint16) & np.uint16(0x7C00)
            if len(bits) and bits.max() == 0x7C00:
                return int(np.argmax(bits)) // (len(blocks) // len(out))
    return None
