"""Second moments of many tokens: symmetric, so that about half of each is computed."""

from __future__ import annotations

from torch import Tensor

__all__ = ["add_moments", "mirrored"]

_FEW = 160
"""Columns of which all products are taken at once: fewer would make multiplying slow."""
_STEP = 256
_STRIP = 1024
"""Rows of a product at a time, which bounds its memory."""


def add_moments(out: Tensor, x: Tensor, weights: Tensor | None = None) -> None:
    """Add the sum of w x x' over tokens x (N, columns), float32, to the upper triangle of `out` (columns, columns),
    which may be on the CPU where `x` is not.   weights: (N,), of tokens."""
    _add(out, x if weights is None else x * weights[:, None], x)


def _add(out: Tensor, left: Tensor, right: Tensor) -> None:
    """By halves: two triangles, and the square beside them."""
    columns = right.shape[1]
    if columns <= _FEW:
        return _add_product(out, left, right)
    half = columns // 2
    _add_product(out[:half, half:], left[:, :half], right[:, half:])
    for part in (slice(half), slice(half, columns)):
        _add(out[part, part], left[:, part], right[:, part])


def _add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Of all tokens before it is added: a product that goes on from what is there (`addmm_`) rounds in between, so that
    a sum over batches would depend on who began it."""
    for start in range(0, left.shape[1], _STRIP):
        here = slice(start, start + _STRIP)
        out[here] += (left[:, here].t() @ right).to(out.device)


def mirrored(out: Tensor) -> Tensor:
    """`out` with its upper triangle in the place of the lower one too."""
    for start in range(0, len(out), _STEP):
        here, after = slice(start, start + _STEP), slice(start + _STEP, None)
        square = out[here, here]
        square.copy_(square.triu() + square.triu(1).t())
        out[after, here] = out[here, after].t()
    return out
