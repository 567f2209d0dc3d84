"""Writing files so that they appear complete or not at all, and opening them so that nothing hangs.

`Output` writes to a temporary file beside the target, flushes it to the disk and gives it its name; on any error,
or when the process is told to stop, the temporary goes and an older file at the target stays as it was.
`Outputs` does the same for several files that belong together.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import FrameType, TracebackType
from typing import BinaryIO, NoReturn, TypeVar

from llmconv.errors import BadFile, OutputError, OutputExists, at, nearest
from llmconv.formats.places import outbox
from llmconv.formats.places.ranges import open_remote
from llmconv.formats.places.remote import RemotePath
from llmconv.formats.sharing.team import current

try:
    import fcntl
except ImportError:  # Windows, where an open file can't be removed anyway
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "Output",
    "Outputs",
    "by_first",
    "check_parent",
    "check_target",
    "open_regular",
    "output_errors",
    "regular_size",
]

T = TypeVar("T")

PREFIX, SUFFIX = ".llmconv-", ".tmp"
_NO_SPACE = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


def regular_size(path: Path) -> int:
    """Size in bytes of a regular file (links are followed); `BadFile` when it is missing or anything else."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise BadFile(f"{at(path)}: no such file; {_instead(path)}") from None
    except (OSError, ValueError) as error:
        raise BadFile(f"{at(path)}: can't be read ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise BadFile(f"{at(path)}: is {kind}, expected a model file")
    return status.st_size


def _instead(path: Path) -> str:
    """Where to look for a file that is not there: a name like it beside it, or a hub."""
    try:
        near = nearest(path.name, os.listdir(path.parent or "."))
    except OSError:
        near = None
    if near and nearest(path.stem, [Path(near).stem]):  # an ending alone is no likeness
        return f"did you mean {at(path.with_name(near))}?"
    parts = path.parts
    if len(parts) == 2 and path.suffix.lower() not in (".gguf", ".json", ".safetensors") and not path.parent.exists():
        return f"for the Hub's repository write hf://{'/'.join(parts)}"
    return "check the path"


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; never blocks on a pipe or device."""
    if isinstance(path, RemotePath):
        return open_remote(path)
    regular_size(path)
    try:
        handle = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    except OSError as error:
        raise BadFile(f"{at(path)}: can't be read ({error.strerror})") from None
    if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):  # swapped between the two calls
        handle.close()
        raise BadFile(f"{at(path)}: is not a regular file, expected a model file")
    return handle


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into sentences about `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise OutputError(f"{at(path)}: no space left on the disk; free some or write elsewhere (-o)") from None
        raise OutputError(f"{at(path)}: can't be written ({error.strerror or error})") from None


def check_parent(path: Path) -> None:
    """Refuse a target in a folder that is not there."""
    if re.fullmatch(r"[a-z][a-z0-9]+:", path.parts[0] if path.parts else "") and not Path(path.parts[0]).exists():
        raise OutputError(f"{at(path)}: this is written to a disk; name a file there, then llmconv upload it")
    if not path.parent.is_dir():
        raise OutputError(f"{at(path)}: its folder {path.parent} does not exist; make it first")


def check_target(path: Path, *, force: bool, size: int = 0, inputs: Sequence[Path] = ()) -> None:
    """Refuse a target before any work: it exists (without `force`), is an input, or has no room for `size` bytes."""
    with output_errors(path):
        for source in inputs if path.exists() else ():
            with contextlib.suppress(OSError):
                if os.path.samefile(source, path):
                    raise OutputError(f"{at(path)}: is the input itself; choose another output name")
        if path.is_dir() and not path.is_symlink():
            raise OutputError(f"{at(path)}: is a folder; give a file name")
        if os.path.lexists(path) and not force:
            raise OutputExists(path, f"{at(path)}: exists already; use --force to replace it, or another name")
        check_parent(path)
        free = shutil.disk_usage(path.parent).free
        if size > free:
            raise OutputError(f"{at(path)}: needs {size:,} bytes but the disk has {free:,} free; write elsewhere")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[None]:
    """A folder for outputs, made if it is not there; gone again after an error that left it empty."""
    made = by_first(lambda: _new_folder(path))
    try:
        yield
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _new_folder(path: Path) -> list[Path]:
    """The folder, if it was not there and is made now."""
    with output_errors(path):
        if path.exists():
            return []
        path.mkdir()
    return [path]


def _folder_for_outputs(folder: Path) -> list[Path]:
    """As `_new_folder`, where there may be something else of that name."""
    if not folder.is_dir():
        with output_errors(folder):
            if os.path.lexists(folder):
                raise OutputError(f"{at(folder)}: exists and is no folder; choose another output name")
            check_parent(folder)
    return _new_folder(folder)


def by_first(make: Callable[[], T]) -> T:
    """What is made once, whether by this process or by the first of several."""
    team = current()
    return make() if team is None else team.first(make)


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
        self._name = _temporary_name(self.path.name)
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
        _clear_orphans(self.path.parent, self._name)
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
                if isinstance(error, OSError) and error.errno in _NO_SPACE:
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
        self._force, self._stale = force, [p for p in stale if force and p not in sizes]
        self._done: list[Output] = []
        self._stop = _Stoppable()
        self._made: list[Path] = []
        box = outbox.current()
        self._box = box if box is not None and all(box.root in path.parents for path in sizes) else None
        if folder is not None:
            self._made += by_first(lambda: _folder_for_outputs(folder))
        try:
            for inner in _folders_within(folder, sizes) if folder is not None else ():
                if inner.is_symlink():
                    raise OutputError(f"{at(inner)}: is a link to another folder; remove it")
                self._made += by_first(lambda inner=inner: _new_folder(inner))  # type: ignore[misc]
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
        return self._box is not None and self._box.has(path, head)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        published, team = False, current()
        try:
            if team is not None:
                team.agree(error)
            if kind is None:
                by_first(self._publish)
                published = True
        finally:
            for out in self._done:
                out.discard()
            if not published:
                self._unmake()
            self._stop.leave()

    def _publish(self) -> None:
        """Name all files; when one can't be named, those before it go back to what they were."""
        named: list[tuple[Path, Path | None]] = []  # and another name of the file that was there
        kept: list[Path] = []
        try:
            for out in self._done:
                with output_errors(out.path):
                    old = self._keep(out)
                    kept += [old] if old else []
                    new = not os.path.lexists(out.path)
                    out.publish()
                    if new or old:
                        named.append((out.path, old))
            for folder in {out.path.parent for out in self._done}:
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
        for path in self._stale:
            with contextlib.suppress(OSError):
                path.unlink()

    def _keep(self, out: Output) -> Path | None:
        """A second name for the file that `out` replaces, in case a later one fails; None without hard links."""
        if not self._force or not out.path.is_file() or out.path.is_symlink():
            return None
        old = out.temporary.with_name(out.temporary.name.removesuffix(SUFFIX) + f"o{SUFFIX}")
        with contextlib.suppress(OSError, AttributeError, NotImplementedError):
            os.link(out.path, old)
            return old
        return None

    def _unmake(self) -> None:
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):
                folder.rmdir()


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


def _temporary_name(name: str) -> str:
    """What stands for the target in its temporary's name: short enough for every file system."""
    raw = os.fsencode(name)
    if len(raw) <= 150:
        return name
    import hashlib  # loads OpenSSL

    return hashlib.sha256(raw).hexdigest()[:32]


def _clear_orphans(folder: Path, name: str) -> None:
    """Remove temporaries of the target `name` whose writer is gone."""
    with contextlib.suppress(OSError):
        for found in os.listdir(folder):
            if not (found.startswith(PREFIX) and found.endswith(SUFFIX)):
                continue
            parts = found[len(PREFIX) : -len(SUFFIX)].rsplit("-", 2)
            if (
                len(parts) == 3
                and parts[0] == name
                and parts[1].isdigit()
                and _abandoned(folder / found, int(parts[1]))
            ):
                with contextlib.suppress(OSError):
                    (folder / found).unlink()


def _abandoned(path: Path, pid: int) -> bool:
    """Whether nobody writes that temporary any more: its lock is free, and its process gone or the file old."""
    try:
        os.kill(pid, 0)
        gone = False
    except ProcessLookupError:
        gone = True
    except OSError:
        return False  # somebody else's process
    try:
        if not gone and time.time() - path.stat().st_mtime < 60:
            return False  # made this moment and not locked yet, perhaps
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except OSError:
        pass  # no locks on this file system: the process number must do
    finally:
        os.close(descriptor)
    return gone
