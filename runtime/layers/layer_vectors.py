"""Vectors of the tokens for each layer (Gemma 3n and 4): looked up in a table of their own, joined with what a matrix
makes of the embeddings, and let into each layer by a gate that what comes out of it opens."""

from __future__ import annotations

import torch
from torch import Tensor

from llmconv.runtime.cache import Step
from llmconv.runtime.layers.mlp import activation
from llmconv.runtime.pieces import LayerPieces, Pieces

__all__ = ["made", "vectors"]


def vectors(model: Pieces, tokens: Tensor, x: Tensor) -> Tensor:
    """tokens (B, T) and their embeddings (B, T, dim) -> (B, T, layers, numbers)."""
    layers, table = len(model.blk), model.per_layer_token_embd
    known = tokens.where(tokens < model.decoder.layer_words, torch.zeros_like(tokens))  # others are pictures, sounds
    words = table(known, x.dtype).unflatten(-1, (layers, -1))
    seen = (model.per_layer_model_proj(x) * x.shape[-1] ** -0.5).unflatten(-1, (layers, -1))
    joined: Tensor = (model.per_layer_proj_norm(seen) + words * words.shape[-1] ** 0.5) * 2**-0.5
    return joined


def made(block: LayerPieces, x: Tensor, step: Step) -> Tensor:
    """What a layer's vectors are made into, (B, T, dim), opened by x."""
    assert step.per_layer is not None and block.spec.mlp is not None
    opened = activation(block.spec.mlp.activation)(block.inp_gate(x))
    out: Tensor = block.post_norm(block.proj(opened * step.per_layer[:, :, block.index]))
    return out
