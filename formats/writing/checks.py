"""What is refused of an output before any work, and folders made for outputs."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from llmconv.errors import OutputError, OutputExists, at
from llmconv.formats.sharing.team import current

try:
    import fcntl
except ImportError:  # Windows, where an open file can't be removed anyway
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "NO_SPACE",
    "T",
    "by_first",
    "check_parent",
    "check_target",
    "folder_for_outputs",
    "made_folder",
    "new_folder",
    "output_errors",
]

T = TypeVar("T")


NO_SPACE = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into sentences about `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
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
    made = by_first(lambda: made_folder(path))
    try:
        yield
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def made_folder(path: Path) -> list[Path]:
    """The folder, if it was not there and is made now."""
    with output_errors(path):
        if path.exists():
            return []
        path.mkdir()
    return [path]


def folder_for_outputs(folder: Path) -> list[Path]:
    """As `made_folder`, where there may be something else of that name."""
    if not folder.is_dir():
        with output_errors(folder):
            if os.path.lexists(folder):
                raise OutputError(f"{at(folder)}: exists and is no folder; choose another output name")
            check_parent(folder)
    return made_folder(folder)


def by_first(make: Callable[[], T]) -> T:
    """What is made once, whether by this process or by the first of several."""
    team = current()
    return make() if team is None else team.first(make)
