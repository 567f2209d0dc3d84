"""What a scan knows of the tokens before: its states, and the last inputs of its convolutions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from llmconv.runtime.cache import Step

__all__ = ["Past", "in_chunks", "wide"]


class Past:
    """The states of a layer before a step's tokens, taken in the order in which they are kept.

    Where there is padding, a step's tokens come first in their rows and padding last (see `scan`).
    """

    def __init__(self, index: int, step: Step):
        self.index, self.step = index, step
        self.before = step.cache.states[index] if step.cache is not None else None
        self.after: list[Tensor] = []

    def _next(self) -> Tensor | None:
        return None if self.before is None else self.before[len(self.after)]

    def state(self, *shape: int, like: Tensor) -> Tensor:
        """The state, (B, *shape) in float32 or better, zero before the first token."""
        found = self._next()
        return like.new_zeros(like.shape[0], *shape, dtype=wide(like)) if found is None else found

    def keep(self, state: Tensor) -> None:
        """This is what the next step is to be given; the last of a layer's states ends its step."""
        self.after.append(state)

    def end(self) -> None:
        if self.step.cache is not None:
            self.step.cache.keep(self.index, *self.after)

    def real(self, x: Tensor) -> Tensor:
        """x (B, T, ...) with zeros at padding."""
        if not self.step.packed:
            return x
        there = torch.arange(x.shape[1], device=x.device) < self.step.counts[:, None]
        return x * there.view(*there.shape, *[1] * (x.dim() - 2)).to(x.dtype)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x (B, T, C), each channel mixed with its last numbers by weight (C, length); the inputs' end is kept."""
        length = weight.shape[1]
        before = self._next()
        before = x.new_zeros(x.shape[0], length - 1, x.shape[2]) if before is None else before.to(x.dtype)
        near = torch.cat((before, x), 1)
        self.keep(self._last(near, length - 1))
        bias = None if bias is None else bias.to(x.dtype)
        return F.conv1d(near.transpose(1, 2), weight.to(x.dtype)[:, None], bias, groups=len(weight)).transpose(1, 2)

    def _last(self, near: Tensor, count: int) -> Tensor:
        """The last `count` inputs of each row that are no padding; before them stand as many of before."""
        if not self.step.packed:
            return near[:, near.shape[1] - count :]
        index = self.step.counts[:, None] + torch.arange(count, device=near.device)
        return near.gather(1, index[..., None].expand(-1, -1, near.shape[2]))


def in_chunks(x: Tensor, length: int, chunks: int) -> Tensor:
    """(B, T, H, ...) -> (B, H, chunks, length, ...), zeros at the end."""
    x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, chunks * length - x.shape[1]))
    return x.reshape(x.shape[0], chunks, length, *x.shape[2:]).movedim(3, 1)


def wide(x: Tensor) -> torch.dtype:
    """What states are computed in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
