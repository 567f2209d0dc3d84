"""StarCoder (GPT-BigCode) and StarCoder2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.gpt.gpt2 import GPT2, attention_scale, read_attention_scale
from llmconv.convert.archs.parts import COMMON_BUT_EPSILON, LAYER_NORMS, attention, linear, norm
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.loader import MLP_BIASES, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims, SwapRows

_at = "{p}h.{i}."


def _kv_heads(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    shared = config.get("multi_query", True)
    own["attention.head_count_kv"] = np.uint32(1 if shared else dims["n_head"])
    attention_scale(own, config, dims)


def _multi_query(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["multi_query"] = dims["n_head_kv"] == 1
    read_attention_scale(config, own, dims)


_qkv = "(n_head + 2 * n_head_kv) * head_dim"

_apart = SwapRows("n_head", 3, inner="head_dim")  # without multi-query attention each head has its own q, k, v

STARCODER = GPT2.variant(
    "starcoder",
    HfName("GPTBigCodeForCausalLM", "gpt_bigcode"),
    rows=(
        row("blk.{i}.attn_qkv.weight", _at + "attn.c_attn.weight", f"{_qkv}, n_embd", when="n_head_kv == 1"),
        row("blk.{i}.attn_qkv.bias", _at + "attn.c_attn.bias", _qkv, when="n_head_kv == 1"),
        *linear("blk.{i}.attn_output", _at + "attn.c_proj", "n_embd", "n_embd"),
        *linear("blk.{i}.ffn_up", _at + "mlp.c_fc", "n_ff", "n_embd"),
        *linear("blk.{i}.ffn_down", _at + "mlp.c_proj", "n_embd", "n_ff"),
    ),
    finish=_kv_heads,
    rebuild=_multi_query,
    decoder={"conv1d": False},
    reads="multi_query",
    inert="attention_softmax_in_fp32 scale_attention_softmax_in_fp32 num_key_value_heads inference_runner",
)

_heads_apart = (
    row("blk.{i}.attn_qkv.weight", _at + "attn.c_attn.weight", f"{_qkv}, n_embd", _apart, when="n_head_kv != 1"),
    row("blk.{i}.attn_qkv.bias", _at + "attn.c_attn.bias", _qkv, _apart, when="n_head_kv != 1"),
)

STARCODER = STARCODER.extended(_heads_apart)

_at = "{p}layers.{i}."

STARCODER2 = Architecture(
    "starcoder2",
    (HfName("Starcoder2ForCausalLM", "starcoder2"),),
    keys=(
        *COMMON_BUT_EPSILON,
        *keys("""
            attention.layer_norm_epsilon    f32   norm_epsilon              1e-5
            attention.sliding_window        u32   sliding_window
        """),
    ),
    rows=(
        *LAYER_NORMS,
        *norm("blk.{i}.ffn_norm", _at + "post_attention_layernorm"),
        *attention(bias="use_bias"),
        *linear("blk.{i}.ffn_up", _at + "mlp.c_fc", "n_ff", "n_embd", bias="use_bias"),
        *linear("blk.{i}.ffn_down", _at + "mlp.c_proj", "n_embd", "n_ff", bias="use_bias"),
    ),
    tied=True,
    decoder={"activation": "gelu_tanh", "window_pattern": 0},
    inert="norm_type mlp_type attention_bias attention_softmax_in_fp32 scale_attention_softmax_in_fp32",
    loader=Loader(unread=("attention.sliding_window",), needed=(*MLP_BIASES[1:], *OUT_BIAS)),
)

ARCHITECTURES = (STARCODER, STARCODER, STARCODER2)
