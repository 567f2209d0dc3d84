"""Qwen 4's n-grams: a token and those before it choose rows of a table by a hash, which are let into each stream by
how well they go with it, and mixed with those of some tokens before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llmconv.convert.decoders.ngrams import Ngrams
from llmconv.runtime.cache import Step
from llmconv.runtime.pieces import LayerPieces
from llmconv.runtime.scans.past import Past, packed

__all__ = ["added"]

_LEAST = 1e-6  # of a number whose root is taken


def added(block: LayerPieces, table: Any, spec: Ngrams, streams: Tensor, step: Step) -> Tensor:
    """Streams (B, T, S, dim) with what the table has for the step's tokens.   table: the model's embedding of rows."""
    past = Past(block.index, step, second=True)
    tokens = step.tokens.gather(1, step.order) if step.packed else step.tokens

    def made(flat: Tensor) -> Tensor:
        x = flat.view(*flat.shape[:2], *streams.shape[2:])
        found = table(_rows(spec, tokens, past), x.dtype).flatten(-2)
        key = _normed(block, "key", block.ple_key(found).view_as(x))
        fits = (key * _normed(block, "query", x)).sum(-1, keepdim=True) * x.shape[-1] ** -0.5
        opened = torch.sigmoid(fits.abs().clamp_min(_LEAST).sqrt() * fits.sign())
        value = opened * block.ple_value(found)[..., None, :]
        near = _convolved(block, spec, past, _normed(block, "conv", value).flatten(-2))
        past.end()
        out: Tensor = value.flatten(-2) + near
        return out

    return streams + packed(streams.flatten(-2), step, made).view_as(streams)


def _rows(spec: Ngrams, tokens: Tensor, past: Past) -> Tensor:
    """(B, T, heads) rows of the table for ids (B, T)."""
    count = tokens.shape[1]
    near = past.behind(tokens[..., None], spec.longest - 1, spec.end)[..., 0]
    mixed, chosen = tokens * spec.multipliers[0], []
    ended = torch.zeros_like(tokens, dtype=torch.bool)
    for back in range(1, spec.longest):
        start = spec.longest - 1 - back
        before = near[:, start : start + count]
        ended = ended | (before == spec.end)
        mixed = mixed ^ (before.masked_fill(ended, spec.end) * spec.multipliers[back])
        for head in range((back - 1) * spec.heads, back * spec.heads):
            chosen.append(mixed % spec.sizes[head] + spec.offsets[head])
    return torch.stack(chosen, -1)


def _normed(block: LayerPieces, part: str, x: Tensor) -> Tensor:
    """Each stream at length one, times weights of its own."""
    weight = getattr(block, f"ple_norm_{part}").weight
    normed: Tensor = block.hc_norm(x) * weight.view(x.shape[-2:]).to(x.dtype)
    return normed


def _convolved(block: LayerPieces, spec: Ngrams, past: Past, x: Tensor) -> Tensor:
    """Each number with its own of some tokens before, as many apart as the longest n-gram is long."""
    weight = block.ple_conv1d.weight.to(x.dtype)
    near = past.behind(x, (weight.shape[1] - 1) * spec.longest)
    out = F.conv1d(near.transpose(1, 2), weight[:, None], groups=len(weight), dilation=spec.longest)
    return F.silu(out.transpose(1, 2))
