"""Mamba's selective scan (arXiv:2312.00752): every number has a state of its own, which decays at its own rates.

    h = exp(dt a) h + dt b x,  y = c h + d x

for each number of a token, with a step dt of its own, b and c of the token, and a, d of the layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from llmconv.runtime.layers.mlp import activation
from llmconv.runtime.pieces import LayerPieces
from llmconv.runtime.scans.past import Past, wide

__all__ = ["mamba", "selective_scan"]

_MOST = 1 << 22  # numbers of state that are looked at together


def mamba(block: LayerPieces, x: Tensor, past: Past) -> Tensor:
    """x: (B, T, dim) -> (B, T, dim)."""
    spec = block.spec.scan
    assert spec is not None
    inner, gate = block.ssm_in(x).chunk(2, -1)
    inner = activation(spec.activation)(past.convolve(inner, block.ssm_conv1d.weight, _bias(block.ssm_conv1d)))
    dt, b, c = _steps(block, inner)
    dt = past.real(F.softplus(block.ssm_dt(dt).to(wide(x))))
    state = past.state(spec.inner, spec.state, like=x)
    out, state = selective_scan(inner.to(dt.dtype), dt, block.ssm_a.to(dt.dtype), b.to(dt.dtype), c.to(dt.dtype), state)
    past.keep(state)
    past.end()
    out = (out + inner.to(dt.dtype) * block.ssm_d.to(dt.dtype)).to(x.dtype)
    made: Tensor = block.ssm_out(out * F.silu(gate))
    return made


def _bias(part: LayerPieces) -> Tensor | None:
    return getattr(part, "bias", None)


def _steps(block: LayerPieces, inner: Tensor) -> tuple[Tensor, ...]:
    """What steps are projected from, B and C: normed by their tensors (Jamba), without any (Falcon Mamba), or not."""
    spec = block.spec.scan
    assert spec is not None
    parts = block.ssm_x(inner).split((spec.rank, spec.state, spec.state), -1)
    norms = (block.ssm_dt_norm, block.ssm_b_norm, block.ssm_c_norm)
    if spec.norm_eps:
        return tuple(F.rms_norm(part, part.shape[-1:], None, spec.norm_eps) for part in parts)
    return tuple(part if norm is None else norm(part) for part, norm in zip(parts, norms, strict=True))


def selective_scan(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """x, dt (B, T, D), a (D, N), b and c (B, T, N), state (B, D, N) -> (B, T, D), and the state after it.

    Spans of about sqrt(n) chunks of sqrt(n) tokens: chunks side by side, then one after another.
    """
    span = max(1, min(x.shape[1], 256, _MOST // max(1, state.numel())))
    out = []
    for start in range(0, x.shape[1], span):
        part = slice(start, start + span)
        made, state = _span(x[:, part], dt[:, part], a, b[:, part], c[:, part], state)
        out.append(made)
    return torch.cat(out, 1), state


def _span(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    count = x.shape[1]
    length = math.isqrt(count - 1) + 1
    chunks = -(-count // length)

    def cut(t: Tensor) -> Tensor:  # (B, chunks, length, ...), steps of zero at the end
        return F.pad(t, (0, 0, 0, chunks * length - count)).reshape(t.shape[0], chunks, length, -1)

    x, dt, b, c = cut(x), cut(dt), cut(b), cut(c)
    new = (dt * x)[..., None] * b[..., None, :]  # (B, chunks, length, D, N)
    decay = (dt[..., None] * a).exp()
    inside = [new[:, :, 0]]
    for i in range(1, length):
        inside.append(decay[:, :, i] * inside[-1] + new[:, :, i])
    through = (dt.cumsum(2)[..., None] * a).exp()  # of what was there before the chunk
    before = []
    for i in range(chunks):
        before.append(state)
        state = through[:, i, -1] * state + inside[-1][:, i]
    states = torch.stack(inside, 2) + through * torch.stack(before, 1)[:, :, None]
    out = (states @ c[..., None])[..., 0]
    return out.flatten(1, 2)[:, :count], state
