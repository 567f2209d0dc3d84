"""What goes into matrices: E[x x'] over a text, of each expert apart."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmconv.runtime.calibrate.collecting import name_of_experts
from llmconv.runtime.calibrate.moments import add_moments
from llmconv.runtime.calibrate.units import Unit
from llmconv.runtime.checks import not_finite
from llmconv.runtime.linear import ExpertLinear, Linear
from llmconv.runtime.model import Model

__all__ = ["Inputs", "clipped", "inputs_of"]

CLIP = 4.0
"""A token counts at most as much as this many mean ones: weights are heavy-tailed, and few tokens would decide."""
_MOST_BYTES = 1 << 29
"""Of the matrices of all experts of a tensor; where they would take more, experts share one."""


@dataclass(frozen=True)
class Inputs:
    """h: one (columns, columns) float32 a matrix of the tensor, or one for all.   counts: tokens that each has seen."""

    h: list[Tensor]
    counts: list[int]


class _Sum:
    def __init__(self, matrices: int, columns: int, weights: Tensor | None):
        shared = matrices * columns * columns * 4 > _MOST_BYTES
        self.h = [torch.zeros(columns, columns) for _ in range(1 if shared else matrices)]
        self.counts, self.weights, self.at = [0] * matrices, weights, 0

    def add(self, x: Tensor, part: int) -> bool:
        """Whether the inputs are finite."""
        flat, weights = x.detach().reshape(-1, x.shape[-1]).float(), None
        if self.weights is not None:
            weights = self.weights[self.at : self.at + len(flat)].to(flat.device)
            self.at += len(flat)
        h = self.h[min(part, len(self.h) - 1)]
        add_moments(h, flat, weights)
        self.counts[part] += len(flat)
        return bool(h.diagonal().sum().isfinite())

    def result(self) -> Inputs:
        """Means; an expert's, where it saw few tokens, is drawn towards that of all."""
        total = max(1, sum(self.counts))
        if len(self.h) == 1:
            return Inputs([self.h[0].div_(total)], self.counts)
        whole = torch.zeros_like(self.h[0])
        for h in self.h:
            whole += h / total
        columns = whole.shape[0]
        drawn = [h.add_(whole, alpha=columns).div_(n + columns) for h, n in zip(self.h, self.counts, strict=True)]
        return Inputs(drawn, self.counts)


def inputs_of(
    model: Model,
    unit: Unit,
    names: Collection[str],
    weights: Mapping[str, Tensor],
    states: Iterable[tuple[Tensor, Tensor]],
    until: Collection[str] = (),
) -> dict[str, Inputs]:
    """Of some of a unit's tensors, as far as tokens go through them; those of one input and no weights share the sums.

    weights: the squared gradient of each token, by tensor; absent where every token counts alike.
    states: (states, tokens) a batch.   until: tensors at which a batch's run has shown enough.
    """
    sums: dict[str, _Sum] = {}
    leaders: dict[str, str] = {}  # of each name, whose sums it has: its own, or those of one with the same input
    last: tuple[Tensor, str] | None = None
    order: list[str] = []  # of a batch's products

    def seen(name: str, x: Tensor, y: Tensor | None, part: int | None) -> None:
        nonlocal last
        if name in until:
            raise StopIteration
        order.append(name)
        if y is None or name not in names:
            return
        if name not in leaders:
            alike = last is not None and last[0] is x and name not in weights and last[1] not in weights
            leaders[name] = leaders[last[1]] if alike and last is not None else name
        last = x, name
        if leaders[name] != name:
            return
        if name not in sums:
            module = unit.modules[name]
            matrices = module.shape[0] if isinstance(module, ExpertLinear) and name_of_experts(name) else 1
            sums[name] = _Sum(matrices, x.shape[-1], clipped(weights.get(name)))
        if not sums[name].add(x, part or 0):
            raise not_finite(model, f"the inputs of {name!r}", bool(x.isnan().any()))

    ending: str | None = None
    for state, tokens in states:
        order.clear()
        unit.watched(state, tokens, seen, ending)
        ending = ending or _ending(unit, order, names)
        last = None
    found = {name: s.result() for name, s in sums.items()}
    return {name: found[leader] for name, leader in leaders.items()}


def _ending(unit: Unit, order: Sequence[str], names: Collection[str]) -> str | None:
    """The last of a batch's products, if only its inputs are wanted: there a run has shown enough."""
    if not order or order[-1] not in names or order.count(order[-1]) > 1:
        return None
    return order[-1] if isinstance(unit.modules[order[-1]], Linear) else None


def clipped(weights: Tensor | None) -> Tensor | None:
    """Weights of mean one, the largest cut."""
    if weights is None:
        return None
    mean = weights.mean()
    if not bool(mean > 0):
        return None
    cut = (weights / mean).clamp(max=CLIP)
    return cut / cut.mean()
