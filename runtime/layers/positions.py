"""Positions: rotary embeddings in all their scalings, sinusoidal tables, ALiBi slopes.

Tables are made in float32 (float64 for a float64 model), as transformers and llama.cpp do, from the positions of a
step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llmconv.convert.decoders.facts import Relative, Rope

__all__ = ["alibi_slopes", "distance_bias", "rope_tables", "rotate", "rotate_end", "sinusoidal"]


def _frequencies(rope: Rope, end: int, freqs: Tensor | None, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(dims / 2,) angles per position; `end` is one past the last position, `freqs` divide (rope_freqs, longrope)."""
    exponents = torch.arange(0, rope.dims, 2, device=device, dtype=dtype) / rope.dims
    base = rope.base
    if rope.scaling == "dynamic" and rope.original_context and end > rope.original_context:
        # NTK by parts of the context: the base grows with the sequence (transformers' "dynamic").
        grown = rope.factor * end / rope.original_context - (rope.factor - 1)
        base = base * grown ** (rope.dims / (rope.dims - 2))
    inverse = 1.0 / base**exponents
    if freqs is not None:
        inverse = inverse / freqs[: rope.dims // 2].to(device=device, dtype=dtype)
    if rope.scaling == "linear":
        return inverse / rope.factor
    if rope.scaling == "yarn" and rope.factor != 1:
        ramp = _yarn_ramp(rope, device, dtype)
        return inverse / rope.factor * ramp + inverse * (1 - ramp)
    return inverse


def _yarn_ramp(rope: Rope, device: torch.device, dtype: torch.dtype) -> Tensor:
    """How much of each frequency is interpolated, 0 to 1 (YaRN, arXiv:2309.00071, section 3.2)."""

    def dimension(turns: float) -> float:
        return rope.dims * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.base))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dims - 1)
    steps = torch.arange(rope.dims // 2, device=device, dtype=dtype)
    return ((steps - low) / max(high - low, 0.001)).clamp(0, 1)


def rope_tables(
    rope: Rope, positions: Tensor, end: int, freqs: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin for positions (B, T): two (B, 1, T, dims), laid out as `rotate` wants them."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    angles = positions[:, None, :, None].to(exact) * _frequencies(rope, end, freqs, positions.device, exact)
    angles = angles.repeat_interleave(2, -1) if rope.interleaved else torch.cat((angles, angles), -1)
    return (angles.cos() * rope.attn_factor).to(dtype), (angles.sin() * rope.attn_factor).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Turn the first `cos.shape[-1]` numbers of each head; x: (B, H, T, D)."""
    dims = cos.shape[-1]
    turned, rest = (x, None) if dims == x.shape[-1] else (x[..., :dims], x[..., dims:])
    if interleaved:
        pairs = turned.reshape(*turned.shape[:-1], dims // 2, 2)
        other = torch.stack((-pairs[..., 1], pairs[..., 0]), -1).flatten(-2)
    else:
        first, second = turned.chunk(2, -1)
        other = torch.cat((-second, first), -1)
    out = turned * cos + other * sin
    return out if rest is None else torch.cat((out, rest), -1)


def rotate_end(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Turn the last `cos.shape[-1]` numbers of each head; x: (B, H, T, D)."""
    still = x.shape[-1] - cos.shape[-1]
    return torch.cat((x[..., :still], rotate(x[..., still:], cos, sin, interleaved)), -1)


def sinusoidal(positions: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """(B, T, dim): sin at even, cos at odd dimensions of position / 10000^(2 floor(i/2) / dim) (arXiv:1706.03762)."""
    i = torch.arange(dim, device=positions.device)
    exact = torch.float32 if positions.device.type == "mps" else torch.float64
    angles = positions[..., None].to(exact) / 10000 ** ((i // 2 * 2).to(exact) / dim)
    return torch.where(i % 2 == 0, angles.sin(), angles.cos()).to(dtype)


def alibi_slopes(n_head: int, max_bias: float, device: torch.device) -> Tensor:
    """(n_head,) float32 slopes of ALiBi (arXiv:2108.12409), also for head counts that are no power of two."""
    power = 1 << (n_head.bit_length() - 1)
    base, half = 2.0 ** (-max_bias / power), 2.0 ** (-max_bias / 2 / power)
    slopes = [base ** (h + 1) if h < power else half ** (2 * (h - power) + 1) for h in range(n_head)]
    return torch.tensor(slopes, device=device)


def distance_bias(table: Tensor, spec: Relative, positions: Tensor, keys: Tensor) -> Tensor:
    """(B or 1, H, T, S) bias of a table (buckets, H) by the distances of keys (B or 1, S) from positions (B or 1, T).

    T5's buckets (arXiv:1910.10683): half of them for keys behind a token; of each half one for each of the nearer
    distances, and for the others ever longer stretches, as the logarithm goes, up to `farthest`.
    """
    distance = keys[:, None, :] - positions[:, :, None]
    half = spec.buckets // 2
    near, far = half // 2, distance.abs()
    steps = (far.clamp(min=1).float() / near).log() / math.log(spec.farthest / near) * (half - near)
    bucket = torch.where(far < near, far, (near + steps.long()).clamp(max=half - 1)) + half * (distance > 0)
    return table[bucket].permute(0, 3, 1, 2)
