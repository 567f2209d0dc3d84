"""Mamba 2's scan (arXiv:2405.21060): heads of numbers share a state that decays at one rate a head.

    S = exp(dt a) S + dt x bᵀ,  y = S c + d x

Inside a chunk it is a product with a triangle of decays, from chunk to chunk a state goes on.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from llmconv.runtime.layers.mlp import activation
from llmconv.runtime.pieces import LayerPieces
from llmconv.runtime.scans.past import Past, in_chunks, wide

__all__ = ["mamba2", "state_space"]

_CHUNK = 64


def mamba2(block: LayerPieces, x: Tensor, past: Past) -> Tensor:
    """x: (B, T, dim) -> (B, T, dim)."""
    spec = block.spec.scan
    assert spec is not None
    shared = spec.groups * spec.state
    gate, inner, dt = block.ssm_in(x).split((spec.inner, spec.inner + 2 * shared, spec.heads), -1)
    inner = activation(spec.activation)(
        past.convolve(inner, block.ssm_conv1d.weight, getattr(block.ssm_conv1d, "bias", None))
    )
    kind = wide(x)
    inner, b, c = torch.split(inner.to(kind), [spec.inner, shared, shared], -1)
    dt = past.real(F.softplus(dt.to(kind) + block.ssm_dt.bias.to(kind)))
    heads = inner.reshape(*inner.shape[:2], spec.heads, spec.head_dim)
    b, c = (t.reshape(*t.shape[:2], spec.groups, spec.state) for t in (b, c))
    state = past.state(spec.heads, spec.head_dim, spec.state, like=x)
    out, state = state_space(heads, dt, block.ssm_a.to(kind).flatten(), b, c, state)
    past.keep(state)
    past.end()
    out = (out + heads * block.ssm_d.to(kind).view(-1, 1)).flatten(2)
    made: Tensor = block.ssm_out(_gated(block, out, gate.to(kind), spec.groups).to(x.dtype))
    return made


def _gated(block: LayerPieces, x: Tensor, gate: Tensor, groups: int) -> Tensor:
    """Gated, and normed by groups where there is a norm."""
    first = block.spec.scan is not None and block.spec.scan.norm_first
    x = x if first else x * F.silu(gate)
    out: Tensor = x if block.ssm_norm is None else block.ssm_norm(x.reshape(*x.shape[:-1], groups, -1)).flatten(-2)
    return out * F.silu(gate) if first else out


def state_space(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, T, H, P), dt (B, T, H), a (H,), b and c (B, T, groups, N), state (B, H, P, N) -> (B, T, H, P), and the
    state after it."""
    count, each = x.shape[1], x.shape[2] // b.shape[2]
    length = min(_CHUNK, count)
    chunks = -(-count // length)
    new, dt = in_chunks(x * dt[..., None], length, chunks), in_chunks(dt, length, chunks)
    b, c = (in_chunks(t, length, chunks).repeat_interleave(each, 1) for t in (b, c))
    ends = (dt * a[:, None, None]).cumsum(-1)  # (B, H, chunks, length): logarithms of decays since the chunk's start
    apart = ends[..., :, None] - ends[..., None, :]
    seen = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
    within = (c @ b.transpose(-1, -2)) * apart.masked_fill(~seen, float("-inf")).exp()
    out = within @ new
    left = (ends[..., -1:] - ends).exp()[..., None]  # what is left of each token at the chunk's end
    added = (new * left).transpose(-1, -2) @ b  # (B, H, chunks, P, N)
    before = []
    for i in range(chunks):
        before.append(state)
        state = ends[:, :, i, -1, None, None].exp() * state + added[:, :, i]
    out = out + ends[..., None].exp() * (c @ torch.stack(before, 2).transpose(-1, -2))
    return out.movedim(1, 3).flatten(1, 2)[:, :count], state
