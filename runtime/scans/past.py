"""What a scan knows of the tokens before: its states, and the last inputs of its convolutions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from llmconv.runtime.cache import Step

__all__ = ["Past", "decayed", "in_chunks", "in_full", "packed", "wide"]

_Sums = TypeVar("_Sums")


class Past:
    """The states of a layer before a step's tokens, taken in the order in which they are kept.

    Where there is padding, a step's tokens come first in their rows and padding last (see `packed`).
    second: of the layer's other half, where its MLP looks back too.
    """

    def __init__(self, index: int, step: Step, second: bool = False):
        states = [] if step.cache is None else step.cache.states
        self.index, self.step = index + second * len(states) // 2, step
        self.before = states[self.index] if states else None
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
        near = self.behind(x, length - 1)
        bias = None if bias is None else bias.to(x.dtype)
        return F.conv1d(near.transpose(1, 2), weight.to(x.dtype)[:, None], bias, groups=len(weight)).transpose(1, 2)

    def behind(self, x: Tensor, count: int, first: int = 0) -> Tensor:
        """x (B, T, C) behind its last `count` of before, `first` before the text; the end is kept."""
        before = self._next()
        before = x.new_full((x.shape[0], count, x.shape[2]), first) if before is None else before.to(x.dtype)
        near = torch.cat((before, x), 1)
        self.keep(self._last(near, count))
        return near

    def shift(self, x: Tensor) -> Tensor:
        """x (B, T, C): for each token the one before it, zeros before the first; the last is kept."""
        return self.behind(x, 1)[:, :-1]

    def _last(self, near: Tensor, count: int) -> Tensor:
        """The last `count` inputs of each row that are no padding; before them stand as many of before."""
        if not self.step.packed:
            return near[:, near.shape[1] - count :]
        index = self.step.counts[:, None] + torch.arange(count, device=near.device)
        return near.gather(1, index[..., None].expand(-1, -1, near.shape[2]))


def packed(x: Tensor, step: Step, mix: Callable[[Tensor], Tensor]) -> Tensor:
    """What `mix` makes of x (B, T, dim), its tokens moved together before padding, and then back where they stood."""
    if not step.packed:
        return mix(x)
    order = step.order[..., None].expand_as(x)
    made = mix(x.gather(1, order))
    return torch.zeros_like(made).scatter(1, order, made)


def decayed(a: Tensor, b: Tensor, upto: Tensor, since: Tensor, seen: Tensor) -> Tensor:
    """Products of each row of a with those of b that it sees, by what the decays between leave of them.

    a, b: (..., length, K).   upto, since: logarithms of what is left at a row of a, and behind one of b, of the chunk's
    start, (..., length, 1 or K).   seen: (length, length) bool.
    """
    apart = upto[..., :, None, :] - since[..., None, :, :]
    apart = apart.masked_fill(~seen[..., None], float("-inf")).exp()
    if apart.shape[-1] == 1:
        return (a @ b.transpose(-1, -2)) * apart[..., 0]
    return torch.einsum("...ik,...jk,...ijk->...ij", a, b, apart)


def in_full(function: Callable[..., _Sums]) -> Callable[..., _Sums]:
    """What autocast leaves as it is: states are wide, and triangular systems are solved in no narrower numbers."""

    @functools.wraps(function)
    def run(query: Tensor, *rest: Any) -> _Sums:
        with torch.autocast(query.device.type, enabled=False):
            return function(query, *rest)

    return run


def in_chunks(x: Tensor, length: int, chunks: int) -> Tensor:
    """(B, T, H, ...) -> (B, H, chunks, length, ...), zeros at the end."""
    x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, chunks * length - x.shape[1]))
    return x.reshape(x.shape[0], chunks, length, *x.shape[2:]).movedim(3, 1)


def wide(x: Tensor) -> torch.dtype:
    """What states are computed in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
