"""Alternating updates (AltUp, arXiv:2301.13310) with learned residuals (Laurel), as Gemma 3n has them.

Several streams of vectors go through the layers.  Each layer predicts all of them, computes only one, and corrects
the others by what that prediction missed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmconv.runtime.cache import Step
from llmconv.runtime.layers import layer_vectors
from llmconv.runtime.layers.attention import self_attention
from llmconv.runtime.layers.mlp import feed_forward
from llmconv.runtime.pieces import LayerPieces, Pieces

__all__ = ["ENDS", "layer", "merged", "spread"]

ENDS = ("altup_proj", "altup_unembd_proj")
_LEAST = 1e-5  # of a mean square that is divided by


def spread(model: Pieces, x: Tensor) -> Tensor:
    """Embeddings (B, T, dim) -> streams (S, B, T, dim), all of the same magnitude."""
    others = [_as_large(model.altup_proj(x, i), x) for i in range(model.altup_proj.shape[0])]
    return torch.stack([x, *others])


def merged(model: Pieces, streams: Tensor) -> Tensor:
    """The way back: the mean of the streams."""
    first = streams[0]
    others = [_as_large(model.altup_unembd_proj(streams[i + 1], i), first) for i in range(len(streams) - 1)]
    return torch.stack([first, *others]).mean(0)


def _as_large(x: Tensor, other: Tensor) -> Tensor:
    """x with the other's root of the mean square."""
    wanted = other.square().mean(-1, keepdim=True).sqrt()
    return x * wanted / x.square().mean(-1, keepdim=True).clamp(min=_LEAST).sqrt()


def _modes(block: LayerPieces, x: Tensor) -> Tensor:
    """(B, T, S): how a token mixes the streams."""
    routed = block.altup_router(block.altup_router_norm(x) / x.shape[-1])
    return torch.tanh(routed.float() if routed.dtype != torch.float64 else routed).to(x.dtype)


def _predicted(block: LayerPieces, streams: Tensor) -> Tensor:
    """Each stream plus a mixture of all of them."""
    count = len(streams)
    mix = block.altup_predict_coef(_modes(block, streams[block.spec.stream])).unflatten(-1, (count, count))
    return streams + torch.einsum("sbtd,btos->obtd", streams, mix)


def _corrected(block: LayerPieces, predicted: Tensor, found: Tensor) -> Tensor:
    """The predictions plus, weighed for each stream, what that of the computed one missed."""
    weights = block.altup_correct_coef(_modes(block, found)) + 1.0  # (B, T, S)
    missed = found - predicted[block.spec.stream]
    corrected: Tensor = predicted + missed[None] * weights.permute(2, 0, 1)[..., None]
    return corrected


def layer(block: LayerPieces, streams: Tensor, step: Step) -> Tensor:
    """One layer: streams (S, B, T, dim) -> the same."""
    predicted = _predicted(block, streams)
    active = predicted[block.spec.stream]
    normed = block.attn_norm(active)
    learned = normed + block.laurel_post_norm(block.laurel_r(block.laurel_l(normed)))
    attended = active + block.post_attention_norm(self_attention(block, normed, step))
    x = (attended + learned) * 2**-0.5
    x = x + block.post_ffw_norm(feed_forward(block, block.ffn_norm(x), x))
    out = _corrected(block, predicted, x)
    scaled = out[block.spec.stream] * block.altup_correct_scale.weight.to(x.dtype)
    return torch.cat((out[:1], out[1:] + layer_vectors.made(block, scaled, step)))
