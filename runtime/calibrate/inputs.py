"""What goes into matrices: E[x x'] over a text, of each expert apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmconv.runtime.calibrate.collecting import name_of_experts
from llmconv.runtime.calibrate.units import Unit
from llmconv.runtime.checks import not_finite
from llmconv.runtime.linear import ExpertLinear
from llmconv.runtime.model import Model

__all__ = ["Inputs", "inputs_of"]

CLIP = 4.0
"""A token counts at most as much as this many mean ones: weights are heavy-tailed, and few tokens would decide."""
_MOST_BYTES = 1 << 30
"""Of the matrices of all experts of a tensor; where they would take more, experts share one."""


@dataclass(frozen=True)
class Inputs:
    """h: one (columns, columns) float64 a matrix of the tensor, or one for all.   counts: tokens that each has seen."""

    h: list[Tensor]
    counts: list[int]


class _Sum:
    def __init__(self, matrices: int, columns: int, weights: Tensor | None):
        shared = matrices * columns * columns * 8 > _MOST_BYTES
        self.h = [torch.zeros(columns, columns, dtype=torch.float64) for _ in range(1 if shared else matrices)]
        self.counts, self.weights, self.at = [0] * matrices, weights, 0

    def add(self, x: Tensor, part: int) -> bool:
        """Whether the inputs are finite."""
        flat = x.detach().reshape(-1, x.shape[-1]).float()
        weighted = flat
        if self.weights is not None:
            new = self.weights[self.at : self.at + len(flat), None].to(flat.device)
            weighted = flat * new
            self.at += len(flat)
        square = (weighted.t() @ flat).cpu()
        self.h[min(part, len(self.h) - 1)] += square
        self.counts[part] += len(flat)
        return bool(square.diagonal().sum().isfinite())

    def result(self) -> Inputs:
        """Means; an expert's, where it saw few tokens, is drawn towards that of all."""
        total = max(1, sum(self.counts))
        whole = torch.stack(self.h).sum(0) / total if len(self.h) > 1 else self.h[0] / total
        if len(self.h) == 1:
            return Inputs([whole], self.counts)
        columns = whole.shape[0]
        drawn = [(h + columns * whole) / (n + columns) for h, n in zip(self.h, self.counts, strict=True)]
        return Inputs(drawn, self.counts)


def inputs_of(
    model: Model,
    unit: Unit,
    order: Sequence[Sequence[str]],
    stage: int,
    weights: Mapping[str, Tensor],
    states: Iterable[tuple[Tensor, Tensor]],
) -> dict[str, Inputs]:
    """Of a stage's tensors; those of one input and the same weights share the sums.   states: (states, tokens) a batch.

    weights: the squared gradient of each token, by tensor; absent where every token counts alike.
    """
    names = set(order[stage])
    later = {name for names in order[stage + 1 :] for name in names}
    sums: dict[str, _Sum] = {}
    alone = all(name not in weights for name in names) and not any(map(name_of_experts, names))
    leader = order[stage][0]

    def seen(name: str, x: Tensor, y: Tensor | None, part: int | None) -> None:
        if y is None:
            return
        if name in later:
            raise StopIteration
        if name not in names or (alone and name != leader):
            return
        if name not in sums:
            module = unit.modules[name]
            matrices = module.shape[0] if isinstance(module, ExpertLinear) and name_of_experts(name) else 1
            sums[name] = _Sum(matrices, x.shape[-1], _clipped(weights.get(name)))
        if not sums[name].add(x, part or 0):
            raise not_finite(model, f"the inputs of {name!r}", bool(x.isnan().any()))

    for state, tokens in states:
        unit.watched(state, tokens, seen)
    found = {name: s.result() for name, s in sums.items()}
    return dict.fromkeys(order[stage], found[leader]) if alone and leader in found else found


def _clipped(weights: Tensor | None) -> Tensor | None:
    """Weights of mean one, the largest cut."""
    if weights is None:
        return None
    mean = weights.mean()
    if not bool(mean > 0):
        return None
    cut = (weights / mean).clamp(max=CLIP)
    return cut / cut.mean()
