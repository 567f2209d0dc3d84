"""Threads that change no figure: torch on one, pieces that don't depend on each other on several; and their memory."""

from __future__ import annotations

import ctypes
import functools
import itertools
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import torch

from llmconv.formats.sharing.team import current, shared_out

__all__ = ["axes", "by_turns", "each", "given_back", "one_thread", "product", "root"]

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it torch uses one thread, so that sums are taken in one order whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def each(work: Callable[[T], R], items: Sequence[T], jobs: int, costs: Sequence[float]) -> Generator[R]:
    """`work` on every item, on so many threads of this process or of each of several; the results in order.

    costs: of each item, by which processes share them.
    """
    team = current()
    if team is None:
        return _here(work, items, costs, jobs)
    shares = shared_out(costs, team.size)

    def own(rank: int) -> list[R]:
        share = shares[rank]
        return list(_here(work, [items[i] for i in share], [costs[i] for i in share], jobs))

    found = team.pieces(team.size, own)
    pairs = (zip(share, results, strict=True) for share, results in zip(shares, found, strict=True))
    made = dict(itertools.chain.from_iterable(pairs))
    return (made.pop(i) for i in range(len(items)))


def _here(work: Callable[[T], R], items: Sequence[T], costs: Sequence[float], jobs: int) -> Generator[R]:
    if jobs == 1 or len(items) < 2:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(jobs, "llmconv-round", initializer=torch.set_num_threads, initargs=(1,))
    try:
        dearest = sorted(range(len(items)), key=lambda i: -costs[i])
        made = {i: pool.submit(work, items[i]) for i in dearest}
        for i in range(len(items)):
            yield made.pop(i).result()
    finally:
        pool.shutdown(cancel_futures=True)


class _Left(BaseException):
    """Nobody waits for this work any more."""


def by_turns(work: Callable[[Callable[[], None]], R]) -> Generator[None, None, R]:
    """`work`, on a thread of its own, as far as it calls what it is given: there it waits until it is called on.

    The two threads never run at once, so that what either has made the other may use.
    """
    on, back = threading.Semaphore(0), threading.Semaphore(0)
    left, ended = False, list[Callable[[], R]]()

    def rest() -> None:
        back.release()
        on.acquire()
        if left:
            raise _Left

    def run() -> None:
        on.acquire()
        try:
            with torch.inference_mode(inference):
                torch.set_num_threads(1)
                made = work(rest)
            ended.append(lambda: made)
        except BaseException as error:
            ended.append(functools.partial(_raised, error))
        back.release()

    inference = torch.is_inference_mode_enabled()
    thread = threading.Thread(target=run, name="llmconv-turns", daemon=True)
    thread.start()
    try:
        while True:
            on.release()
            back.acquire()
            if ended:
                return ended[0]()
            yield
    finally:
        left = True
        on.release()
        thread.join()


def _raised(error: BaseException) -> NoReturn:
    raise error


def given_back() -> None:
    """See that freed memory goes back to the system: glibc keeps what lies between small pieces, for each thread."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def product(a: Any, b: Any) -> Any:
    """Two numpy matrices multiplied by torch, on this thread's number of threads."""
    return (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()


def root(a: Any) -> Any:
    """The Cholesky factor of a numpy matrix, by torch: lower triangular, on this thread's number of threads."""
    return torch.linalg.cholesky(torch.from_numpy(a)).numpy()


def axes(a: Any) -> Any:
    """The eigenvectors of a symmetric numpy matrix, in columns, by torch, on this thread's number of threads."""
    return torch.linalg.eigh(torch.from_numpy(a))[1].numpy()
