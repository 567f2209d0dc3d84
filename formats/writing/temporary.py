"""The temporaries that outputs are until they are whole, and those that a killed process left."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where an open file can't be removed anyway
    fcntl = None  # type: ignore[assignment]

__all__ = ["PREFIX", "SUFFIX", "clear_orphans", "temporary_name"]

PREFIX = ".llmconv-"


SUFFIX = ".tmp"


def temporary_name(name: str) -> str:
    """What stands for the target in its temporary's name: short enough for every file system."""
    raw = os.fsencode(name)
    if len(raw) <= 150:
        return name
    import hashlib  # loads OpenSSL

    return hashlib.sha256(raw).hexdigest()[:32]


def clear_orphans(folder: Path, name: str) -> None:
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
