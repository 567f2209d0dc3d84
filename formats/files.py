"""Opening files so that nothing hangs: regular ones, or what lies at another place."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from llmconv.errors import BadFile, at, nearest
from llmconv.formats.places.ranges import open_remote
from llmconv.formats.places.remote import RemotePath

try:
    import fcntl
except ImportError:  # Windows, where an open file can't be removed anyway
    fcntl = None  # type: ignore[assignment]

__all__ = ["instead", "open_regular", "regular_size"]


def regular_size(path: Path, expected: str = "a model file") -> int:
    """Size in bytes of a regular file (links are followed); `BadFile` when it is missing or anything else.

    expected: what the sentence calls such a file.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise BadFile(f"{at(path)}: no such file; {instead(path)}") from None
    except (OSError, ValueError) as error:
        raise BadFile(f"{at(path)}: can't be read ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise BadFile(f"{at(path)}: is {kind}, expected {expected}")
    return status.st_size


def instead(path: Path) -> str:
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


def open_regular(path: Path, expected: str = "a model file") -> BinaryIO:
    """Open a regular file for reading; never blocks on a pipe or device.   expected: as `regular_size` takes it."""
    if isinstance(path, RemotePath):
        return open_remote(path, expected)
    regular_size(path, expected)
    try:
        handle = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    except OSError as error:
        raise BadFile(f"{at(path)}: can't be read ({error.strerror})") from None
    if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):  # swapped between the two calls
        handle.close()
        raise BadFile(f"{at(path)}: is not a regular file, expected {expected}")
    return handle
