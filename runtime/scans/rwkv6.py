"""RWKV 6 (arXiv:2404.05892): sums of keys with values, of which every number of a key decays as the token says.

How much of the token before goes into each product is said by the token too.  Qwen 2 with such a state (QRWKV 6): keys
count by what their decay takes, there is nothing of a token's own, and no norm of what comes out.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from llmconv.runtime.pieces import LayerPieces
from llmconv.runtime.scans.past import Past, wide
from llmconv.runtime.scans.sums import decayed_sums

__all__ = ["normed_heads", "of_heads", "rwkv6"]


def rwkv6(block: LayerPieces, x: Tensor, past: Past) -> Tensor:
    """x: (B, T, dim) -> (B, T, dim)."""
    spec, kind = block.spec.scan, wide(x)
    assert spec is not None
    missed = past.shift(x) - x
    low = block.time_mix_w1(x + missed * block.time_mix_lerp_x.weight.to(x.dtype)).tanh().chunk(5, -1)
    fused = block.time_mix_lerp_fused.weight.to(x.dtype).flatten(1)
    decay, key, value, query, gate = (
        x + missed * (fused[i] + block.time_mix_w2(part, i)) for i, part in enumerate(low)
    )
    low = block.time_mix_decay_w2(block.time_mix_decay_w1(decay).tanh())
    decay = of_heads(-(block.time_mix_decay.weight.to(kind) + low.to(kind)).exp(), spec.heads)
    query = of_heads(block.time_mix_receptance(query).to(kind), spec.heads)
    key, value = (
        of_heads(t.to(kind), spec.groups).repeat_interleave(spec.heads // spec.groups, 2)
        for t in (block.time_mix_key(key), block.time_mix_value(value))
    )
    opened, first = block.time_mix_gate(gate), None
    if block.time_mix_first is None:
        opened, key, query = opened.sigmoid(), key * -decay.expm1(), query * spec.state**-0.5
    else:
        opened, first = F.silu(opened), block.time_mix_first.weight.to(kind)
    state = past.state(spec.heads, spec.state, spec.state, like=x)
    out, state = decayed_sums(query, past.real(key), value, past.real(decay), state, first)
    past.keep(state)
    past.end()
    made: Tensor = block.time_mix_output(normed_heads(block.time_mix_ln, out, spec.norm_eps).to(x.dtype) * opened)
    return made


def of_heads(x: Tensor, heads: int) -> Tensor:
    """(..., H * D) -> (..., H, D)."""
    return x.reshape(*x.shape[:-1], heads, -1)


def normed_heads(norm: Any, x: Tensor, eps: float) -> Tensor:
    """x (B, T, H, D), each head at mean 0 and variance 1, then weighed by (H * D,): (B, T, H * D); `norm` may lack."""
    if norm is None:
        return x.flatten(2)
    alike: Tensor = F.layer_norm(x, x.shape[-1:], eps=eps).flatten(2)
    out: Tensor = alike * norm.weight.to(x.dtype) + norm.bias.to(x.dtype)
    return out
