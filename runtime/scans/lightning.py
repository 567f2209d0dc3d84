"""Lightning attention (MiniMax-01, arXiv:2501.08313): sums that decay by ALiBi's slopes, slower in later layers."""

from __future__ import annotations

import torch
from torch import Tensor

from llmconv.runtime.layers.mlp import activation
from llmconv.runtime.pieces import LayerPieces
from llmconv.runtime.scans.past import Past, wide
from llmconv.runtime.scans.sums import decayed_sums

__all__ = ["lightning"]


def lightning(block: LayerPieces, x: Tensor, past: Past) -> Tensor:
    """x: (B, T, dim) -> (B, T, dim)."""
    spec, kind = block.spec.scan, wide(x)
    assert spec is not None
    mixed = activation(spec.activation)(block.attn_qkv(x)).to(kind)
    mixed = mixed.reshape(*mixed.shape[:2], spec.heads, -1)
    query, key, value = mixed.chunk(3, -1)
    heads = torch.arange(1, spec.heads + 1, dtype=kind, device=x.device)
    decay = -spec.slope * 2 ** (-8 * heads / spec.heads)
    decay = past.real(decay[:, None].expand(*query.shape[:3], 1))
    state = past.state(spec.heads, spec.state, spec.head_dim, like=x)
    out, state = decayed_sums(query, past.real(key), value, decay, state)
    past.keep(state)
    past.end()
    made: Tensor = block.attn_output(block.attn_norm_2(out.flatten(2).to(x.dtype)) * block.attn_gate(x).sigmoid())
    return made
