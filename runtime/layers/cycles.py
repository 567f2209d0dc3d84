"""HRM: two stacks of layers, a fast one and a slow one, gone through again and again (arXiv:2506.21734).

Each cycle goes some times through the fast stack, whose state is given the slow one's added, and then once through the
slow stack.  The fast state begins with a learned vector, `hrm.z_l_init`; the slow one with the embedding.  Each going
has keys and values of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llmconv.convert.decoders.facts import Norm as NormSpec
from llmconv.runtime.cache import Step
from llmconv.runtime.layers.norms import Norm

__all__ = ["Start", "gone_through"]


class Start(nn.Module):
    """What the fast stack's state begins with, (dim,), and the norm behind each stack, which has no weights."""

    def __init__(self, dim: int, norm: NormSpec):
        super().__init__()
        self.norm = Norm(norm)
        self.z_l_init = nn.Parameter(torch.zeros(dim))


def gone_through(model: Any, x: Tensor, step: Step) -> Tensor:
    """x: (B, T, dim), the embeddings -> the slow stack's last state; model: a `runtime.model.Model`."""
    slow_cycles, fast_cycles = model.decoder.cycles
    half = len(model.blk) // 2
    slow, fast = x, model.hrm.z_l_init.to(x.dtype).expand_as(x)
    going = 0
    for _ in range(slow_cycles):
        for _ in range(fast_cycles):
            fast = _stack(model, range(half), fast + slow, step, going)
            going += 1
        slow = _stack(model, range(half, 2 * half), slow + fast, step, going)
        going += 1
    step.gone = 0
    return slow


def _stack(model: Any, layers: range, x: Tensor, step: Step, going: int) -> Tensor:
    step.gone = going * len(layers) - layers.start
    for layer in layers:
        x = model.through(layer, x, step)
    out: Tensor = model.hrm.norm(x)
    return out
