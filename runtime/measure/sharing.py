"""What is made of each batch, by this process or by one of several, always in the batches' order."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Self

from torch import Tensor

from llmconv.formats.sharing.team import current
from llmconv.progress import Progress
from llmconv.runtime.measure.chunks import Batch
from llmconv.runtime.model import Model
from llmconv.runtime.streamed.passing import Passed
from llmconv.runtime.streamed.states import States

__all__ = ["Recall", "of_each"]


class Recall:
    """What a model gave at the scored positions of each batch, in a temporary file, for others to be compared with."""

    def __init__(self, model: Model):
        self.model, self._states, self._known = model, States(0, model.device), set[int]()

    def holds(self, numbers: Iterable[int]) -> bool:
        return self._known.issuperset(numbers)

    def of(self, i: int, run: Callable[[], Tensor]) -> Tensor:
        """(N, dim) of batch `i`: what is kept, or what `run` gives."""
        if i not in self._known:
            self._states.put(i, run())
            self._known.add(i)
        return self._states.get(i)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._states.close()


def of_each(
    models: Sequence[Model],
    batches: Sequence[Batch],
    make: Callable[[Batch, list[Tensor]], Tensor],
    progress: Progress | None,
    recall: Recall | None = None,
) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch with what is made of it and of the models' hidden states of its scored positions, (N, dim) each.

    Of several processes each runs some of the batches, and all get all: the numbers are those of one process.
    recall: of one of the models, from an earlier look at the same batches; what it holds is not run again.
    """
    team = current()
    rank, size = (0, 1) if team is None else (team.rank, team.size)
    mine = range(rank, len(batches), size)
    tokens = [batches[i].inputs for i in mine]
    kept = recall if recall is not None and recall.holds(mine) else None
    with contextlib.ExitStack() as stack:
        passed = {
            model: stack.enter_context(Passed(model, tokens, progress))
            for model in dict.fromkeys(models)
            if kept is None or model is not kept.model
        }

        def scored(model: Model, i: int) -> Tensor:
            return passed[model].hidden(i // size)[:, batches[i].scored].flatten(0, 1)

        def hidden(model: Model, i: int) -> Tensor:
            if recall is None or model is not recall.model:
                return scored(model, i)
            return recall.of(i, functools.partial(scored, model, i))

        def made(i: int) -> Tensor:
            return make(batches[i], [hidden(model, i) for model in models])

        found = (made(i) for i in range(len(batches))) if team is None else iter(team.pieces(len(batches), made))
        yield from zip(batches, found, strict=True)
