"""A text's batches shared out among the processes of a run, and sums that don't depend on how many there are.

A sum over a text is that of its batches, in their order, each summed first on its own: so it has the same bits whoever
ran which.  The processes run a batch each, then hand each other what it adds: each adds up a share of the numbers, and
all get all of them at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from llmconv.formats.sharing.team import current

__all__ = ["Sum", "added", "agreed_least", "as_one", "merged", "mine", "several", "turns"]

K = TypeVar("K")
V = TypeVar("V")

_TILE = 1 << 22
"""Numbers that are handed over at a time."""


def several() -> int:
    """How many processes there are."""
    team = current()
    return 1 if team is None else team.size


def mine(count: int) -> range:
    """The batches that this process runs."""
    team = current()
    return range(count) if team is None else range(team.rank, count, team.size)


def as_one(run: Callable[[], None]) -> None:
    """`run`, and an error of one process is one of all."""
    team, error = current(), None
    if team is None:
        return run()
    try:
        run()
    except BaseException as found:
        error = found
    team.agree(error)
    if error is not None:
        raise error


def turns(count: int, run: Callable[[int], None], done: int = 0) -> Iterator[range]:
    """`run(i)` for each of so many batches after those that are done, one by each process at a time; those that have
    been run since."""
    team = current()
    size, rank = several(), 0 if team is None else team.rank
    for first in range(done, count, size):
        some = range(first, min(first + size, count))

        def one(i: int = first + rank, known: range = some) -> None:
            if i in known:
                run(i)

        as_one(one)
        yield some


def merged(found: Mapping[K, V]) -> dict[K, V]:
    """What all processes have found, the first ones first; of one key the first one's."""
    team = current()
    out: dict[K, V] = {}
    for part in [found] if team is None else team.all(dict(found)):
        out |= {key: value for key, value in part.items() if key not in out}
    return out


def agreed_least(size: int | None) -> int | None:
    """The least of what processes have; None where nobody knows."""
    team = current()
    known = [n for n in ([size] if team is None else team.all(size)) if n is not None]
    return min(known, default=None)


def added(counts: list[int]) -> list[int]:
    """The sums of all processes' whole numbers."""
    team = current()
    return counts if team is None else [sum(column) for column in zip(*team.all(counts), strict=True)]


class Sum:
    """A sum over batches.

    here: float32, on the CPU: what is added while a batch runs, and in the end the sum.   apart: whether a batch adds
    to it more than once, so that what it adds must be summed first.
    """

    def __init__(self, here: Tensor, apart: bool):
        self.here, self._team = here, current()
        self._flat, self._apart = here.view(-1), apart or self._team is not None
        self._step = -(-self._flat.numel() // several())
        self._total: Tensor | None = None

    def add(self, some: range) -> None:
        """After batches that ran side by side, one by each of the first `len(some)` processes."""
        if not self._apart:
            return
        if self._total is None:
            own = self._share(0 if self._team is None else self._team.rank)
            self._total = torch.zeros(own.stop - own.start)
        if self._team is None:
            self._total += self._flat
        else:
            self._handed(len(some))
        self.here.zero_()

    def so_far(self) -> Tensor:
        """What one process alone has added up, flat."""
        return self._flat if self._total is None else self._total

    def go_on(self, found: Tensor) -> None:
        """From `so_far` of another time."""
        if self._apart:
            self._total = found
        else:
            self._flat.copy_(found)

    def whole(self) -> Tensor:
        """The sum, in `here`."""
        total, self._total, team = self._total, None, self._team
        if total is None:
            return self.here
        if team is None:
            self._flat.copy_(total)
            return self.here
        self._flat[self._share(team.rank)] = total
        for start in range(0, self._step, _TILE):
            tiles = [self._flat[self._tile(rank, start)] for rank in range(team.size)]
            own = tiles[team.rank]
            others = [rank for rank in range(team.size) if rank != team.rank]
            team.exchange(dict.fromkeys(others, own), {rank: tiles[rank] for rank in others})
        return self.here

    def _handed(self, given: int) -> None:
        """What each of `given` processes adds, to whoever adds up that share."""
        team, total = self._team, self._total
        assert team is not None and total is not None
        for start in range(0, self._step, _TILE):
            out = total[start : start + _TILE]
            others = [rank for rank in range(team.size) if rank != team.rank]
            sent = {rank: self._flat[self._tile(rank, start)] for rank in others if team.rank < given}
            got = {rank: torch.empty_like(out) for rank in others if rank < given}
            team.exchange(sent, got)
            got[team.rank] = self._flat[self._tile(team.rank, start)]
            for rank in range(given):
                out += got[rank]

    def _share(self, rank: int) -> slice:
        n = self._flat.numel()
        return slice(min(n, rank * self._step), min(n, (rank + 1) * self._step))

    def _tile(self, rank: int, start: int) -> slice:
        own = self._share(rank)
        return slice(min(own.stop, own.start + start), min(own.stop, own.start + start + _TILE))
