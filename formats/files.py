"""Writing files so that they appear complete or not at all, and opening them so that nothing hangs.

`Output` writes to a temporary file beside the target, flushes it to the disk and renames it; on any error,
or when the process is told to stop, the temporary goes and an older file at the target stays as it was.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from llmconv.errors import BadFile, OutputError, at

__all__ = ["Output", "check_target", "open_regular", "output_errors", "publish", "regular_size"]

PREFIX, SUFFIX = ".llmconv-", ".tmp"


def regular_size(path: Path) -> int:
    """Size in bytes of a regular file (links are followed); `BadFile` when it is missing or anything else."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise BadFile(f"{at(path)}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise BadFile(f"{at(path)}: can't be read ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise BadFile(f"{at(path)}: is {kind}, expected a model file")
    return status.st_size


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; never blocks on a pipe or device."""
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
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(f"{at(path)}: no space left on the disk; free some or write elsewhere (-o)") from None
        raise OutputError(f"{at(path)}: can't be written ({error.strerror or error})") from None


def check_target(path: Path, *, force: bool, size: int = 0, inputs: tuple[Path, ...] = ()) -> None:
    """Refuse a target before any work: it exists (without `force`), is an input, or has no room for `size` bytes."""
    for source in inputs:
        with contextlib.suppress(OSError):
            if os.path.samefile(source, path):
                raise OutputError(f"{at(path)}: is the input itself; choose another output name")
    with output_errors(path):
        if path.is_dir() and not path.is_symlink():
            raise OutputError(f"{at(path)}: is a folder; give a file name")
        if (path.exists() or path.is_symlink()) and not force:
            raise OutputError(f"{at(path)}: exists already; use --force to replace it, or another name")
        parent = path.parent
        if not parent.is_dir():
            raise OutputError(f"{at(path)}: its folder {parent} does not exist; make it first")
        free = shutil.disk_usage(parent).free
        if size > free:
            raise OutputError(f"{at(path)}: needs {size:,} bytes but the disk has {free:,} free; write elsewhere")


def publish(temporary: Path, target: Path) -> None:
    """Give a finished, flushed temporary its final name, and flush the folder."""
    os.replace(temporary, target)
    with contextlib.suppress(OSError, AttributeError):  # some systems can't open folders
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class Output:
    """A file being written, as a context manager: published on a clean exit, gone on an error.

    `with Output(path, size=…) as out: out.file.write(…)`.  `size`, when known, is reserved up front, so that
    a full disk is noticed before the work.  The temporary is `.llmconv-NAME-PID-RANDOM.tmp` beside the target; one
    left by a process that was killed is cleared by the next run that writes the same name.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        force: bool = False,
        size: int = 0,
        inputs: tuple[Path, ...] = (),
    ):
        self.path = Path(path)
        self.force = force
        self.size = size
        check_target(self.path, force=force, size=size, inputs=inputs)
        self._clear_orphans()
        token = f"{self.path.name[:100]}-{os.getpid()}-{secrets.token_hex(4)}"
        self.temporary = self.path.with_name(f"{PREFIX}{token}{SUFFIX}")
        self.file: BinaryIO

    def _clear_orphans(self) -> None:
        """Remove temporaries of this target whose process is gone."""
        start = f"{PREFIX}{self.path.name[:100]}-"
        with contextlib.suppress(OSError):
            for name in os.listdir(self.path.parent):
                if not (name.startswith(start) and name.endswith(SUFFIX)):
                    continue
                pid = name[len(start) :].split("-")[0]
                if pid.isdigit() and not _alive(int(pid)):
                    with contextlib.suppress(OSError):
                        (self.path.parent / name).unlink()

    def __enter__(self) -> Output:
        with output_errors(self.path):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
            self.file = os.fdopen(os.open(self.temporary, flags, 0o666), "w+b", buffering=1 << 20)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with output_errors(self.path):
                    self.file.flush()
                    os.fsync(self.file.fileno())
                    self.file.close()
                    if not self.force and self.path.exists():  # another run finished first
                        raise OutputError(f"{at(self.path)}: appeared while it was being written; it was left alone")
                    publish(self.temporary, self.path)
            elif isinstance(error, OSError):
                with output_errors(self.path):
                    raise error
        finally:
            with contextlib.suppress(OSError):
                self.file.close()
            with contextlib.suppress(OSError):
                self.temporary.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
