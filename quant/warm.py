"""Compiling all kernels ahead of time, so that the first use of a type needn't."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["warmup"]


def warmup(progress: Callable[[int, str], None] | None = None) -> int:
    """Compile every kernel for this processor, or find it in the cache; the number of kernels.

    progress: called after each kernel with (kernels done, its name).
    """
    from llmconv.quant.kernels import build, cache

    done = 0
    for done, entry in enumerate(cache.entries(), 1):
        for dtype in build.dtypes(entry):
            entry.load(dtype)
        if progress is not None:
            progress(done, entry.name)
    return done
