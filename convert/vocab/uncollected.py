"""Hundreds of thousands of lists without cycles, made or read without the collector of cycles, which looks at all of
them again each time that there are a quarter more."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["uncollected"]


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Within it, nothing looks for cycles; also a decorator."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
