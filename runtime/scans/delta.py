"""The gated delta rule (arXiv:2412.06464): a head's state learns what its keys should give, and forgets at a rate.

    S = decay S;  S = S + k (beta (v - kᵀ S))ᵀ;  y = qᵀ S

The decay of a token is one number a head, or one for each number of its keys (Kimi's, arXiv:2510.26692).  Inside a
chunk what is learned of each token solves a triangular system; from chunk to chunk the state goes on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llmconv.convert.decoders.scans import Scan
from llmconv.runtime.layers.mlp import activation
from llmconv.runtime.pieces import LayerPieces
from llmconv.runtime.scans.past import Past, decayed, in_chunks, in_full, wide

__all__ = ["delta", "delta_rule", "kimi_delta", "unit"]

_CHUNK, _FINE = 64, 16  # of decays for each number of a key, which can't be taken out of the products


def delta(block: LayerPieces, x: Tensor, past: Past) -> Tensor:
    """x: (B, T, dim) -> (B, T, dim)."""
    spec, kind = block.spec.scan, wide(x)
    assert spec is not None
    mixed = activation(spec.activation)(past.convolve(block.attn_qkv(x), block.ssm_conv1d.weight, None)).to(kind)
    shared = spec.groups * spec.state
    query, key, value = torch.split(mixed, [shared, shared, spec.inner], -1)
    query, key = (_for_heads(unit(t.reshape(*t.shape[:2], spec.groups, spec.state)), spec) for t in (query, key))
    beta, alpha = (t.to(kind) for t in _beta_alpha(block, spec, x))
    decay = block.ssm_a.to(kind) * F.softplus(alpha + block.ssm_dt.bias.to(kind))
    state = past.state(spec.heads, spec.state, spec.head_dim, like=x)
    value = value.reshape(*value.shape[:2], spec.heads, spec.head_dim)
    out, state = delta_rule(query, key, value, past.real(decay)[..., None], past.real(beta.sigmoid()), state)
    past.keep(state)
    past.end()
    opens = F.silu if spec.gate == "silu" else torch.sigmoid
    gate = opens(block.attn_gate(x).to(kind).unflatten(-1, (spec.heads, spec.head_dim)))
    made: Tensor = block.ssm_out((block.ssm_norm(out) * gate).flatten(2).to(x.dtype))
    return made


def kimi_delta(block: LayerPieces, x: Tensor, past: Past) -> Tensor:
    """x: (B, T, dim) -> (B, T, dim), every number of a head's keys with a decay of its own."""
    spec, kind = block.spec.scan, wide(x)
    assert spec is not None
    shape = (*x.shape[:2], spec.heads, spec.state)
    weight = torch.cat([part.weight.reshape(spec.inner, -1) for part in _convolutions(block)])
    mixed = torch.cat((block.attn_q(x), block.attn_k(x), block.attn_v(x)), -1)
    mixed = activation(spec.activation)(past.convolve(mixed, weight, None)).to(kind)
    query, key, value = (t.reshape(shape) for t in mixed.chunk(3, -1))
    alpha = (_through(block.ssm_f_a, block.ssm_f_b, x).to(kind) + block.ssm_dt.bias.to(kind)).reshape(shape)
    rate = block.ssm_a.to(kind).reshape(-1, 1)
    decay = spec.floor * (rate.abs() * alpha).sigmoid() if spec.floor else rate * F.softplus(alpha)
    beta = block.ssm_beta(x).to(kind).sigmoid()
    state = past.state(spec.heads, spec.state, spec.state, like=x)
    out, state = delta_rule(unit(query), unit(key), value, past.real(decay), past.real(beta), state)
    past.keep(state)
    past.end()
    first = block.ssm_g_a if block.ssm_g is None else block.ssm_g
    gate = _through(first, block.ssm_g_b, x).to(kind).sigmoid().reshape(shape)
    made: Tensor = block.attn_output((block.ssm_norm(out) * gate).flatten(2).to(x.dtype))
    return made


def _through(first: Any, second: Any, x: Tensor) -> Tensor:
    """x through a product of low rank, or one whole matrix (Ling 3)."""
    made: Tensor = first(x) if second is None else second(first(x))
    return made


def _convolutions(block: LayerPieces) -> tuple[Any, Any, Any]:
    return block.ssm_conv1d_q, block.ssm_conv1d_k, block.ssm_conv1d_v


def unit(x: Tensor) -> Tensor:
    """x, its last dimension scaled to length 1."""
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()


def _for_heads(x: Tensor, spec: Scan) -> Tensor:
    """Keys or queries (B, T, groups, N) for each of the heads that share them."""
    times = spec.heads // spec.groups
    return x.repeat(1, 1, times, 1) if spec.tiled else x.repeat_interleave(times, 2)


def _beta_alpha(block: LayerPieces, spec: Scan, x: Tensor) -> tuple[Tensor, Tensor]:
    """How much is learned and forgotten, before their functions: (B, T, heads) each."""
    if block.ssm_ba is None:
        return block.ssm_beta(x), block.ssm_alpha(x)
    both = block.ssm_ba(x).unflatten(-1, (spec.groups, 2, -1))
    return both[..., 0, :].flatten(2), both[..., 1, :].flatten(2)


@in_full
def delta_rule(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """query and key (B, T, H, K), value (B, T, H, V), logarithms of decays (B, T, H, 1 or K), beta (B, T, H), state
    (B, H, K, V) -> (B, T, H, V), and the state after it.  Queries are scaled by 1 / sqrt(K)."""
    count = query.shape[1]
    length = min(_CHUNK if decay.shape[-1] == 1 else _FINE, count)
    chunks = -(-count // length)
    query, key, value, decay, beta = (
        in_chunks(t, length, chunks) for t in (query * query.shape[-1] ** -0.5, key, value, decay, beta)
    )
    ends = decay.cumsum(-2)  # since the chunk's start
    learned = beta[..., None] * key
    seen = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    within, among = decayed(query, key, ends, ends, seen), decayed(learned, key, ends, ends, seen.tril(-1))
    shrunk = ends.exp()
    # Of a chunk's tokens: what they learn if nothing was there before it, and what the state before takes from that.
    known = torch.cat((beta[..., None] * value, learned * shrunk), -1)
    solved = torch.linalg.solve_triangular(
        among + torch.eye(length, dtype=among.dtype, device=among.device), known, upper=False, unitriangular=True
    )
    alone, taken = solved.split((value.shape[-1], key.shape[-1]), -1)
    left = key * (ends[..., -1:, :] - ends).exp()  # what is left of each token at the chunk's end
    asked, out = query * shrunk, []
    for i in range(chunks):
        new = alone[:, :, i] - taken[:, :, i] @ state
        out.append(asked[:, :, i] @ state + within[:, :, i] @ new)
        state = shrunk[:, :, i, -1, :, None] * state + left[:, :, i].transpose(-1, -2) @ new
    return torch.stack(out, 2).movedim(1, 3).flatten(1, 2)[:, :count], state
