"""Attention to a window, and to runs of tokens before, each made one (DeepSeek V4); an indexer may choose the runs.

One vector is both key and value.  Runs are counted from a text's first token, padding being none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmconv.runtime.cache import Step
from llmconv.runtime.layers.attention import softmax
from llmconv.runtime.layers.pooling import best, in_groups, kept, starts
from llmconv.runtime.layers.positions import rotate_end
from llmconv.runtime.pieces import LayerPieces

__all__ = ["runs_attention"]


def runs_attention(block: LayerPieces, x: Tensor, step: Step) -> Tensor:
    """x: (B, T, dim), normed -> (B, T, dim).   One vector is key and value; what it turned by is taken back behind."""
    spec = block.spec.attention
    made_of = block.attn_q_a_norm(block.attn_q_a(x))
    query = block.length_one(block.attn_q_b(made_of).unflatten(-1, (spec.n_head, -1))).transpose(1, 2)
    key = block.attn_kv_a_norm(block.attn_kv(x))[:, None]
    cos, sin = (torch.empty(0),) * 2
    if spec.rope is not None:
        cos, sin = step.rope(spec.rope)
        query, key = (rotate_end(t, cos, sin, spec.rope.interleaved) for t in (query, key))
    if step.cache is not None:
        key, _ = step.cache.extend(block.index, key, key[..., :0])
    mask = step.mask(True, spec.window)
    if mask is None:
        mask = torch.ones(1, 1, 1, key.shape[2], dtype=torch.bool, device=x.device)
    mask = mask.expand(-1, -1, x.shape[1], -1)
    if spec.runs is not None:
        runs, seen = _runs(block, x, made_of, step)
        key = torch.cat((key, runs[:, None]), 2)
        mask = torch.cat((mask.expand(len(seen), -1, -1, -1), seen[:, None]), -1)
    scores = (query @ key.transpose(-1, -2) * spec.scale).masked_fill(~mask, float("-inf"))
    sinks = None if block.attn_sinks is None else block.attn_sinks.weight
    out = softmax(scores, 0.0, sinks) @ key
    if spec.rope is not None:
        out = rotate_end(out, cos, -sin, spec.rope.interleaved)
    result: Tensor = block.attn_output_b(_by_groups(block, out.transpose(1, 2).flatten(2)))
    return result


def _by_groups(block: LayerPieces, x: Tensor) -> Tensor:
    """Each group of heads through rows of its own: (B, T, H * D) -> (B, T, all rows)."""
    whole = block.attn_output_a
    groups = x.shape[-1] // whole.shape[-1]
    rows = whole.weight.chunk(groups)
    return torch.cat([whole.product(part, rows[i]) for i, part in enumerate(x.chunk(groups, -1))], -1)


def _runs(block: LayerPieces, x: Tensor, latent: Tensor, step: Step) -> tuple[Tensor, Tensor]:
    """Vectors of the whole runs (B, P, D), and which of them each token sees, (B, T, P) bool."""
    spec = block.spec.attention.runs
    assert spec is not None
    names = ["attn_compressor", *(["indexer_compressor"] if spec.used else [])]
    made = [torch.cat((getattr(block, f"{n}_kv")(x), getattr(block, f"{n}_gate")(x)), -1) for n in names]
    known = kept(block, step, *made)
    runs = _made_one(block, names[0], known[0], step)
    whole = ((step.positions + 1) // spec.size).expand(x.shape[0], -1)
    seen = torch.arange(runs.shape[1], device=x.device) < whole[..., None]
    if spec.used and runs.shape[1] > spec.used:
        part, rope = block.indexer, block.spec.attention.rope
        query = part.attn_q_b(latent).unflatten(-1, (spec.heads, -1)).transpose(1, 2)
        if rope is not None:
            query = rotate_end(query, *step.rope(rope), rope.interleaved)
        key = _made_one(block, names[1], known[1], step)
        scores = (_wide(query) @ _wide(key)[:, None].transpose(-1, -2)).relu()
        scores = (scores * _wide(part.proj(x)).transpose(1, 2)[..., None]).sum(1)
        seen = seen & best(scores, whole, spec.used)
    return runs, seen


def _made_one(block: LayerPieces, name: str, made: Tensor, step: Step) -> Tensor:
    """One vector of each whole run, (B, P, D), turned as its first token; made: values and weights of the tokens."""
    spec, rope = block.spec.attention.runs, block.spec.attention.rope
    assert spec is not None
    values, weights = in_groups(made, spec.size).chunk(2, -1)
    weights = _wide(weights) + _wide(getattr(block, f"{name}_ape").weight)
    if spec.overlapping:
        (before, values), (earlier, weights) = values.chunk(2, -1), weights.chunk(2, -1)
        values = torch.cat((_late(before, 0.0), values), 2)
        weights = torch.cat((_late(earlier, float("-inf")), weights), 2)
    runs: Tensor = getattr(block, f"{name}_norm")((values * weights.softmax(2).to(values.dtype)).sum(2))
    if rope is None:
        return runs
    cos, sin = starts(rope, spec.size, runs.shape[1], step)
    return rotate_end(runs[:, None], cos, sin, rope.interleaved)[:, 0]


def _late(groups: Tensor, first: float) -> Tensor:
    """(B, P, size, D): what the group before has; before the first, `first`."""
    if not groups.shape[1]:
        return groups
    return torch.cat((torch.full_like(groups[:, :1], first), groups[:, :-1]), 1)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
