"""Compiling kernels ahead of their use: all of them, or those that a piece of work will need."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from llmconv.progress import Meter, Progress, Step
from llmconv.quant.block import KERNEL_DTYPES, BlockType
from llmconv.quant.kernels.compiling.cache import missing

__all__ = ["decoding", "encoding", "prepare", "warmup"]

_LOG = logging.getLogger("llmconv.kernels")
_COLUMNS = 256  # whole blocks of every type of ours
_ROWS = 16


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


Use = Callable[[], object]
"""A small piece of work that calls the kernels that a large one will."""


def encoding(type: type[BlockType], dtype: np.dtype[Any] | None, weighted: bool) -> Use:
    """Encoding rows of `dtype` (None: float32) to a type, with importance or without."""
    found = dtype if dtype in KERNEL_DTYPES else np.dtype(np.float32)
    importance = np.ones(_COLUMNS, np.float32) if weighted or type.needs_importance else None
    return lambda: _is_ours(type) and type.encode(np.zeros((_ROWS, _COLUMNS), found), importance)


def decoding(type: type[BlockType]) -> Use:
    """Decoding a type."""
    return lambda: _is_ours(type) and type.decode(np.zeros((_ROWS, type.row_bytes(_COLUMNS)), np.uint8))


def _is_ours(type: type[BlockType]) -> bool:
    return type.__module__.startswith("llmconv.")


def prepare(uses: Iterable[Use], progress: Progress | None = None) -> None:
    """Compile what `uses` need and the cache does not hold.

    progress: called with a `Step` before each kernel; without it, the steps go to the log, where the command looks.
    """
    found = missing(lambda: [use() for use in uses])
    if not found:
        return
    _LOG.info("compiling %d kernels for this processor, once", len(found))
    told = progress or _logged
    try:
        for done, (entry, dtype) in enumerate(found):
            told(Step("compile", done, len(found), "kernels", entry.name))
            entry.load(dtype)
    finally:
        if progress is None:
            _LOG.info("compiled what is needed, or stopped", extra={"step": None})


def _logged(step: Step) -> None:
    _LOG.info("%d of %d kernels compiled", step.done, step.total, extra={"step": step})
