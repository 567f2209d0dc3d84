"""The one way of tensors into files: read once, changed, encoded to every type asked for, written where they belong.

Bytes that lie unchanged in an input file are copied by the kernel (`copying`).  The rest flows slab by slab: each
thread takes the next slab of rows, reads it, encodes it and writes it at its planned offset (`encoding`); nothing waits
for anything else, and system calls and kernels release the GIL.  Memory is slabs x threads, whatever the model's size.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from queue import SimpleQueue

from llmconv.errors import UsageError
from llmconv.formats.places.remote import RemotePath, check as check_remote
from llmconv.formats.sharing.team import current, shared_out
from llmconv.formats.tensor import SLAB_BYTES, Tensor
from llmconv.formats.writing import copying
from llmconv.formats.writing.encoding import Worker
from llmconv.formats.writing.outputs import Output
from llmconv.formats.writing.target import Item, Sink, Target, Told
from llmconv.progress import Meter
from llmconv.quant import warm
from llmconv.quant.block import Bytes

__all__ = ["Part", "cost", "processors", "shared", "stream", "threads", "write_tensors"]

SLAB_WEIGHTS = 1 << 20
"""Weights encoded at a time by a thread; fewer when there are many threads or outputs (see `_MOST_BYTES`)."""
_MOST_BYTES = 96 << 20  # slabs of all threads together, as they are read and as they are written
_FEWEST = 1 << 14
_CODES_BYTES = 9 << 17
"""Of packed codes, which are made row by row: two million in four bits, with their scales.  They are written, and
perhaps compared, while they are in the processor's cache; with more of them the kernel's copying takes longer.  Floats
may have been transposed, and their whole matrix is read for each slab."""
_PARTS, _ROWS = 8, 16  # of a process's share that a part is at most; what rows are cut by
_ARITHMETIC = 8  # bytes that could be moved while a weight is encoded, for most types

Slab = tuple[Item, int, int]
"""An item, its first row and the one behind its last."""
Part = Slab
"""The same of what one process does of an item."""
Done = tuple[int, str, Sequence[Item]]
"""Bytes read just now, the name of their tensor, and the items whose last bytes they are."""


def stream(
    items: Sequence[Item],
    *,
    jobs: int | None = None,
    check: bool = False,
    meter: Meter | None = None,
    finished: Callable[[Item], None] | None = None,
    whole: bool = False,
) -> None:
    """Read, encode and write every item.

    jobs: threads; as many as this process may use processors by default.  Of several processes (`sharing.team`) each
        does some of the items, or some rows of a large one, unless `whole`.
    check: refuse NaN and infinity, and what overflows its type, by tensor and index.
    meter: called with (bytes just read, tensor name); finished: called when all of an item is written.  Both are
        called from this thread, and what they raise ends the work.

    What comes from another machine is read file by file in the order of its bytes, and checked by its hash where it has
    one.  Raises `BadWeight` for a weight that is refused, `BadFile` for a source that was cut or changed meanwhile,
    `OutputError` for a full disk, and whatever reading a tensor raises.
    """
    afar = {b[0]: None for item in items if (b := item.tensor.begins) and isinstance(b[0], RemotePath)}
    items = _as_they_lie(items) if afar else items
    team, parts = current(), [(item, 0, item.tensor.n_rows) for item in items]
    if team is not None:
        parts = shared(items, team.size, whole)[team.rank]
    warm.prepare(_kernels([item for item, *_ in parts], check), meter.progress if isinstance(meter, Meter) else None)
    with contextlib.closing(_worked(parts, threads(jobs), check)) as done:
        for nbytes, name, complete in done:
            if meter is not None:
                meter(nbytes, name)
            if finished is not None:
                for item in complete:
                    finished(item)
    check_remote(afar)
    if team is not None and meter is not None:
        own = sum((stop - start) * item.tensor.row_bytes for item, start, stop in parts)
        meter(sum(item.tensor.nbytes for item in items) - own, "by other processes")


def shared(items: Sequence[Item], size: int, whole: bool = False) -> list[list[Part]]:
    """What each of `size` processes does.   whole: no item is cut.

    Of an item that is much of one's share, rows are cut off: where, does not depend on how many threads anybody has.
    """
    most = sum(map(cost, items)) / size / _PARTS
    parts: list[Part] = []
    for item in items:
        rows = item.tensor.n_rows
        count = 1 if whole or not item.encodes or not most else max(1, min(rows // _ROWS, math.ceil(cost(item) / most)))
        step = -(-rows // count // _ROWS) * _ROWS if count > 1 else rows
        parts += [(item, start, min(start + step, rows)) for start in range(0, rows, max(1, step))] or [(item, 0, rows)]
    costs = [cost(item) * (stop - start) / max(1, item.tensor.n_rows) for item, start, stop in parts]
    return [[parts[i] for i in mine] for mine in shared_out(costs, size)]


def _kernels(items: Sequence[Item], check: bool) -> list[warm.Use]:
    """What calls the kernels that these items need, each once."""
    found: dict[tuple[object, ...], warm.Use] = {}
    for item in items:
        own = item.tensor.type
        if not own.is_plain() and (item.encodes or check):
            found[own, "decode"] = warm.decoding(own)
        for target in item.targets if item.encodes else ():
            weighted = target.importance is not None
            if not target.type.is_plain() and target.type is not own:
                found[target.type, own.dtype, weighted] = warm.encoding(target.type, own.dtype, weighted)
    return list(found.values())


def _as_they_lie(items: Sequence[Item]) -> list[Item]:
    """In the order of their bytes in the files that they are read from; an unknown one stays by its neighbour."""
    places, last = [], ("", 0)
    for item in items:
        if (begins := item.tensor.begins) is not None:
            last = str(begins[0]), begins[1]
        places.append(last)
    return [items[i] for i in sorted(range(len(items)), key=places.__getitem__)]


def cost(item: Item) -> float:
    """About what an item takes, in bytes moved: arithmetic for a weight counts as so many."""
    written = sum(t.type.row_bytes(item.tensor.row_len) for t in item.targets) * item.tensor.n_rows
    encoded = sum(t.type is not item.tensor.type and not t.type.is_plain() for t in item.targets)
    return item.tensor.nbytes + written + _ARITHMETIC * encoded * item.tensor.n_elements


def write_tensors(
    out: Output,
    plan: Sequence[tuple[Tensor, int]],
    *,
    jobs: int | None = None,
    meter: Meter | None = None,
    change: Callable[[Tensor, Bytes], Bytes] | None = None,
    told: Callable[[str], Told | None] = lambda name: None,
) -> None:
    """Write each tensor of `plan`, as it is, at its offset in a file; see `stream`, `Target` and `Item.written`."""
    sink = Sink(out.path, out.file.fileno())
    items = [Item(t, [Target(sink, t.type, offset, change=change)], written=told(t.name)) for t, offset in plan]
    stream(items, jobs=jobs, meter=meter)


def threads(jobs: int | None) -> int:
    """As many as asked for, or one for each processor that this process may use; `UsageError` for less than one."""
    if jobs is None:
        return processors()
    if jobs < 1:
        raise UsageError(f"jobs is {jobs}, expected 1 or more, or None for one thread a processor")
    return min(jobs, 256)  # more are none the faster


def processors() -> int:
    """How many this process may use, which in a container is fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _worked(parts: Sequence[Part], jobs: int, check: bool) -> Generator[Done]:
    """Do the work: copies in this thread, slabs in as many others as there are slabs for."""
    copied = [item for item, *_ in parts if copying.is_copied(item, check)]
    rest = [part for part in parts if not copying.is_copied(part[0], check)]
    left: dict[int, int] = {}
    for part in rest:
        left[id(part[0])] = left.get(id(part[0]), 0) + sum(1 for _ in _slabs_of(part, jobs))
    copies = copying.copies(copied)

    def done(item: Item, nbytes: int) -> Done:
        left[id(item)] -= 1
        return nbytes, item.tensor.name, () if left[id(item)] else (item,)

    slabs = (slab for part in rest for slab in _slabs_of(part, jobs))
    threads = _Threads(slabs, check)
    try:
        if jobs == 1 or not threads.start(min(jobs, sum(left.values()))):
            for item, nbytes in threads.here():
                yield done(item, nbytes)
        while threads.failure is None:
            copy = next(copies, None)
            if copy is not None:
                yield copy()
            for item, nbytes in threads.results(wait=copy is None):
                yield done(item, nbytes)
            if copy is None and not threads.running:
                break
    finally:
        threads.close()
    if threads.failure is not None:
        raise threads.failure


def _step(item: Item, jobs: int) -> int:
    """Rows of a slab."""
    tensor, row_len = item.tensor, max(1, item.tensor.row_len)
    if tensor.extent is None and not item.encodes:  # only moved: what is read from a file is looked at, too
        most = SLAB_BYTES if tensor.type.is_float and tensor.type.is_plain() else _CODES_BYTES
        return max(1, most // max(1, tensor.row_bytes))
    row_bytes = tensor.row_bytes + sum(t.type.row_bytes(tensor.row_len) for t in item.targets)
    if not tensor.type.is_plain():
        row_bytes += 4 * row_len  # decoded
    fitting = _MOST_BYTES // jobs // max(1, row_bytes)
    return max(1, _FEWEST // row_len, min(SLAB_WEIGHTS // row_len, fitting))


def _slabs_of(part: Part, jobs: int) -> Iterator[Slab]:
    """A part's slabs, at least one, of no rows; none reaches from one matrix of a stack into the next where importance
    tells them apart."""
    item, start, end = part
    step, matrix = _step(item, jobs), max(1, item.stacked_rows)
    while True:
        stop = min(start + step, (start // matrix + 1) * matrix, end)
        yield item, start, stop
        start = stop
        if start >= end:
            return


class _Threads:
    """Workers that take slabs until there are no more, one of them fails, or `close`."""

    def __init__(self, slabs: Iterator[Slab], check: bool):
        self._slabs, self._check = slabs, check
        self._lock, self._halt = threading.Lock(), threading.Event()
        self._queue: SimpleQueue[tuple[Item, int] | BaseException | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self.running = 0
        self.failure: BaseException | None = None

    def start(self, number: int) -> int:
        """As many threads, or as many as there are to be had; how many that is."""
        for i in range(number):
            thread = threading.Thread(target=self._work, name=f"llmconv-write-{i}", daemon=True)
            self._threads.append(thread)
            try:
                thread.start()
            except RuntimeError:  # no more threads: work with those
                break
            self.running += 1
        return self.running

    def here(self) -> Iterator[tuple[Item, int]]:
        """All the work, in the calling thread."""
        worker = Worker(self._check)
        try:
            for item, start, stop in self._slabs:
                yield item, worker.encode(item, start, stop)
        finally:
            worker.close()

    def results(self, wait: bool) -> Iterator[tuple[Item, int]]:
        """What was done since the last call; with `wait`, at least one thing where any is still to come."""
        while self.running and (wait or not self._queue.empty()):
            found = self._queue.get()
            if found is None:
                self.running -= 1
            elif isinstance(found, BaseException):
                self.failure = self.failure or found
            else:
                yield found
            wait = False

    def _work(self) -> None:
        worker = Worker(self._check)
        try:
            while not self._halt.is_set():
                with self._lock:
                    slab = next(self._slabs, None)
                if slab is None:
                    break
                self._queue.put((slab[0], worker.encode(*slab)))
        except BaseException as error:
            self._halt.set()
            self._queue.put(error)
        finally:
            worker.close()
            self._queue.put(None)

    def close(self) -> None:
        """Wait for all of them, whatever the user presses: they write to files that are closed next."""
        self._halt.set()
        for thread in self._threads:
            while thread.ident is not None and thread.is_alive():
                with contextlib.suppress(KeyboardInterrupt):
                    thread.join()
