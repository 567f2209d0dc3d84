"""Attention to pools of neighbouring tokens, which an indexer chooses (GLM 5 Next, Qwen 4).

Pools are counted from a text's first token, padding being none; behind the last whole one all tokens are seen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmconv.convert.decoders.facts import Rope
from llmconv.convert.decoders.pooled import Pools
from llmconv.errors import Unsupported
from llmconv.runtime.cache import Step
from llmconv.runtime.layers.positions import rope_tables, rotate
from llmconv.runtime.pieces import LayerPieces

__all__ = ["best", "in_groups", "kept", "pooled_tokens", "starts"]


def pooled_tokens(block: LayerPieces, x: Tensor, latent: Tensor | None, step: Step) -> Tensor | None:
    """(B, 1, T, S) bool, True for keys in pools that are seen and for those behind the last whole one, later ones too;
    None where all are.

    x: (B, T, dim), normed.   latent: what queries are made of, (B, T, rank), where they are.
    """
    spec = block.spec.attention.pools
    assert spec is not None
    few = step.end // spec.size <= spec.used
    if block.indexer is None:
        if not few and step.chosen is None:
            raise Unsupported(
                f"of more than {spec.used * spec.size} tokens this model sees only those that its indexer chooses, "
                "which is not in the file; give it a shorter text"
            )
        return step.chosen
    step.chosen = None
    if few and step.cache is None:
        return None
    part = block.indexer
    if spec.weighed:
        made = torch.cat((part.k_norm(part.attn_k(x)), block.indexer_compressor_gate(x)), -1)
    else:
        made = part.k_proj(x)
    (made,) = kept(block, step, made)
    if few:
        return None
    query, key = _pools_asked(block, spec, x, latent, made, step)
    scores = (_wide(query) @ _wide(key)[:, None].transpose(-1, -2)).relu()
    if spec.weighed:
        scores = scores * _wide(part.proj(x)).transpose(1, 2)[..., None]
    whole = (step.positions + 1) // spec.size  # how many pools a token may see
    chosen = best(scores.sum(1), whole, spec.used)
    at = (step.key_positions // spec.size)[:, None].expand(-1, x.shape[1], -1)
    within = chosen.gather(-1, at.clamp(max=key.shape[1] - 1).expand(x.shape[0], -1, -1))
    step.chosen = (within | (at >= whole[..., None]))[:, None]
    return step.chosen


def _pools_asked(
    block: LayerPieces, spec: Pools, x: Tensor, latent: Tensor | None, made: Tensor, step: Step
) -> tuple[Tensor, Tensor]:
    """The indexer's queries (B, heads, T, dims) and the whole pools' keys (B, P, dims)."""
    part, rope = block.indexer, block.spec.attention.rope
    groups = in_groups(made, spec.size)
    if spec.weighed:
        assert latent is not None
        query = part.attn_q_b(latent).unflatten(-1, (spec.heads, -1)).transpose(1, 2)
        keys, weights = torch.split(groups, spec.dims, -1)
        weights = (_wide(weights) + _wide(block.indexer_compressor_ape.weight)).softmax(2)
        return query, (weights.to(keys.dtype) * keys).sum(2)
    query = part.q_norm(part.q_proj(x).unflatten(-1, (spec.heads, -1))).transpose(1, 2)
    key = part.k_norm(_wide(groups).mean(2).to(groups.dtype))
    if rope is not None:
        query = rotate(query, *step.rope(rope), rope.interleaved)
        key = rotate(key[:, None], *starts(rope, spec.size, key.shape[1], step), rope.interleaved)[:, 0]
    return query, key


def in_groups(x: Tensor, size: int) -> Tensor:
    """(B, S, D) -> the whole groups of neighbours, (B, P, size, D)."""
    count = x.shape[1] // size
    return x[:, : count * size].reshape(len(x), count, size, x.shape[-1])


def kept(block: LayerPieces, step: Step, *made: Tensor) -> list[Tensor]:
    """What was made of tokens (B, T, D), of all of them, those of before first and padding last: (B, S, D) each."""
    if step.cache is not None:
        first, second = made[0][:, None], made[-1][:, None, :, : None if len(made) > 1 else 0]
        both = step.cache.extend(block.index + len(step.cache.layers) // 2, first, second)
        made = tuple(part[:, 0] for part in both[: len(made)])
    if step.valid is None:
        return list(made)
    order = (~step.valid).long().argsort(dim=1, stable=True)
    return [part.gather(1, order[..., None].expand_as(part)) for part in made]


def best(scores: Tensor, whole: Tensor, used: int) -> Tensor:
    """(B, T, P) bool: the `used` best of the first `whole` (B or 1, T); of equals the first."""
    there = torch.arange(scores.shape[-1], device=scores.device) < whole[..., None]
    scores = scores.masked_fill(~there, float("-inf"))
    least = scores.topk(used, -1).values[..., -1:]
    above, even = scores > least, scores == least
    return above | even & (even.cumsum(-1) <= used - above.sum(-1, keepdim=True))


def starts(rope: Rope, size: int, count: int, step: Step) -> tuple[Tensor, Tensor]:
    """cos and sin of the first tokens of `count` groups."""
    starts = torch.arange(count, device=step.device)[None] * size
    divisors = step.divisors.get("rope_freqs") if rope.divided else None
    return rope_tables(rope, starts, step.end, divisors, step.dtype)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
