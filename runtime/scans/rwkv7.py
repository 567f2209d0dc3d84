"""RWKV 7 (arXiv:2503.14456): a state that takes back what it held of a key before it learns anew.

    S = diag(decay) S + b (aᵀ S) + k vᵀ,  y = rᵀ S

with a the key at length 1, negated, and b what of it is taken back.  Inside a chunk what is taken back of each token
solves a triangular system; from chunk to chunk the state goes on.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from llmconv.runtime.pieces import LayerPieces
from llmconv.runtime.scans.past import Past, decayed, in_chunks, in_full, wide
from llmconv.runtime.scans.rwkv6 import normed_heads, of_heads
from llmconv.runtime.scans.sums import FINE

__all__ = ["relearned", "rwkv7"]


def rwkv7(block: LayerPieces, x: Tensor, past: Past) -> Tensor:
    """x: (B, T, dim) -> (B, T, dim)."""
    spec, kind = block.spec.scan, wide(x)
    assert spec is not None
    missed, fused = past.shift(x) - x, block.time_mix_lerp_fused.weight.to(x.dtype).flatten(1)
    shares = [x + missed * share for share in fused]
    query, decay, key, value, rate = shares[:5]
    low = block.time_mix_w2(block.time_mix_w1(decay).tanh())
    decay = -math.exp(-0.5) * (block.time_mix_w0.weight.to(kind) + low.to(kind)).sigmoid()
    query, key = block.time_mix_receptance(query).to(kind), block.time_mix_key(key).to(kind)
    value = _joined(block, past, value, block.time_mix_value(value).to(kind))
    rate = _share(block.time_mix_a0.weight, block.time_mix_a2(block.time_mix_a1(rate)), kind)
    query, decay, aim = (of_heads(t, spec.heads) for t in (query, decay, key * block.time_mix_k_k.weight.to(kind)))
    aim = F.normalize(aim, dim=-1, eps=1e-12)
    key = of_heads(key * (1 + (rate - 1) * block.time_mix_k_a.weight.to(kind)), spec.heads)
    value, taken = of_heads(value, spec.heads), aim * of_heads(rate, spec.heads)
    state = past.state(spec.heads, spec.state, spec.state, like=x)
    key, decay, taken = (past.real(t) for t in (key, decay, taken))
    out, state = relearned(query, key, value, decay, -aim, taken, state)
    past.keep(state)
    past.end()
    own = (query * key * of_heads(block.time_mix_r_k.weight.to(kind), spec.heads)).sum(-1, keepdim=True) * value
    out = (normed_heads(block.time_mix_ln, out, spec.norm_eps) + own.flatten(2)).to(x.dtype)
    if block.time_mix_g1 is not None:
        out = out * block.time_mix_g2(block.time_mix_g1(shares[5]).sigmoid())
    made: Tensor = block.time_mix_output(out)
    return made


def _share(base: Tensor, low: Tensor, kind: torch.dtype) -> Tensor:
    return (base.to(kind) + low.to(kind)).sigmoid()


def _joined(block: LayerPieces, past: Past, x: Tensor, value: Tensor) -> Tensor:
    """The layer's values, of which each number goes some way to the first layer's."""
    if past.step.first_values is None:
        past.step.first_values = value
        return value
    share = _share(block.time_mix_v0.weight, block.time_mix_v2(block.time_mix_v1(x)), value.dtype)
    return value + (past.step.first_values - value) * share


@in_full
def relearned(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, aim: Tensor, taken: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """query (r), key, aim (a) and taken (b) (B, T, H, K), value (B, T, H, V), logarithms of decays (B, T, H, K), state
    (B, H, K, V) -> (B, T, H, V), and the state after it."""
    count = query.shape[1]
    length = min(FINE, count)
    chunks = -(-count // length)
    query, key, value, decay, aim, taken = (
        in_chunks(t, length, chunks) for t in (query, key, value, decay, aim, taken)
    )
    ends = decay.cumsum(-2)  # since the chunk's start
    before = F.pad(ends, (0, 0, 1, -1))
    seen = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    among, held = (decayed(aim, t, before, ends, seen.tril(-1)) for t in (taken, key))
    again, new = (decayed(query, t, ends, ends, seen) for t in (taken, key))
    # Of a chunk's tokens: what is taken back if nothing was there before it, and what the state before adds to that.
    known = torch.cat((held @ value, aim * before.exp()), -1)
    solved = torch.linalg.solve_triangular(
        torch.eye(length, dtype=among.dtype, device=among.device) - among, known, upper=False, unitriangular=True
    )
    alone, through = solved.split((value.shape[-1], key.shape[-1]), -1)
    shrunk, left = ends.exp(), (ends[..., -1:, :] - ends).exp()  # of the chunk's start, and of each token at its end
    asked, learned, out = query * shrunk, (key * left).transpose(-1, -2) @ value, []
    back, new = (taken * left).transpose(-1, -2), new @ value
    for i in range(chunks):
        gone = alone[:, :, i] + through[:, :, i] @ state
        out.append(asked[:, :, i] @ state + again[:, :, i] @ gone + new[:, :, i])
        state = shrunk[:, :, i, -1, :, None] * state + back[:, :, i] @ gone + learned[:, :, i]
    return torch.stack(out, 2).movedim(1, 3).flatten(1, 2)[:, :count], state
