"""Attention to some tokens of a long text, which an indexer chooses: a small attention beside it that only scores.

MiniMax M3's scores blocks, each as its best token, counted from a text's first; the nearest are always seen, and each
of the indexer's heads chooses for a group of attention's.  DeepSeek V3.2's scores tokens, all its heads together; in
GLM-5 layers without one see what the last one before them chose.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from llmconv.errors import Unsupported
from llmconv.runtime.cache import Step
from llmconv.runtime.layers.positions import rotate, rotate_end
from llmconv.runtime.pieces import LayerPieces

__all__ = ["chosen_blocks", "chosen_tokens"]


def chosen_blocks(block: LayerPieces, x: Tensor, step: Step) -> Tensor | None:
    """(B, H, T, S) bool, True for keys in blocks that are seen, later ones too; None where all blocks are.

    x: (B, T, dim), normed.
    """
    spec, rope = block.spec.attention.blocks, block.spec.attention.rope
    assert spec is not None
    count = -(-step.end // spec.size)
    if count <= spec.used and step.cache is None:
        return None
    part = block.indexer
    query = part.q_norm(part.q_proj(x).unflatten(-1, (spec.heads, -1))).transpose(1, 2)
    key = part.k_norm(part.k_proj(x))[:, None]
    if rope is not None:
        cos, sin = (table[..., : spec.dims] for table in step.rope(rope))
        query, key = (rotate(t, cos, sin, rope.interleaved) for t in (query, key))
    key = _kept(block, step, key)
    if count <= spec.used:
        return None
    scores = _seen(step, _wide(query) @ _wide(key).transpose(-1, -2))
    at = (step.key_positions // spec.size)[:, None, None].expand_as(scores)
    best = scores.new_full((*scores.shape[:3], count), float("-inf")).scatter_reduce(-1, at, scores, "amax")
    near = step.positions[..., None] // spec.size - torch.arange(spec.local, device=x.device)
    near = near.clamp(min=0)[:, None].expand(*scores.shape[:3], -1)
    top = best.scatter(-1, near, float("inf")).topk(spec.used, -1)
    kept = torch.zeros_like(best, dtype=torch.bool).scatter(-1, top.indices, top.values > float("-inf"))
    kept = kept | ~kept.any(-1, keepdim=True)  # padding, which sees itself
    return kept.gather(-1, at).repeat_interleave(block.spec.attention.n_head // spec.heads, 1)


def chosen_tokens(block: LayerPieces, x: Tensor, latent: Tensor, step: Step) -> Tensor | None:
    """(B, 1, T, S) bool, True for keys that are seen if they could be; None where all are.

    x: (B, T, dim), normed.   latent: what queries are made of, (B, T, rank).
    """
    attention = block.spec.attention
    assert attention.mla is not None
    spec = attention.mla.indexer
    if spec is None or (block.indexer is None and step.end <= spec.used):
        return None
    if block.indexer is None:
        if step.chosen is None:
            raise Unsupported(
                f"of more than {spec.used} tokens this model sees only those that its indexer chooses, which is not in "
                "the file; give it a shorter text"
            )
        return step.chosen
    if step.end <= spec.used and step.cache is None:
        return None
    part = block.indexer
    query = part.attn_q_b(latent).unflatten(-1, (spec.heads, -1)).transpose(1, 2)
    key = part.k_norm(part.attn_k(x))[:, None]
    if attention.rope is not None:
        rope, turn = dataclasses.replace(attention.rope, interleaved=spec.pairs), rotate_end if spec.at_end else rotate
        query, key = (turn(t, *step.rope(rope), rope.interleaved) for t in (query, key))
    key, step.chosen = _kept(block, step, key), None
    if step.end > spec.used:
        keys, weights = _wide(key).transpose(-1, -2), _wide(part.proj(x)) * (spec.heads * spec.dims) ** -0.5
        scores = keys.new_zeros(x.shape[0], 1, x.shape[1], step.end)
        for head in range(spec.heads):  # one after the other: all at once would be many times attention's scores
            scores = scores + (_wide(query[:, head, None]) @ keys).relu() * weights[:, None, :, head, None]
        scores = _seen(step, scores)
        least = scores.topk(spec.used, -1).values[..., -1:]
        above, even = scores > least, scores == least
        # Many scores are 0: of equals the first are taken, however many tokens are looked at together.
        step.chosen = above | even & (even.cumsum(-1) <= spec.used - above.sum(-1, keepdim=True))
    return step.chosen


def _kept(block: LayerPieces, step: Step, key: Tensor) -> Tensor:
    """The indexer's keys (B, 1, S, D) of all tokens, with those of before."""
    if step.cache is None:
        return key
    return step.cache.extend(block.index + len(step.cache.layers) // 2, key, key[..., :0])[0]


def _seen(step: Step, scores: Tensor) -> Tensor:
    """Scores (B, H, T, S) of what a token may see."""
    mask = step.mask(True, None)
    return scores if mask is None else scores.masked_fill(~mask, float("-inf"))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
