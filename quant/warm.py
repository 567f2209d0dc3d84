"""Compiling all kernels ahead of time, so that the first use of a type needn't."""

from __future__ import annotations

from llmconv.progress import Meter, Progress

__all__ = ["warmup"]


def warmup(progress: Progress | None = None) -> int:
    """Compile every kernel for this processor, or find it in the cache; the number of kernels.

    progress: called with a `Step` after each kernel.
    """
    from llmconv.quant.kernels.compiling import build

    entries = list(build.entries())
    meter = Meter(progress, "compile", len(entries), "kernels")
    for entry, dtypes in entries:
        for dtype in dtypes:
            entry.load(dtype)
        meter(1, entry.name)
    return len(entries)
