"""What public functions report while they work."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "counted"]

Progress = Callable[[int, int, str], None]
"""Called with (bytes read or written so far, bytes in all, tensor name)."""


def counted(progress: Progress | None, total: int) -> Callable[[int, str], None] | None:
    """For the rooms below, which report (bytes just done, tensor name)."""
    if progress is None:
        return None
    done = 0

    def count(nbytes: int, name: str) -> None:
        nonlocal done
        done = min(done + nbytes, total)
        progress(done, total, name)

    return count
