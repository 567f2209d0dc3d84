"""Several processes of one run, as torchrun starts them: who does what, and how they agree.

Within `together()` everything that writes tensors, compares them or runs batches does its share of it, and all files
appear when every process is done, or none.  The processes talk through torch.distributed; files are written in place by
each, so that the outputs' folder must be one that all of them see.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from llmconv.errors import LlmconvError, MissingExtra, UsageError

__all__ = ["FROM_AFAR", "Team", "beside", "current", "ended", "shared_out", "together"]

T = TypeVar("T")

FROM_AFAR = re.compile(r"gloo/|TCPStore|ProcessGroup|NCCL|ncclComm|Connection (closed|reset) by peer")
"""What torch's errors speak of when another process of the run is gone."""

_HOURS = 24
"""How long one waits for another: shares of a terabyte differ by more than torch's own ten minutes."""


class Team:
    """The processes.   rank: this one's number.   size: how many there are."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size

    def all(self, value: Any) -> list[Any]:
        """Every process's value, by rank.  `LlmconvError` when one of them is gone."""
        from torch import distributed

        found: list[Any] = [None] * self.size
        with self._talking():
            distributed.all_gather_object(found, value)
        return found

    def exchange(self, sent: Mapping[int, Any], got: Mapping[int, Any]) -> None:
        """Send tensors to other processes and fill those that others send, by rank; empty ones stay at home."""
        from torch import distributed

        with self._talking():
            waiting = [distributed.irecv(tensor, rank) for rank, tensor in got.items() if tensor.numel()]
            waiting += [distributed.isend(tensor, rank) for rank, tensor in sent.items() if tensor.numel()]
            for work in waiting:
                if work is not None:
                    work.wait()

    @contextlib.contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not FROM_AFAR.search(str(error)):
                raise
            raise LlmconvError(
                f"another of the run's {self.size} processes ended, so nothing was written; see what it said, and run "
                "it again"
            ) from None

    def agree(self, error: BaseException | None = None) -> None:
        """Wait for all; when any comes with an error, all end with it."""
        said = self.all(None if error is None else str(error) or type(error).__name__)
        if error is not None:
            return  # which is on its way already
        for rank, sentence in enumerate(said):
            if sentence is not None:
                raise LlmconvError(f"process {rank} of {self.size}: {sentence}")

    def first(self, make: Callable[[], T]) -> T:
        """What the first process makes, which the others wait for."""
        made, error = None, None
        if not self.rank:
            try:
                made = make()
            except BaseException as found:
                error = found
        said = self.all(None if self.rank else (made, error and str(error)))[0]
        if error is not None:
            raise error
        if said[1] is not None:
            raise LlmconvError(f"process 0 of {self.size}: {said[1]}")
        return said[0]  # type: ignore[no-any-return]

    def pieces(self, count: int, make: Callable[[int], T]) -> list[T]:
        """`make(i)` for every i, each made by one of the processes, in order; all have all of them then."""
        mine, error = {}, None
        try:
            mine = {i: make(i) for i in range(self.rank, count, self.size)}
        except BaseException as found:
            error = found
        self.agree(error)
        if error is not None:
            raise error
        every = {i: value for part in self.all(mine) for i, value in part.items()}
        return [every[i] for i in range(count)]


def shared_out(costs: Sequence[float], size: int) -> list[list[int]]:
    """Pieces of work for each of `size` processes: the dearest first, to whom has least so far; in order for each."""
    loads = [0.0] * size
    found: list[list[int]] = [[] for _ in range(size)]
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        least = min(range(size), key=lambda rank: (loads[rank], rank))
        loads[least] += costs[i]
        found[least].append(i)
    return [sorted(part) for part in found]


def ended(size: int) -> str:
    """What to say when torchrun, or somebody, ends the processes of a run."""
    return f"the run of {size} processes was ended, by somebody or because one of them ended; nothing was written"


def beside() -> int:
    """How many processes of the run are on this machine, this one among them; `LOCAL_RANK` is its number there."""
    return 1 if _team is None else int(os.environ.get("LOCAL_WORLD_SIZE", _team.size))


_team: Team | None = None


def current() -> Team | None:
    """The team that works together at the moment; None for this process alone."""
    return _team


@contextlib.contextmanager
def together() -> Iterator[Team | None]:
    """Share the work of what is called within among the processes that torchrun started; None where it started one.

    All of them make the same calls.   `UsageError` where torch has no torch.distributed, `MissingExtra` without torch.
    """
    global _team
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size <= 1 or _team is not None:
        yield _team
        return
    try:
        from torch import distributed
    except ModuleNotFoundError:
        raise MissingExtra("several processes", "torch", "torch") from None
    if not distributed.is_available():
        raise UsageError("this build of torch has no torch.distributed, which several processes need")
    own = not distributed.is_initialized()
    if own:
        distributed.init_process_group("gloo", timeout=timedelta(hours=_HOURS))
    _team = Team(distributed.get_rank(), size)
    try:
        yield _team
    except KeyboardInterrupt:
        if _team.rank:
            raise
        raise LlmconvError(ended(size)) from None
    finally:
        _team = None
        if own:
            with contextlib.suppress(Exception):
                distributed.destroy_process_group()
