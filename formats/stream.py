"""Writing tensors into an open file at planned offsets: the last step of every binary container.

Bytes that lie unchanged in an input file are copied by the kernel, one piece after another: a disk gains nothing
from two copies at once.  The rest flows slab by slab on a bounded number of threads (kernels and system calls
release the GIL), so that memory is slabs x threads, whatever the model's size.  Each written piece is handed to
the disk at once, so that the final flush has little left to wait for.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np

from llmconv.errors import BadFile, UsageError, at
from llmconv.formats.files import open_regular
from llmconv.formats.source import read_into
from llmconv.formats.tensor import SLAB_BYTES, Extent, Tensor
from llmconv.progress import Meter
from llmconv.quant.block import Bytes

__all__ = ["check_unchanged", "processors", "thread_count", "to_disk", "write_at", "write_tensors"]

_COPY_BYTES = 16 << 20  # what the kernel copies at a time: progress moves, an interrupt is noticed, the disk begins
_NOT_HERE = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM, errno.ETXTBSY}


def write_tensors(
    descriptor: int,
    plan: Sequence[tuple[Tensor, int]],
    *,
    jobs: int | None = None,
    meter: Meter | None = None,
    convert: Callable[[Tensor, Bytes], Bytes] | None = None,
) -> None:
    """Write each tensor of `plan` at its offset.

    descriptor: an open file, long enough or growing; its position is not used.
    jobs: threads; as many as this process may use processors by default.
    convert: applied to each slab's bytes before they are written (another byte order); nothing is then copied
        by the kernel.

    Raises `BadFile` when an input was cut or changed meanwhile, and whatever reading and writing raise.
    """
    jobs = thread_count(jobs)
    copies, slabs = _copies(descriptor, plan, convert), _slabs(descriptor, plan, convert)
    with ThreadPoolExecutor(jobs, thread_name_prefix="llmconv-write") as pool:  # starts threads as they are needed
        pending: set[Future[tuple[int, str]]] = set()
        try:
            while True:
                for task in itertools.islice(slabs, jobs + 1 - len(pending)):  # one waits, so that no thread does
                    try:
                        pending.add(pool.submit(task))
                    except RuntimeError:  # no more threads to be had: work without
                        _report(task(), meter)
                copy = next(copies, None)
                if copy is not None:
                    _report(copy(), meter)
                elif not pending:
                    break
                done, pending = wait(pending, 0 if copy else None, FIRST_COMPLETED)
                for future in done:
                    _report(future.result(), meter)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def thread_count(jobs: int | None) -> int:
    """How many threads `jobs` asks for: None stands for a thread a processor; more than 256 are none the faster."""
    return max(1, min(jobs or processors(), 256))


def processors() -> int:
    """How many this process may use, which in a container is fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _report(done: tuple[int, str], meter: Meter | None) -> None:
    if meter is not None:
        meter(*done)


Task = Callable[[], tuple[int, str]]


Convert = Callable[[Tensor, Bytes], Bytes]


def _copies(descriptor: int, plan: Sequence[tuple[Tensor, int]], convert: Convert | None) -> Iterator[Task]:
    copies = [(t.extent, offset, t.name) for t, offset in plan if t.extent is not None and convert is None]
    for extent, offset, name in _merged(copies):
        for start in range(0, extent.nbytes, _COPY_BYTES):
            nbytes = min(_COPY_BYTES, extent.nbytes - start)
            piece = Extent(extent.path, extent.offset + start, nbytes, extent.stamp)
            yield _copy_task(descriptor, piece, offset + start, name)


def _slabs(descriptor: int, plan: Sequence[tuple[Tensor, int]], convert: Convert | None) -> Iterator[Task]:
    for tensor, offset in plan:
        if tensor.extent is None or convert is not None:
            for start, stop in tensor.slabs(SLAB_BYTES):
                yield _slab_task(descriptor, tensor, start, stop, offset, convert)


def _merged(copies: Iterable[tuple[Extent, int, str]]) -> Iterator[tuple[Extent, int, str]]:
    """Extents that follow each other in both files, as one."""
    last: tuple[Extent, int, str] | None = None
    for extent, offset, name in copies:
        if last is not None:
            before, at_, _ = last
            follows = before.offset + before.nbytes == extent.offset and at_ + before.nbytes == offset
            if follows and before.path == extent.path and before.stamp == extent.stamp:
                joined = Extent(before.path, before.offset, before.nbytes + extent.nbytes, before.stamp)
                last = joined, at_, name
                continue
            yield last
        last = extent, offset, name
    if last is not None:
        yield last


def _slab_task(
    descriptor: int,
    tensor: Tensor,
    start: int,
    stop: int,
    offset: int,
    convert: Convert | None,
) -> Task:
    def run() -> tuple[int, str]:
        blocks = tensor.read(start, stop)
        row = tensor.row_bytes
        if blocks.shape != (stop - start, row) or blocks.dtype != np.uint8:
            raise UsageError(
                f"tensor {tensor.name!r} gave rows {start}..{stop} as {blocks.dtype} {blocks.shape}, "
                f"expected uint8 {(stop - start, row)}"
            )
        if convert is not None:
            blocks = convert(tensor, blocks)
        write_at(descriptor, np.ascontiguousarray(blocks).reshape(-1).data, offset + start * row)
        to_disk(descriptor, offset + start * row, blocks.nbytes)
        return blocks.nbytes, tensor.name

    return run


def _copy_task(descriptor: int, extent: Extent, offset: int, name: str) -> Task:
    def run() -> tuple[int, str]:
        with open_regular(extent.path) as file:
            source = file.fileno()
            check_unchanged(source, extent)
            if not _kernel_copy(source, descriptor, extent, offset):
                _plain_copy(source, descriptor, extent, offset)
            check_unchanged(source, extent)
        to_disk(descriptor, offset, extent.nbytes)
        return extent.nbytes, name

    return run


def check_unchanged(source: int, extent: Extent) -> None:
    """`BadFile` when the open file `source` is no longer what it was when the extent was made."""
    status = os.fstat(source)
    if extent.stamp is not None and (status.st_size, status.st_mtime_ns, status.st_ino) != extent.stamp:
        raise BadFile(f"{at(extent.path)}: changed while it was being read; run again when nothing writes to it")


def _cut(path: Path) -> BadFile:
    return BadFile(f"{at(path)}: was cut while it was being read; fetch it again")


def _kernel_copy(source: int, target: int, extent: Extent, offset: int) -> bool:
    """Copy inside the kernel; False when this pair of files can't."""
    if not hasattr(os, "copy_file_range"):
        return False
    done = 0
    while done < extent.nbytes:
        try:
            n = os.copy_file_range(source, target, extent.nbytes - done, extent.offset + done, offset + done)
        except OSError as error:
            if done == 0 and error.errno in _NOT_HERE:
                return False
            raise
        if n == 0:
            if done == 0:  # some virtual file systems claim to copy and copy nothing
                return False
            raise _cut(extent.path)
        done += n
    return True


def _plain_copy(source: int, target: int, extent: Extent, offset: int) -> None:
    buffer = memoryview(bytearray(min(extent.nbytes, 1 << 20)))
    for start in range(0, extent.nbytes, len(buffer)):
        piece = buffer[: min(len(buffer), extent.nbytes - start)]
        try:
            read_into(source, piece, extent.offset + start)
        except EOFError:
            raise _cut(extent.path) from None
        write_at(target, piece, offset + start)


def to_disk(descriptor: int, offset: int, nbytes: int) -> None:
    """Let the kernel begin to write that range out.  It forgets pages that are clean, and none of these is yet."""
    with contextlib.suppress(OSError, AttributeError):  # not everywhere
        os.posix_fadvise(descriptor, offset, nbytes, os.POSIX_FADV_DONTNEED)


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done : done + (1 << 30)], offset + done)
