"""Threads that change no figure: torch on one, pieces that don't depend on each other on several; and their memory."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from llmconv.formats.sharing.team import current

__all__ = ["each", "given_back", "one_thread", "product"]

T = TypeVar("T")


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it torch uses one thread, so that sums are taken in one order whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def each(work: Callable[[T], Any], items: Sequence[T], jobs: int) -> list[Any]:
    """`work` on every item, on so many threads of this process or of each of several; the results in order."""
    team = current()
    if team is None or len(items) < 2:
        return _here(work, items, jobs)
    shares = team.pieces(team.size, lambda rank: _here(work, items[rank :: team.size], jobs))
    found = [None] * len(items)
    for rank, share in enumerate(shares):
        found[rank :: team.size] = share
    return found


def _here(work: Callable[[T], Any], items: Sequence[T], jobs: int) -> list[Any]:
    if jobs == 1 or len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(jobs, "llmconv-round", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(work, items))


def given_back() -> None:
    """See that freed memory goes back to the system: glibc keeps what lies between small pieces, for each thread."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def product(a: Any, b: Any) -> Any:
    """Two numpy matrices multiplied by torch, on this thread's number of threads."""
    return (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()
