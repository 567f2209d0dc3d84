"""What is made of each batch, by this process or by one of several, always in the batches' order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from llmconv.formats.sharing.team import current
from llmconv.progress import Progress
from llmconv.runtime.measure.chunks import Batch
from llmconv.runtime.model import Model
from llmconv.runtime.streamed.passing import Passed

__all__ = ["of_each"]


def of_each(
    models: Sequence[Model],
    batches: Sequence[Batch],
    make: Callable[[Batch, list[Tensor]], Tensor],
    progress: Progress | None,
) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch with what is made of it and of the models' hidden states of its scored positions, (N, dim) each.

    Of several processes each runs some of the batches, and all get all: the numbers are those of one process.
    """
    team = current()
    rank, size = (0, 1) if team is None else (team.rank, team.size)
    tokens = [batch.inputs for batch in batches[rank::size]]
    with contextlib.ExitStack() as stack:
        passed = [stack.enter_context(Passed(model, tokens, progress)) for model in models]

        def made(i: int) -> Tensor:
            hidden = [of.hidden(i // size)[:, batches[i].scored].flatten(0, 1) for of in passed]
            return make(batches[i], hidden)

        found = (made(i) for i in range(len(batches))) if team is None else iter(team.pieces(len(batches), made))
        yield from zip(batches, found, strict=True)
