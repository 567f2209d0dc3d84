"""Second moments of many tokens: symmetric, so that about half of each is computed."""

from __future__ import annotations

from torch import Tensor

__all__ = ["add_moments"]

_STEP = 256
"""Columns at a time: few enough that not much is computed twice, enough that a product is fast."""


def add_moments(out: Tensor, x: Tensor, weights: Tensor | None = None) -> Tensor:
    """Add the sum of w x x' over tokens x (N, columns), float32, to `out` (columns, columns), which may be on the CPU
    where `x` is not.   weights: (N,), of tokens."""
    left = x if weights is None else x * weights[:, None]
    for start in range(0, x.shape[1], _STEP):
        here = slice(start, start + _STEP)
        strip = (left[:, here].t() @ x[:, start:]).to(out.device)
        out[here, start:] += strip
        out[start + _STEP :, here] += strip[:, _STEP:].t()
    return out
