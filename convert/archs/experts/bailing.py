"""Ling (BailingMoE) 1 and 2, and Sarvam: q, k and v in one matrix, experts behind a few dense layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import (
    COMMON,
    EMBEDDINGS,
    HEAD_DIM,
    NEXTN,
    NORMS,
    choice_bias,
    count_nextn,
    experts,
    gated_mlp,
    shared_experts,
    sigmoid_experts,
    uncount_nextn,
)
from llmconv.convert.archs.rope import partial_rotary
from llmconv.convert.tables.architecture import Architecture, HfName, Key, keys, row
from llmconv.convert.tables.loader import HEAD, MLP_BIASES, Loader
from llmconv.convert.tables.ops import Dims, Only, Split, rope_halves

_at = "{p}layers.{i}."

_attn = _at + "attention."

_q, _kv = "n_head * head_dim", "n_head_kv * head_dim"

_WORDS = row("token_embd.weight", "{p}word_embeddings.weight", "n_vocab, n_embd")

BAILING = Architecture(
    "bailingmoe",
    (HfName("BailingMoeForCausalLM", "bailing_moe"),),
    keys=(
        *COMMON,
        *HEAD_DIM,
        *keys("""
            rope.dimension_count              u32   head_dim            = n_embd // n_head
            leading_dense_block_count         u32   first_k_dense_replace     0
            vocab_size                        u32   vocab_size
            expert_count                      u32   num_experts
            expert_used_count                 u32   num_experts_per_tok
            expert_feed_forward_length        u32   moe_intermediate_size
            expert_weights_scale              f32   -                         1
            expert_shared_count               u32   num_shared_experts
            expert_weights_norm               bool  norm_topk_prob
        """),
    ),
    rows=(
        _WORDS,
        *EMBEDDINGS[1:],
        *NORMS,
        row(
            tuple(f"blk.{{i}}.attn_{n}.weight" for n in "qkv"),
            _attn + "query_key_value.weight",
            (f"{_q}, n_embd", f"{_kv}, n_embd", f"{_kv}, n_embd"),
            Split((_q, _kv, _kv)),
            Only(0, rope_halves("n_head")),
            Only(1, rope_halves("n_head_kv")),
        ),
        row("blk.{i}.attn_output.weight", _attn + "dense.weight", f"n_embd, {_q}"),
        *gated_mlp(when="i < n_dense"),
        *experts(),
        *shared_experts(),
    ),
    decoder={"rope": "pairs"},
    inert="max_window_layers num_nextn_predict_layers output_dropout",
    fixed={"norm_head": False, "use_bias": False, "use_qkv_bias": False, "norm_softmax": False, "use_rmsnorm": True},
    loader=Loader(refused=tuple(f"blk.{{i}}.ffn_{n}.weight" for n in ("gate", "up", "down")), needed=HEAD),
)

_half, _half_back = partial_rotary("partial_rotary_factor", 0.5)


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """Sarvam's heads turn as a whole."""
    whole = "Sarvam" in str(config.get("architectures")) or config.get("model_type") == "sarvam_moe"
    if whole:
        config = {"partial_rotary_factor": 1.0, **config}
    _half(own, config, dims)
    usual = int(own["expert_feed_forward_length"]) * int(own.get("expert_shared_count", 0))
    own["expert_shared_feed_forward_length"] = np.uint32(config.get("moe_shared_expert_intermediate_size") or usual)
    count_nextn(own)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    _half_back(config, own, dims)
    uncount_nextn(config, dims)


BAILING2 = Architecture(
    "bailingmoe2",
    (
        HfName("BailingMoeV2ForCausalLM", "bailing_moe_v2"),
        HfName("SarvamMoEForCausalLM", "sarvam_moe"),
        HfName("modeling_sarvam_moe.SarvamMoEForCausalLM", "sarvam_moe"),
    ),
    keys=(
        *COMMON,
        *HEAD_DIM,
        *(
            k
            for k in sigmoid_experts(count="num_experts", shared="num_shared_experts")
            if k.gguf != "expert_gating_func"
        ),
        Key("expert_gating_func", ("score_function", "scoring_func"), "u32", "sigmoid", {"softmax": 1, "sigmoid": 2}),
        *keys("""
            leading_dense_block_count         u32   first_k_dense_replace     0
            vocab_size                        u32   vocab_size
            nextn_predict_layers              u32   num_nextn_predict_layers
        """),
    ),
    rows=(
        _WORDS,
        *EMBEDDINGS[1:],
        *NORMS,
        row("blk.{i}.attn_qkv.weight", _attn + "query_key_value.weight", f"{_q} + 2 * {_kv}, n_embd"),
        row("blk.{i}.attn_q_norm.weight", _attn + "query_layernorm.weight", "head_dim"),
        row("blk.{i}.attn_k_norm.weight", _attn + "key_layernorm.weight", "head_dim"),
        row("blk.{i}.attn_output.weight", _attn + "dense.weight", f"n_embd, {_q}"),
        *gated_mlp(when="i < n_dense"),
        *experts(),
        choice_bias("mlp.gate.expert_bias"),
        *shared_experts(),
        *NEXTN,
        row(
            "blk.{i}.layer_output_norm.weight",
            _at + "final_layernorm.weight",
            "n_embd",
            when="i >= n_layer - n_nextn",
            optional=True,
        ),
    ),
    finish=_finish,
    rebuild=_rebuild,
    decoder={"gating": "sigmoid"},
    reads="partial_rotary_factor moe_shared_expert_intermediate_size architectures",
    inert="max_window_layers output_dropout moe_router_enable_expert_bias moe_router_enable_shared_expert"
    " mtp_loss_scaling_factor rotary_dim router_dtype use_expert_bias num_kv_heads",
    fixed={
        "use_bias": False,
        "use_qkv_bias": False,
        "use_qk_norm": True,
        "use_rmsnorm": True,
        "norm_head": False,
        "norm_softmax": False,
    },
    loader=Loader(refused=MLP_BIASES, needed=HEAD),
)

ARCHITECTURES = (BAILING, BAILING2)
