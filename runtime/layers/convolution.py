"""LFM2's short convolution: what stands in the place of attention in most of its layers."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from llmconv.runtime.cache import Step
from llmconv.runtime.pieces import LayerPieces

__all__ = ["short_convolution"]


def short_convolution(block: LayerPieces, x: Tensor, step: Step) -> Tensor:
    """x: (B, T, dim), normed -> (B, T, dim): each number gated, mixed with its last few, gated again.

    The cache keeps the gated numbers as if they were the keys of one head.
    """
    parts = block.shortconv
    before, behind, inner = parts.in_proj(x).chunk(3, -1)
    mixed = before * inner
    if step.valid is not None:  # padding is no neighbour
        mixed = mixed * step.valid[:, step.past :, None].to(mixed.dtype)
    count = mixed.shape[1]
    if step.cache is not None:
        mixed = step.cache.extend(block.index, mixed[:, None], mixed[:, None, :, :1])[0][:, 0]
    weight = parts.conv.weight.to(mixed.dtype)  # (dim, length)
    length = weight.shape[1]
    after = 0 if block.spec.attention.causal else (length - 1) // 2  # of tokens that see all, half of it
    near = F.pad(mixed.transpose(1, 2), (length - 1 - after, after))[..., -(count + length - 1) :]
    out = F.conv1d(near, weight[:, None], groups=weight.shape[0]).transpose(1, 2)
    result: Tensor = parts.out_proj(behind * out)
    return result
