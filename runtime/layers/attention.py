"""Attention over one layer: multi-head, grouped-query, single-head, latent (MLA), with everything that models add to
it.

Plain cases go to torch's `scaled_dot_product_attention` (flash kernels where there are); a soft cap, sinks or a softmax
that starts above zero are computed in the open.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from llmconv.convert.decoders.facts import Attention
from llmconv.runtime.cache import Step
from llmconv.runtime.layers.choosing import chosen_blocks, chosen_tokens
from llmconv.runtime.layers.norms import Norm
from llmconv.runtime.layers.pooling import pooled_tokens
from llmconv.runtime.layers.positions import distance_bias, rotate
from llmconv.runtime.pieces import LayerPieces

__all__ = ["attend", "self_attention", "softmax"]


def self_attention(block: LayerPieces, x: Tensor, step: Step) -> Tensor:
    """x: (B, T, dim), normed -> (B, T, dim)."""
    spec = block.spec.attention
    if spec.mla is not None:
        return _latent(block, x, step)
    if spec.borrows is not None:
        return _borrowing(block, x, step)
    query, key, value = _project(block, spec, x)
    gate = None
    if spec.gated:
        query, gate = query.chunk(2, -1)
    if not spec.norm_after_rope:
        query, key = _norm_heads(block.attn_q_norm, query), _norm_heads(block.attn_k_norm, key)
    if spec.clamp is not None and spec.clamp_normed:
        query, key, value = (t.clamp(-spec.clamp, spec.clamp) for t in (query, key, value))
    query, key, value = (t.transpose(1, 2) for t in (query, key, value))  # (B, H, T, D)
    if spec.rope is not None:
        cos, sin = step.rope(spec.rope)
        query, key = (rotate(t, cos, sin, spec.rope.interleaved) for t in (query, key))
    if spec.growth is not None:
        query = query * step.growth(spec.growth)
    if spec.length_one:
        query, key = block.length_one(query), block.length_one(key)
    if spec.norm_after_rope:
        query = _norm_heads(block.attn_q_norm, query.transpose(1, 2)).transpose(1, 2)
        key = _norm_heads(block.attn_k_norm, key.transpose(1, 2)).transpose(1, 2)
    if step.cache is not None:
        key, value = step.cache.extend(block.index + step.gone, key, value)
    if spec.lends:
        step.lent[block.index] = key, value
    sinks = block.attn_sinks.weight if block.attn_sinks is not None else None
    chosen = None if spec.blocks is None else chosen_blocks(block, x, step)
    if spec.pools is not None:
        chosen = pooled_tokens(block, x, None, step)
    if block.attn_rel_b is not None and spec.relative is not None:
        step.distances = distance_bias(block.attn_rel_b.weight, spec.relative, step.positions, step.key_positions)
    out = attend(query, key, value, spec, step, sinks, chosen).transpose(1, 2).flatten(2)  # (B, T, H * D)
    if block.attn_sub_norm is not None:
        out = block.attn_sub_norm(out)
    if gate is not None:
        out = out * torch.sigmoid(gate.flatten(2))
    if block.attn_gate is not None:
        out = _gated(out, block.attn_gate(x), spec.gate)
    result: Tensor = out if block.attn_output is None else block.attn_output(out)
    return result


def _borrowing(block: LayerPieces, x: Tensor, step: Step) -> Tensor:
    """Attention to the keys and values of an earlier layer: this one has queries alone."""
    spec = block.spec.attention
    assert spec.borrows is not None
    query = block.attn_q(x).unflatten(-1, (spec.n_head, spec.head_dim))
    query = _norm_heads(block.attn_q_norm, query).transpose(1, 2)
    if spec.rope is not None:
        query = rotate(query, *step.rope(spec.rope), spec.rope.interleaved)
    out = attend(query, *step.lent[spec.borrows], spec, step)
    result: Tensor = block.attn_output(out.transpose(1, 2).flatten(2))
    return result


def _gated(out: Tensor, gate: Tensor, kind: str) -> Tensor:
    """What attention gives (B, T, H * D) times a gate for each of its numbers, or for each head."""
    opened = torch.sigmoid(gate) if kind == "sigmoid" else F.softplus(gate.float()).to(gate.dtype)
    each: Tensor = out.view(*gate.shape, -1) * opened[..., None]
    return each.flatten(-2)


def _project(block: LayerPieces, spec: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, T, H, D), or 2 D with their gates, keys and values (B, T, KV heads, D)."""
    if block.attn_qkv is not None:
        sizes = (spec.n_head * spec.head_dim, spec.n_head_kv * spec.head_dim, spec.n_head_kv * spec.value_dim)
        whole = block.attn_qkv(x)
        if block.attn_q is not None:  # what adapters add
            whole = whole + torch.cat((block.attn_q(x), block.attn_k(x), block.attn_v(x)), -1)
        if spec.by_head:
            parts = tuple(part.flatten(-2) for part in whole.unflatten(-1, (spec.n_head, -1)).chunk(3, -1))
        else:
            parts = whole.split(sizes, -1)
    else:
        query, key = block.attn_q(x), block.attn_k(x)
        parts = (query, key, key if block.attn_v is None else block.attn_v(x))
    if spec.clamp is not None and not spec.clamp_normed:
        parts = tuple(t.clamp(-spec.clamp, spec.clamp) for t in parts)
    query, key, value = parts
    if spec.value_scale != 1:
        value = value * spec.value_scale
    value = value.unflatten(-1, (spec.n_head_kv, spec.value_dim))
    if block.attn_v_norm is not None:
        value = block.attn_v_norm(value)
    return query.unflatten(-1, (spec.n_head, -1)), key.unflatten(-1, (spec.n_head_kv, spec.head_dim)), value


def _norm_heads(norm: Norm | None, x: Tensor) -> Tensor:
    """A q/k norm over (B, T, H, D): of each head, or of all heads together when it has H * D weights."""
    if norm is None:
        return x
    whole = norm.weight is not None and norm.weight.dim() == 1 and norm.weight.shape[0] != x.shape[-1]
    out: Tensor = norm(x.flatten(2)).view_as(x) if whole else norm(x)
    return out


_MANY = 1 << 12  # numbers of a head


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spec: Attention,
    step: Step,
    sinks: Tensor | None = None,
    chosen: Tensor | None = None,
) -> Tensor:
    """Softmax attention; query (B, H, T, D), key and value (B, KV heads, S, D) -> (B, H, T, value dim).

    chosen: (B, H, T, S) bool, which keys are seen of those that could be.
    """
    grouped = query.shape[1] != key.shape[1]
    biased = spec.alibi is not None or spec.relative is not None
    if spec.softcap is None and sinks is None and not spec.softmax_start and not biased:
        if chosen is None and step.plain_causal(spec):
            mask, implied = None, True
        else:
            mask, implied = _mask(spec, step, chosen), False
        query, key, value = (_by_heads(t) for t in (query, key, value))
        if grouped and query.device.type == "cpu":  # whose flash kernel takes no groups
            key, value = _ungrouped(query, key), _ungrouped(query, value)
            grouped = False
        out = F.scaled_dot_product_attention(
            query, key, value, mask, is_causal=implied, scale=spec.scale, enable_gqa=grouped
        )
        return _not_lost(out, query, key) if query.device.type == "cpu" and key.shape[2] < _VECTOR else out
    if grouped:
        key, value = _ungrouped(query, key), _ungrouped(query, value)
    scores = query @ key.transpose(-1, -2) * spec.scale
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    if spec.alibi is not None:
        scores = scores + step.alibi(spec)
    if spec.relative is not None:
        scores = scores + step.distances.to(scores.dtype)
    mask = _mask(spec, step, chosen)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return softmax(scores, spec.softmax_start, sinks) @ value


def _mask(spec: Attention, step: Step, chosen: Tensor | None) -> Tensor | None:
    mask = step.mask(spec.causal, spec.window, spec.chunk)
    return mask if chosen is None else chosen if mask is None else mask & chosen


_VECTOR = 32  # numbers, or more than a CPU takes at once


def _not_lost(out: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """`out` as NaN where all scores are: a CPU's kernel takes the largest of fewer numbers than a vector has by
    comparing, which no NaN passes, and gives finite numbers that nobody computed."""
    lost = query.isnan().any(-1, keepdim=True) | key.isnan().any(-1).all(-1)[..., None, None]
    return out.masked_fill(lost, float("nan"))


def _by_heads(x: Tensor) -> Tensor:
    """(B, H, S, D) with the numbers of a head together: flash is slow where a product on the CPU left them apart.

    A few are left where they are: a copy gains nothing there.
    """
    return x if x.stride(-1) == 1 or x.shape[2] * x.shape[3] < _MANY else x.contiguous()


def _ungrouped(query: Tensor, x: Tensor) -> Tensor:
    """Keys or values (B, KV heads, S, D), one for each of the query's heads."""
    return x.repeat_interleave(query.shape[1] // x.shape[1], 1)


def softmax(scores: Tensor, start: float, sinks: Tensor | None) -> Tensor:
    """Softmax of (B, H, T, S); `start` begins the sum of exp(x - max), `sinks` (H,) are one more logit each."""
    wide = scores if scores.dtype == torch.float64 else scores.float()
    if sinks is not None:
        sink = sinks.to(wide.dtype)[None, :, None, None].expand(*wide.shape[:3], 1)
        weights = torch.cat((wide, sink), -1).softmax(-1)[..., :-1]
    elif start:
        powers = (wide - wide.amax(-1, keepdim=True)).exp()
        weights = powers / (start + powers.sum(-1, keepdim=True))
    else:
        weights = wide.softmax(-1)
    return weights.to(scores.dtype)


def _latent(block: LayerPieces, x: Tensor, step: Step) -> Tensor:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): the cache holds `kv_rank` + `rope_dims` a token.

    The keys' up-projection is moved to the queries, the values' behind the sum, so that all heads read one latent.
    """
    spec, mla = block.spec.attention, block.spec.attention.mla
    assert mla is not None
    made_of = x if block.attn_q_a is None else block.attn_q_a_norm(block.attn_q_a(x))
    query = block.attn_q(x) if block.attn_q_a is None else block.attn_q_b(made_of)
    query = query.unflatten(-1, (spec.n_head, spec.head_dim)).transpose(1, 2)
    nope, turning = query.split((mla.nope_dims, mla.rope_dims), -1)
    latent, shared = block.attn_kv_a_mqa(x).split((mla.kv_rank, mla.rope_dims), -1)
    latent = block.attn_kv_a_norm(latent)[:, None]  # (B, 1, T, kv_rank)
    shared = shared[:, None] if block.attn_k_norm is None else block.attn_k_norm(shared)[:, None]
    if spec.rope is not None:
        cos, sin = step.rope(spec.rope)
        turning, shared = (rotate(t, cos, sin, spec.rope.interleaved) for t in (turning, shared))
    up_key, up_value = _latent_projections(block, spec, x.dtype)  # (H, nope, rank), (H, value, rank)
    _show_latent(block, nope, latent)
    query = torch.cat((nope @ up_key, turning), -1)  # (B, H, T, rank + rope)
    if spec.growth is not None:
        query = query * step.growth(spec.growth)
    key = torch.cat((latent, shared), -1)
    if step.cache is not None:
        key, latent = step.cache.extend(block.index, key, latent)
    sinks = block.attn_sinks.weight if block.attn_sinks is not None else None
    choosing = chosen_tokens if spec.pools is None else pooled_tokens
    chosen = choosing(block, x, made_of, step)
    out = attend(query, key, latent, spec, step, sinks, chosen)  # (B, H, T, rank)
    if block.attn_v_b is not None and block.attn_v_b.watch is not None:
        for head in range(spec.n_head):
            block.attn_v_b.watch(out[:, head], None, head)
    out = (out @ up_value.transpose(-1, -2)).transpose(1, 2).flatten(2)
    if block.attn_gate is not None:
        out = _gated(out, block.attn_gate(x), spec.gate)
    result: Tensor = block.attn_output(out)
    return result


def _show_latent(block: LayerPieces, nope: Tensor, latent: Tensor) -> None:
    """Tell who watches the keys' up-projection what its stored form is multiplied with, before any absorbing."""
    if block.attn_k_b is not None and block.attn_k_b.watch is not None:
        for head in range(nope.shape[1]):
            block.attn_k_b.watch(nope[:, head], None, head)
    elif block.attn_kv_b is not None and block.attn_kv_b.watch is not None:
        block.attn_kv_b.watch(latent[:, 0], None, None)


def _latent_projections(block: LayerPieces, spec: Attention, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The up-projections per head: (H, nope dims, rank) and (H, value dims, rank)."""
    mla = spec.mla
    assert mla is not None
    if block.attn_k_b is not None:  # stored transposed: (H, rank, nope)
        return block.attn_k_b.dense(dtype).transpose(-1, -2), block.attn_v_b.dense(dtype)
    both = block.attn_kv_b.dense(dtype).unflatten(0, (spec.n_head, mla.nope_dims + spec.value_dim))
    key, value = both.split((mla.nope_dims, spec.value_dim), 1)
    return key, value
