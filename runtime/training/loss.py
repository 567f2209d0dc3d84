"""The loss of the next tokens without all of their logits: of some positions at a time, gradients made on the way.

What `F.cross_entropy` of a head's product gives, to rounding: positions without a target cost nothing, and the logits
of a step, often larger than everything else in it, are never there together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["loss_of_head"]

POSITIONS = 128
"""Logits of so many are held at a time."""


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
        kept = (targets != -100).nonzero()[:, 0]
        said, wanted = hidden.index_select(0, kept), targets.index_select(0, kept)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        of_said, of_weight = torch.empty_like(said), torch.zeros_like(weight)
        room = said.new_empty(min(POSITIONS, len(said)), len(weight))
        for start in range(0, len(said), POSITIONS):
            x, target = said[start : start + POSITIONS], wanted[start : start + POSITIONS, None]
            logits = torch.mm(x, weight.t(), out=room[: len(x)])
            most = logits.amax(1, keepdim=True)
            chosen = logits.gather(1, target) - most
            sums = logits.sub_(most).exp_().sum(1, keepdim=True)
            total += (sums.log() - chosen).sum(dtype=torch.float64)
            logits.mul_(share / sums).scatter_add_(1, target, torch.full_like(chosen, -share))
            torch.mm(logits, weight, out=of_said[start : start + POSITIONS])
            of_weight.addmm_(logits.t(), x)
        of_hidden = torch.zeros_like(hidden).index_copy_(0, kept, of_said)
        ctx.save_for_backward(of_hidden, of_weight)
        summed = total.to(hidden.dtype)
        ctx.mark_non_differentiable(summed)
        return summed, summed * share

    @staticmethod
    def backward(ctx: Any, _: Tensor, given: Tensor) -> tuple[Tensor, Tensor, None, None]:
        of_hidden, of_weight = ctx.saved_tensors
        if float(given) != 1:
            of_hidden, of_weight = of_hidden * given, of_weight * given
        return of_hidden, of_weight, None, None


def loss_of_head(hidden: Tensor, weight: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Summed cross entropy of the logits hidden @ weight.T (without a gradient), and that times `share`.

    hidden: (..., dim) float.   weight: (vocab, dim).   targets: (...) int64, -100 where there is none.
    """
    found: tuple[Tensor, Tensor] = _HeadLoss.apply(hidden.flatten(0, -2), weight, targets.flatten(), share)  # type: ignore[no-untyped-call]
    return found
