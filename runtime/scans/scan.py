"""One layer's scan: its tokens moved together where there is padding, its state taken from the cache and kept there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmconv.runtime.cache import Step
from llmconv.runtime.pieces import LayerPieces
from llmconv.runtime.scans.delta import delta, kimi_delta
from llmconv.runtime.scans.mamba import mamba
from llmconv.runtime.scans.mamba2 import mamba2
from llmconv.runtime.scans.past import Past
from llmconv.runtime.scans.plamo2 import plamo2

__all__ = ["scan"]

_KINDS: dict[str, Callable[[LayerPieces, Tensor, Past], Tensor]] = {
    "mamba": mamba,
    "mamba2": mamba2,
    "plamo2": plamo2,
    "delta": delta,
    "kda": kimi_delta,
}


def scan(block: LayerPieces, x: Tensor, step: Step) -> Tensor:
    """x: (B, T, dim), normed -> (B, T, dim)."""
    spec = block.spec.scan
    assert spec is not None
    past = Past(block.index, step)
    if not step.packed:
        return _KINDS[spec.kind](block, x, past)
    order = step.order[..., None].expand_as(x)
    made = _KINDS[spec.kind](block, x.gather(1, order), past)
    return torch.zeros_like(made).scatter(1, order, made)
