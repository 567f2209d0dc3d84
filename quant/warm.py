"""Compiling all kernels ahead of time, so that the first use of a type needn't."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

__all__ = ["warmup"]


def warmup(progress: Callable[[int, str], None] | None = None) -> int:
    """Compile every kernel for this processor, or find it in the cache; the number of kernels.

    progress: called after each kernel with (kernels done, its name).
    """
    from llmconv.quant import kernels

    for module in pkgutil.iter_modules(kernels.__path__):
        importlib.import_module(f"{kernels.__name__}.{module.name}")
    done = 0
    for done, kernel in enumerate(kernels.warmup(), 1):
        if progress is not None:
            progress(done, getattr(kernel, "__name__", "kernel"))
    return done
