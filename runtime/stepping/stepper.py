"""One token after another, each by one call of compiled code, on as many threads as torch has."""

from __future__ import annotations

import ctypes
import functools
import sys
import time
from collections.abc import Generator

import numpy as np
import torch
from torch import Tensor

from llmconv.quant import warm
from llmconv.quant.kernels import one_token
from llmconv.quant.kernels.terms import steps
from llmconv.runtime import products
from llmconv.runtime.cache import Cache
from llmconv.runtime.model import Model
from llmconv.runtime.stepping.fits import fits
from llmconv.runtime.stepping.inputs import TABLE, code
from llmconv.runtime.stepping.table import Table

__all__ = ["Stepper", "stepper"]

LATE, TRIAL, STAY = 3, 4, 24
"""Sleeps of the first thread in one token after which it is tried over so many tokens whether it is faster alone, and
for how many the faster way is gone."""


def _together() -> Generator[bool, tuple[float, int], None]:
    """Whether other threads help with a token; to be sent its seconds, and how often the first thread slept."""
    while True:
        _, naps = yield True
        if naps < LATE:
            continue
        seconds = {True: 0.0, False: 0.0}  # their processors do something else
        for helped in seconds:
            for _ in range(TRIAL):
                took, _ = yield helped
                seconds[helped] += took
        for _ in range(STAY):
            yield seconds[True] < seconds[False]


def stepper(model: Model, cache: Cache) -> Stepper | None:
    """What makes the model's next tokens over a cache that holds some; None for models that need torch for it."""
    if not fits(model, cache):
        return None
    warm.prepare([lambda: _codes(model, cache)])
    return Stepper(model, cache)


def _codes(model: Model, cache: Cache) -> None:
    """Find the code of all kernels that a step calls."""
    Table(model, cache, 1)
    for kernel in ("lead", "assist"):
        code(kernel)


@functools.cache
def _rest() -> tuple[int, int]:
    """The address of the system's function that lets a thread sleep, and its argument."""
    if sys.platform == "win32":
        return ctypes.cast(ctypes.windll.kernel32.Sleep, ctypes.c_void_p).value or 0, 1  # milliseconds
    return ctypes.cast(ctypes.CDLL(None).usleep, ctypes.c_void_p).value or 0, 50  # microseconds


class Stepper:
    """Call it with a token: its logits, (1, vocab), which stay until the next call.  The cache grows by the token."""

    def __init__(self, model: Model, cache: Cache):
        self._model, self._cache, self._threads = model, cache, torch.get_num_threads()
        self._begin()
        self._together = _together()
        self._helped = next(self._together)

    def __call__(self, token: int) -> Tensor:
        cache, model = self._cache, self._model
        if cache.length >= self._table.capacity:
            cache.reserve(1)
            self._begin()
        tokens = torch.tensor([[token]])
        self._table.x[...] = model.begin(tokens, model.step(tokens, None, cache)).view(-1).numpy()
        self._run(cache.length)
        cache.advance(1)
        return model.said(torch.from_numpy(self._table.logits)[None])

    def _begin(self) -> None:
        """A table over the cache as it lies now, and what threads share while they go through it."""
        self._table = Table(self._model, self._cache, self._threads)
        self._shared = np.zeros(steps.SHARED, TABLE)

    def _run(self, position: int) -> None:
        table, shared = self._table, self._shared
        count = len(table.instructions) - 1
        shared[steps.TICKET] = shared[steps.NAPS] = 0
        started = time.perf_counter()
        try:
            for _ in range(self._threads - 1 if self._helped else 0):
                products.workers().submit(_assist, table, shared)
            one_token.lead(table.instructions.reshape(-1), shared, count, position, *_rest())
        finally:
            shared[steps.TICKET] = count << 32  # also where none led: nobody waits for ever
        self._helped = self._together.send((time.perf_counter() - started, int(shared[steps.NAPS])))


def _assist(table: Table, shared: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
    """Takes the table itself, so that its memory lasts as long as this runs."""
    one_token.assist(table.instructions.reshape(-1), shared, len(table.instructions) - 1, *_rest())
