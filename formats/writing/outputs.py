"""Writing files so that they appear complete or not at all.

`Output` writes to a temporary file beside the target, flushes it to the disk and gives it its name; on any error,
or when the process is told to stop, the temporary goes and an older file at the target stays as it was.
`Outputs` does the same for several files that belong together, `Together` for what several calls write.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextvars import ContextVar, Token
from pathlib import Path
from types import FrameType, TracebackType
from typing import BinaryIO, NoReturn

from llmconv.errors import OutputError, at
from llmconv.formats.places import outbox
from llmconv.formats.sharing.team import current

try:
    import fcntl
except ImportError:  # Windows, where an open file can't be removed anyway
    fcntl = None  # type: ignore[assignment]
from llmconv.formats.writing.checks import (
    NO_SPACE,
    by_first,
    check_target,
    folder_for_outputs,
    made_folder,
    output_errors,
)
from llmconv.formats.writing.temporary import PREFIX, SUFFIX, clear_orphans, temporary_name

__all__ = ["Output", "Outputs", "Together", "flush_folder"]


class Output:
    """A file being written, as a context manager: published on a clean exit, gone on an error.

    `with Output(path, size=…) as out: out.file.write(…)`.  `size`, when known, is compared with the free space
    first; `reserve` takes it.  The temporary is `.llmconv-NAME-PID-RANDOM.tmp` beside the target, locked while
    it is written; one left by a process that was killed is cleared by the next run that writes the same name.
    Without `force`, a file that appeared at the target meanwhile is left alone.  A link at the target is replaced,
    not followed.
    """

    done: Set[str] = frozenset()
    """Names of tensors that an earlier run completed."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        force: bool = False,
        size: int = 0,
        inputs: Sequence[Path] = (),
    ):
        self.path = Path(path)
        self.force = force
        check_target(self.path, force=force, size=size, inputs=inputs)
        self._name = temporary_name(self.path.name)
        self.temporary = self.path.with_name(f"{PREFIX}{self._name}-{os.getpid()}-{os.urandom(4).hex()}{SUFFIX}")
        self._stop = _Stoppable()
        self.file: BinaryIO

    def __enter__(self) -> Output:
        self._stop.enter()
        try:
            self.create()
        except BaseException:
            self._stop.leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        team = current()
        try:
            if kind is None:
                self.finish()
            if team is not None:
                team.agree(error)
            if kind is None:
                by_first(self._named)
            elif isinstance(error, OSError):
                with output_errors(self.path):
                    raise error
        finally:
            self.discard()
            self._stop.leave()

    def _named(self) -> None:
        with output_errors(self.path):
            self.publish()
            flush_folder(self.path.parent)

    def create(self) -> None:
        """Make the temporary; of several processes the first makes it, and the others open it."""
        self.temporary = by_first(self._make)
        team = current()
        if team is not None and team.rank:
            with output_errors(self.path):
                self.file = os.fdopen(os.open(self.temporary, os.O_RDWR | getattr(os, "O_BINARY", 0)), "r+b")

    def _make(self) -> Path:
        """Clear what a killed run left, and make the temporary."""
        clear_orphans(self.path.parent, self._name)
        with output_errors(self.path):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
            self.file = os.fdopen(os.open(self.temporary, flags, 0o666), "w+b", buffering=1 << 20)
        if fcntl is not None:
            with contextlib.suppress(OSError):  # file systems without locks: the process number must do
                fcntl.flock(self.file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        return self.temporary

    def reserve(self, size: int) -> None:
        """Make the file `size` bytes long, its space taken on the disk where the file system can do that."""
        with output_errors(self.path):
            self.file.flush()
            try:
                if size:
                    os.posix_fallocate(self.file.fileno(), 0, size)
            except (AttributeError, OSError) as error:
                if isinstance(error, OSError) and error.errno in NO_SPACE:
                    raise
            os.truncate(self.file.fileno(), size)

    def complete(self, name: str) -> None:
        """All of a tensor is written: of no interest to a file that begins anew each time."""

    def finish(self) -> None:
        """Flush the temporary to the disk and close it."""
        with output_errors(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()

    def publish(self) -> None:
        """Give the finished temporary its name."""
        if self.force:
            os.replace(self.temporary, self.path)
            return
        try:
            os.link(self.temporary, self.path)  # unlike a rename, fails when the name is taken
        except FileExistsError:
            raise OutputError(f"{at(self.path)}: appeared while it was being written; it was left alone") from None
        except (OSError, AttributeError, NotImplementedError):  # no hard links here
            if os.path.lexists(self.path):
                raise OutputError(f"{at(self.path)}: appeared while it was being written; it was left alone") from None
            os.rename(self.temporary, self.path)

    def discard(self) -> None:
        """Remove the temporary, if it is still there."""
        with contextlib.suppress(OSError, AttributeError):
            self.file.close()
        with contextlib.suppress(OSError):
            self.temporary.unlink()


class Outputs:
    """Several files that belong together: all of them appear, in the order given, or none.

    `with Outputs({path: size, …}) as outputs:`, then for each path `with outputs.open(path) as out: out.file.write(…)`.
    Sizes are compared with the free space before anything is written; 0 when unknown.

    Files that are made for a repository (`places.outbox`) are given away one by one, as soon as they are complete.

    folder: made when absent, and removed again on an error; so are folders within it that files lie in.
    stale: files of an older version (shards that the new one does not have), removed at the end, with `force`.
    """

    def __init__(
        self,
        sizes: Mapping[Path, int],
        *,
        force: bool = False,
        inputs: Sequence[Path] = (),
        folder: Path | None = None,
        stale: Sequence[Path] = (),
    ):
        self._sizes = sizes
        self._force, self._stale = force, [p for p in stale if force and p not in sizes]
        self._done: list[Output] = []
        self._stop = _Stoppable()
        self._made: list[Path] = []
        box = outbox.current()
        self._box = box if box is not None and all(box.root in path.parents for path in sizes) else None
        if folder is not None:
            self._made += by_first(lambda: folder_for_outputs(folder))
        try:
            for inner in _folders_within(folder, sizes) if folder is not None else ():
                if inner.is_symlink():
                    raise OutputError(f"{at(inner)}: is a link to another folder; remove it")
                self._made += by_first(lambda inner=inner: made_folder(inner))  # type: ignore[misc]
            total = sum(sizes.values())
            if self._box is not None:
                self._box.claim(*sizes)
                self._box.check_room(max(sizes.values(), default=0))
                total = 0
            for path in sizes:
                check_target(path, force=force, size=total, inputs=inputs)
        except BaseException:
            self._unmake()
            raise

    def __enter__(self) -> Outputs:
        self._stop.enter()
        return self

    @contextlib.contextmanager
    def open(self, path: Path) -> Iterator[Output]:
        """Write one of the files: flushed to the disk at the end, but not yet under its name."""
        if self._box is not None and not self._done:  # none is being written
            self._box.begin()
        out = Output(path, force=self._force)
        self._done.append(out)
        with output_errors(path):
            out.create()
            yield out
            out.finish()
            if self._box is not None:
                self._done.remove(out)
                out.publish()
                self._box.put(path)

    def has(self, path: Path, head: bytes) -> bool:
        """Whether a file of this header need not be written: an earlier call, which was cut off, sent it away."""
        return self._box is not None and self._box.has(path, head, self._sizes[path])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        published, waits, team, others = False, False, current(), _together.get()
        try:
            if team is not None:
                team.agree(error)
            if kind is None and others is not None and self._box is None:
                others.wait_for(self)
                waits = True
            elif kind is None:
                by_first(self._publish)
                published = True
        finally:
            if not waits:
                self.clear(published)
            self._stop.leave()

    @property
    def finished(self) -> list[Output]:
        """The files that are complete, and not yet under their names."""
        return list(self._done)

    @property
    def stale(self) -> list[Path]:
        return list(self._stale)

    def _publish(self) -> None:
        _publish(self._done, self._stale)

    def clear(self, published: bool) -> None:
        """Remove the temporaries, and the folders made for files that were not published."""
        for out in self._done:
            out.discard()
        if not published:
            self._unmake()

    def _unmake(self) -> None:
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _publish(done: Sequence[Output], stale: Iterable[Path]) -> None:
    """Name all files; when one can't be named, those before it go back to what they were."""
    named: list[tuple[Path, Path | None]] = []  # and another name of the file that was there
    kept: list[Path] = []
    try:
        for out in done:
            with output_errors(out.path):
                old = _second_name(out)
                kept += [old] if old else []
                new = not os.path.lexists(out.path)
                out.publish()
                if new or old:
                    named.append((out.path, old))
        for folder in {out.path.parent for out in done}:
            flush_folder(folder)
    except BaseException:
        for path, old in reversed(named):
            with contextlib.suppress(OSError):
                if old is None:
                    path.unlink()
                else:
                    os.replace(old, path)
        raise
    finally:
        for old in kept:
            with contextlib.suppress(OSError):
                old.unlink()
    for path in stale:
        with contextlib.suppress(OSError):
            path.unlink()


def _second_name(out: Output) -> Path | None:
    """A second name for the file that `out` replaces, in case a later one fails; None without hard links."""
    if not out.force or not out.path.is_file() or out.path.is_symlink():
        return None
    old = out.temporary.with_name(out.temporary.name.removesuffix(SUFFIX) + f"o{SUFFIX}")
    with contextlib.suppress(OSError, AttributeError, NotImplementedError):
        os.link(out.path, old)
        return old
    return None


class Together:
    """What several calls write with `Outputs`, one after the other, appears at the end of this context, or nothing.

    A model's two halves belong together so.  What goes to a repository does that by being one commit.
    """

    def __init__(self) -> None:
        self._waiting: list[Outputs] = []
        self._stop = _Stoppable()
        self._token: Token[Together | None]

    def wait_for(self, outputs: Outputs) -> None:
        """Keep the finished files of `outputs` for the end."""
        self._waiting.append(outputs)
        outbox.wait({out.path: out.temporary for out in outputs.finished})

    def __enter__(self) -> Together:
        self._stop.enter()
        self._token = _together.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _together.reset(self._token)
        published, team = False, current()
        try:
            if team is not None:
                team.agree(error)
            if kind is None:
                by_first(self._publish)
                published = True
        finally:
            outbox.wait({})
            for outputs in reversed(self._waiting):
                outputs.clear(published)
            self._stop.leave()

    def _publish(self) -> None:
        done = [out for outputs in self._waiting for out in outputs.finished]
        _publish(done, [path for outputs in self._waiting for path in outputs.stale])


_together: ContextVar[Together | None] = ContextVar("together", default=None)


class _Stoppable:
    """Turns the signals that end a process at once into an exception while something must be cleaned up."""

    def __init__(self) -> None:
        self._old: dict[int, object] = {}

    def enter(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                self._old[number] = signal.signal(number, _stop)

    def leave(self) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)  # type: ignore[arg-type]
        self._old.clear()


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _folders_within(folder: Path, files: Iterable[Path]) -> list[Path]:
    """The folders below `folder` that the files lie in, outer ones first."""
    return sorted({inner for file in files for inner in file.parents if folder in inner.parents})


def flush_folder(folder: Path) -> None:
    with contextlib.suppress(OSError, AttributeError):  # some systems can't open folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
