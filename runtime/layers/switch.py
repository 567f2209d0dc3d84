"""Adapters in a model's weights that tokens turn on (Granite Switch): each token's is that of the last ones that voted.

A token that turns an adapter on is embedded as another.  Adapter 0 is none.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from llmconv.convert.decoders.switched import Switch
from llmconv.runtime.cache import Step
from llmconv.runtime.linear import ExpertLinear, Linear

__all__ = ["Lora", "Switched", "Turned", "instead", "turned_on"]


class Turned:
    """Which adapter each token of the step that is computed has; all matrices of a model look here."""

    adapters: Tensor | None = None


class Lora(nn.Module):
    """What adapters add to a product: (..., in) -> (..., out)."""

    turned: Turned

    def __init__(self, down: ExpertLinear, up: ExpertLinear):
        super().__init__()
        self.lora_a, self.lora_b = down, up

    def forward(self, x: Tensor) -> Tensor:
        return _added(self, x)


class Switched(Linear):
    """A matrix with adapters; the others as `Linear` has them."""

    turned: Turned

    def __init__(self, shape: tuple[int, ...], kind: Any, bias: Any, dtype: torch.dtype, lora: Lora):
        super().__init__(shape, kind, bias, dtype)
        self.lora_a, self.lora_b = lora.lora_a, lora.lora_b

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + _added(self, x)


def _added(part: Lora | Switched, x: Tensor) -> Tensor:
    out = x.new_zeros(*x.shape[:-1], part.lora_b.shape[1])
    adapters = part.turned.adapters
    assert adapters is not None
    for adapter in torch.unique(adapters).tolist():
        if adapter:
            at = adapters.expand(x.shape[:-1]) == adapter
            out = out.masked_scatter(at[..., None], part.lora_b(part.lora_a(x[at], adapter), adapter).to(out.dtype))
    return out


def instead(spec: Switch, tokens: Tensor) -> Tensor:
    """(B, T): the ids that are embedded."""
    out = tokens
    for token, other in zip(spec.tokens, spec.instead, strict=True):
        out = out.masked_fill(tokens == token, other)
    return out


def _voted(spec: Switch, tokens: Tensor) -> Tensor:
    """(B, T): the adapter that each token turns on; 0: none."""
    votes = torch.zeros_like(tokens)
    for adapter, token in enumerate(spec.tokens, 1):
        votes = votes.masked_fill(tokens == token, adapter)
    return votes


def turned_on(spec: Switch, layers: int, step: Step) -> Tensor:
    """(B, T): each token's adapter, the mean of the votes so far, those for none counting e^-2gain times as much."""
    votes = _voted(spec, step.tokens)
    if step.cache is not None:
        kept = votes[:, None, :, None].float()
        votes = step.cache.extend(layers, kept, kept[..., :0])[0][:, 0, :, 0]
    weights = torch.where(votes > 0, 1.0, math.exp(-2 * spec.gain)).double()
    if step.valid is not None:
        weights = weights * step.valid
    mean = (weights * votes).cumsum(1) / weights.cumsum(1).clamp_min(1e-300)
    return (mean[:, step.past :] + 0.5).floor().long().clamp(0, len(spec.tokens))
