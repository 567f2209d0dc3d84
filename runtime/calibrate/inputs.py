"""What goes into matrices: E[x x'] over a text, of each expert apart."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from llmconv.runtime.calibrate.collecting import name_of_experts
from llmconv.runtime.calibrate.layered import Between
from llmconv.runtime.calibrate.moments import add_moments, mirrored
from llmconv.runtime.calibrate.shared import Sum, added, merged, turns
from llmconv.runtime.calibrate.units import Unit
from llmconv.runtime.calibrate.watching import often
from llmconv.runtime.checks import not_finite
from llmconv.runtime.linear import ExpertLinear, Linear
from llmconv.runtime.model import Model

__all__ = ["Inputs", "Sums", "clipped", "inputs_of"]

CLIP = 4.0
"""A token counts at most as much as this many mean ones: weights are heavy-tailed, and few tokens would decide."""
_MOST_BYTES = 1 << 29
"""Of the matrices of all experts of a tensor, or of both halves of a text; where they would take more, there is one."""


@dataclass(frozen=True)
class Inputs:
    """h: one (columns, columns) float32 a matrix of the tensor, or one for all.   counts: tokens that each has seen.
    half: what the first half of the text adds to `h`, where that is of one matrix and known."""

    h: list[Tensor]
    counts: list[int]
    half: Tensor | None = None


class Sums:
    """Of one tensor's inputs, or of several that have the same; of a single matrix for each half of the text apart.
    weights: of tokens.   apart: as `shared.Sum`'s."""

    def __init__(self, matrices: int, columns: int, weights: Tensor | None, apart: bool):
        sums = 2 if matrices == 1 else matrices
        shared = sums * columns * columns * 4 > _MOST_BYTES
        apart = apart or (shared and matrices > 1)
        self._halves = matrices == 1 and not shared
        self.h = [Sum(torch.zeros(columns, columns), apart) for _ in range(1 if shared else sums)]
        self.counts, self.weights, self.at, self._late = [0] * matrices, clipped(weights), 0, False

    def begin(self, before: int, tokens: int) -> None:
        """A batch with so many of all tokens before it."""
        self.at = 0 if self.weights is None else len(self.weights) * before // tokens
        self._late = 2 * before >= tokens

    def add(self, x: Tensor, part: int) -> bool:
        """Whether the inputs are finite."""
        flat, weights = x.detach().reshape(-1, x.shape[-1]).float(), None
        if self.weights is not None:
            weights = self.weights[self.at : self.at + len(flat)].to(flat.device)
            self.at += len(flat)
        h = self.h[self._late if self._halves else min(part, len(self.h) - 1)].here
        add_moments(h, flat, weights)
        self.counts[min(part, len(self.counts) - 1)] += len(flat)
        return bool(h.diagonal().sum().isfinite())

    def ran(self, some: range) -> None:
        for h in self.h:
            h.add(some)

    def result(self) -> Inputs:
        """Means; an expert's, where it saw few tokens, is drawn towards that of all."""
        every, counts = [mirrored(h.whole()) for h in self.h], added(self.counts)
        total = max(1, sum(counts))
        if self._halves:
            first, second = (h.div_(total) for h in every)
            tried = bool(first.diagonal().any()) and bool(second.diagonal().any())
            return Inputs([second.add_(first)], counts, first if tried else None)
        if len(every) == 1:
            return Inputs([every[0].div_(total)], counts)
        whole = torch.zeros_like(every[0])
        for h in every:
            whole += h / total
        columns = whole.shape[0]
        drawn = [h.add_(whole, alpha=columns).div_(n + columns) for h, n in zip(every, counts, strict=True)]
        return Inputs(drawn, counts)


class _Watching:
    """What is known while a unit's batches run.   arguments as `inputs_of`'s."""

    def __init__(
        self, model: Model, unit: Unit, names: Collection[str], weights: Mapping[str, Tensor], until: Collection[str]
    ):
        self.model, self.unit, self.names, self.weights, self.until = model, unit, names, weights, until
        self.sums: dict[str, Sums] = {}
        self.leaders: dict[str, str] = {}  # of each name, whose sums it has: its own, or those of one of the same input
        self.last: tuple[Tensor, str] | None = None
        self.order: list[str] = []  # of a batch's products
        self.ending: str | None = None
        self.before, self.tokens = 0, 1

    def run(self, states: Between, i: int) -> None:
        state, tokens = states[i]
        self.before, self.tokens = states.before(i)
        for sums in self.sums.values():
            sums.begin(self.before, self.tokens)
        self.order.clear()
        self.unit.watched(state, tokens, self.seen, self.ending)
        self.ending = self.ending or self._ending()
        self.last = None

    def _ending(self) -> str | None:
        """The last of a batch's products, if only its inputs are wanted: there a run has shown enough."""
        last = self.order[-1] if self.order else ""
        once = last in self.names and self.order.count(last) == 1
        return last if once and isinstance(self.unit.modules[last], Linear) else None

    def seen(self, name: str, x: Tensor, y: Tensor | None, part: int | None) -> None:
        if name in self.until:
            raise StopIteration
        self.order.append(name)
        if y is None or name not in self.names:
            return
        if name not in self.leaders:
            last = self.last
            alike = last is not None and last[0] is x and name not in self.weights and last[1] not in self.weights
            self.leaders[name] = self.leaders[last[1]] if alike and last is not None else name
        self.last = x, name
        if self.leaders[name] != name:
            return
        if name not in self.sums:
            self.sums[name] = self._sums(name, x.shape[-1])
        if not self.sums[name].add(x, part or 0):
            raise not_finite(self.model, f"the inputs of {name!r}", bool(x.isnan().any()))

    def ran(self, some: range) -> None:
        """After batches that ran side by side: what any of them went through is summed in all processes."""
        self.leaders = merged(self.leaders)
        columns = merged({name: sums.h[0].here.shape[0] for name, sums in self.sums.items()})
        self.sums = {name: self.sums.get(name) or self._sums(name, width) for name, width in columns.items()}
        for sums in self.sums.values():
            sums.ran(some)

    def _sums(self, name: str, columns: int) -> Sums:
        module = self.unit.modules[name]
        matrices = module.shape[0] if isinstance(module, ExpertLinear) and name_of_experts(name) else 1
        found = Sums(matrices, columns, self.weights.get(name), often(self.model))
        found.begin(self.before, self.tokens)
        return found


def inputs_of(
    model: Model,
    unit: Unit,
    names: Collection[str],
    weights: Mapping[str, Tensor],
    states: Between,
    until: Collection[str] = (),
) -> dict[str, Inputs]:
    """Of some of a unit's tensors, as far as tokens go through them; those of one input and no weights share the sums.

    weights: the squared gradient of each token, by tensor; absent where every token counts alike.
    states: of all batches; this process runs its own.   until: tensors at which a batch's run has shown enough.
    """
    watching = _Watching(model, unit, names, weights, until)
    for some in turns(len(states), functools.partial(watching.run, states)):
        watching.ran(some)
    found = {name: sums.result() for name, sums in watching.sums.items()}
    return {name: found[leader] for name, leader in watching.leaders.items()}


def clipped(weights: Tensor | None) -> Tensor | None:
    """Weights of mean one, the largest cut."""
    if weights is None:
        return None
    mean = weights.mean()
    if not bool(mean > 0):
        return None
    cut = (weights / mean).clamp(max=CLIP)
    return cut / cut.mean()
