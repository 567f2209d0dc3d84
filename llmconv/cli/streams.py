"""`-` as a path: standard input is read into a file first, since models and texts are read at any place."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

__all__ = ["given", "taken"]


@contextlib.contextmanager
def given(path: Path, suffix: str, target: Any = True) -> Iterator[Path]:
    """The path, or where standard input was put when it is `-`; then an output needs a name of its own (`target`)."""
    if str(path) != "-":
        yield path
        return
    if target is None:
        raise click.UsageError("a model from standard input has no name to call the output by; give DST")
    with tempfile.TemporaryDirectory(prefix="llmconv-") as folder:
        file = Path(folder, f"stdin{suffix}")
        with file.open("wb") as out:
            shutil.copyfileobj(sys.stdin.buffer, out)
        yield file


@contextlib.contextmanager
def taken(target: str | None, suffix: str) -> Iterator[str | None]:
    """The target, or a file that goes to standard output when the work is done."""
    if target != "-":
        yield target
        return
    with tempfile.TemporaryDirectory(prefix="llmconv-") as folder:
        file = Path(folder, f"stdout{suffix}")
        yield str(file)
        with file.open("rb") as made:
            shutil.copyfileobj(made, sys.stdout.buffer)
        sys.stdout.buffer.flush()
