"""simple-llm: the small word-level models that began as JSON; what they compute: `convert.layouts.families.simple_llm`.

No transformers class exists; the folder is in its style, with `model_type` "simple-llm".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Dims

CONSTANTS: Mapping[str, Any] = {
    "attention.causal": False,
    "attention.layer_norm_epsilon": np.float32(1e-8),
    "attention.softmax_start": np.float64(1e-8),
    "position_embedding": "sinusoidal-interleaved",
    "hidden_activation": "relu",
}
"""What the original program fixes: no mask; LayerNorm's epsilon; where the sum in a softmax's denominator starts;
position p, dimension 2i (2i + 1): sin (cos) of p / 10000^(2i / n_embd); the feed-forward's activation."""


def scale(dims: Dims) -> np.float64:
    """What q·k is multiplied by: 1 / sqrt(head size)."""
    return np.float64(1 / math.sqrt(dims["n_embd"] // dims["n_head"]))


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["attention.scale"] = scale(dims)


def _norm(gguf: str, hf: str) -> Any:
    at = "{p}layers.{i}." + hf
    return (
        row(f"blk.{{i}}.{gguf}.weight", at + ".weight", "n_embd"),
        row(f"blk.{{i}}.{gguf}.bias", at + ".bias", "n_embd"),
    )


SIMPLE_LLM = Architecture(
    "simple-llm",
    (HfName("SimpleLlmModel", "simple-llm"),),
    keys=keys("""
        vocab_size              u32   vocab_size
        embedding_length        u32   hidden_size
        block_count             u32   num_hidden_layers
        feed_forward_length     u32   intermediate_size     = n_embd
        attention.head_count    u32   num_attention_heads   1
    """),
    rows=(
        row("token_embd.weight", "{p}embed_tokens.weight", "n_vocab, n_embd"),
        row("output.weight", "lm_head.weight", "n_vocab, n_embd"),
        row("output.bias", "lm_head.bias", "n_vocab"),
        *(
            row(f"blk.{{i}}.attn_{x}.weight", f"{{p}}layers.{{i}}.self_attn.{x}_proj.weight", "n_embd, n_embd")
            for x in "qkv"
        ),
        row(
            "blk.{i}.attn_output.weight",
            "{p}layers.{i}.self_attn.o_proj.weight",
            "n_embd, n_embd",
            optional="output_projection",
        ),
        *_norm("attn_output_norm", "self_attn_layer_norm"),
        row("blk.{i}.ffn_up.weight", "{p}layers.{i}.mlp.up_proj.weight", "n_ff, n_embd"),
        row("blk.{i}.ffn_down.weight", "{p}layers.{i}.mlp.down_proj.weight", "n_embd, n_ff"),
        *_norm("layer_output_norm", "final_layer_norm"),
    ),
    prefixes=("model.", ""),
    constants=CONSTANTS,
    finish=_finish,
    reads="output_projection",
    loader=Loader(exists=False),
    decoder={
        "activation_key": "",
        "norm": "layer",
        "eps": 1e-8,
        "positions": "sinusoidal",
        "causal": False,
        "activation": "relu",
        "softmax_start": 1e-8,
        "no_end": True,
        "initial": "xavier",
        "tokenizer": "word",
    },
)

ARCHITECTURES = (SIMPLE_LLM,)
