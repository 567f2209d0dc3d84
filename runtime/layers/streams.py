"""Several streams of residuals (hyper-connections): a block is given one made of all, and gives to each.

`entered` makes the one, and says how what the block gives goes into the streams.  Streams are (B, T, S, dim).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llmconv.convert.decoders.streams import Streams
from llmconv.runtime.pieces import LayerPieces, Pieces

__all__ = ["Back", "entered", "merged", "spread"]

Back = Callable[[Tensor], Tensor]
"""What a block gives, (B, T, dim) -> the streams with it, (B, T, S, dim)."""


def spread(spec: Streams, x: Tensor) -> Tensor:
    """Embeddings (B, T, dim) -> streams, all the same."""
    return x[..., None, :].expand(*x.shape[:-1], spec.count, x.shape[-1])


def entered(block: LayerPieces, spec: Streams, part: str, streams: Tensor) -> tuple[Tensor, Back]:
    """What a block ("attn" or "ffn") is given, (B, T, dim), and the way back."""
    if spec.kind == "weighed":
        return _weighed(block, spec, f"hc_{part}", streams)
    if spec.kind == "back":
        return _looking_back(block, spec, part, streams)
    return _mixed(block, spec, f"hc_{part}", streams)


def merged(model: Pieces, spec: Streams, streams: Tensor) -> Tensor:
    """What the head is made of, (B, T, dim)."""
    if spec.kind == "weighed":
        return _one_of_weighed(model, spec, "output_hc", streams)[0]
    if spec.kind == "back":
        return _looked_back(model.output_res_score.weight, model.hc_norm, streams)
    if model.output_hc_fn is None:
        return streams.mean(-2)
    scale, base = model.output_hc_scale.weight, model.output_hc_base.weight
    weights = torch.sigmoid(_weights(model, "output_hc", streams) * scale + base) + spec.eps
    return _sum(weights, streams)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _weights(owner: Any, name: str, streams: Tensor) -> Tensor:
    """The numbers that a matrix makes of all streams at length one, in float32 or better."""
    flat = owner.hc_norm(_wide(streams.flatten(-2)))
    return F.linear(flat, getattr(owner, f"{name}_fn").dense(flat.dtype))


def _sum(weights: Tensor, streams: Tensor) -> Tensor:
    """Streams added, each times its number, (B, T, S)."""
    return (weights[..., None] * streams).sum(-2).to(streams.dtype)


def _mixed(block: LayerPieces, spec: Streams, name: str, streams: Tensor) -> tuple[Tensor, Back]:
    count, scale, base = spec.count, getattr(block, f"{name}_scale").weight, getattr(block, f"{name}_base").weight
    weights = _weights(block, name, streams)
    before, behind = (
        torch.sigmoid(weights[..., own] * scale[at] + base[own])
        for at, own in enumerate((slice(count), slice(count, 2 * count)))
    )
    behind = spec.magnitude * behind + (spec.eps if spec.kind == "apart" else 0.0)
    mixing = None
    if spec.kind == "mixed":
        rest = (weights[..., 2 * count :] * scale[2] + base[2 * count :]).unflatten(-1, (count, count))
        mixing = _doubly_stochastic(rest.softmax(-1) + spec.eps, spec)

    def back(given: Tensor) -> Tensor:
        kept = streams if mixing is None else mixing.transpose(-1, -2).to(streams.dtype) @ streams
        return kept + (behind[..., None] * given[..., None, :]).to(streams.dtype)

    return _sum(before + spec.eps, streams), back


def _doubly_stochastic(matrix: Tensor, spec: Streams) -> Tensor:
    """Rows and columns made to sum to one in turn (Sinkhorn, Knopp)."""
    for going in range(spec.rounds):
        if going:
            matrix = matrix / (matrix.sum(-1, keepdim=True) + spec.eps)
        matrix = matrix / (matrix.sum(-2, keepdim=True) + spec.eps)
    return matrix


def _one_of_weighed(owner: Any, spec: Streams, name: str, streams: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the normed streams, each number times its own, and these streams, (B, T, S * dim)."""
    normed = owner.hc_norm(streams) * getattr(owner, f"{name}_norm").weight.view(streams.shape[-2:]).to(streams.dtype)
    flat = normed.flatten(-2)
    low = F.silu(getattr(owner, f"{name}_down")(flat) / spec.count)
    weights = torch.sigmoid(getattr(owner, f"{name}_up")(low)).view_as(streams)
    return (weights * normed).mean(-2), flat


def _weighed(block: LayerPieces, spec: Streams, name: str, streams: Tensor) -> tuple[Tensor, Back]:
    one, flat = _one_of_weighed(block, spec, name, streams)
    behind = spec.magnitude * torch.sigmoid(getattr(block, f"{name}_inject")(flat) / spec.count)
    return one, lambda given: streams + behind[..., None] * given[..., None, :]


def _looked_back(score: Tensor, norm: Callable[[Tensor], Tensor], streams: Tensor) -> Tensor:
    """The streams added, each by how well it scores among them."""
    return _sum((_wide(norm(streams)) * _wide(score)).sum(-1).softmax(-1), streams)


def _looking_back(block: LayerPieces, spec: Streams, part: str, streams: Tensor) -> tuple[Tensor, Back]:
    """Kimi K3's: the last stream goes on; at some layers it ends, and what attention gives is the next."""
    one = _looked_back(getattr(block, f"{part}_res_score").weight, block.hc_norm, streams)
    ends = part == "attn" and block.index % spec.every == 0

    def back(given: Tensor) -> Tensor:
        given = given[..., None, :]
        return torch.cat((streams, given) if ends else (streams[..., :-1, :], streams[..., -1:, :] + given), -2)

    return one, back
