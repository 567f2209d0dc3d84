"""RWKV's feed-forward: each number mixed with that of the token before, and in RWKV 6 let through by a gate."""

from __future__ import annotations

from torch import Tensor

from llmconv.runtime.cache import Step
from llmconv.runtime.layers.mlp import activation
from llmconv.runtime.pieces import LayerPieces
from llmconv.runtime.scans.past import Past, packed

__all__ = ["channel_mix"]


def channel_mix(block: LayerPieces, x: Tensor, step: Step) -> Tensor:
    """x: (B, T, dim), normed -> (B, T, dim)."""
    spec, past = block.spec.mlp, Past(block.index, step, second=True)
    assert spec is not None

    def mixed(x: Tensor) -> Tensor:
        missed = past.shift(x) - x
        past.end()
        inner = block.channel_mix_key(x + missed * block.channel_mix_lerp_k.weight.to(x.dtype))
        out: Tensor = block.channel_mix_value(activation(spec.activation)(inner))
        if block.channel_mix_receptance is None:
            return out
        opened: Tensor = block.channel_mix_receptance(x + missed * block.channel_mix_lerp_r.weight.to(x.dtype))
        return opened.sigmoid() * out

    return packed(x, step, mixed)
