"""DeepSeek V2 and V3: latent attention (MLA), experts after a few dense layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import (
    COMMON,
    EMBEDDINGS,
    NEXTN,
    NORMS,
    count_nextn,
    experts,
    gated_mlp,
    shared_experts,
    uncount_nextn,
)
from llmconv.convert.archs.rope import magnitudes_back, yarn_magnitudes
from llmconv.convert.tables.architecture import Architecture, HfName, Key, keys, row
from llmconv.convert.tables.keys import whole
from llmconv.convert.tables.loader import MLP_BIASES, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims, Only, Split, Transpose

_at = "{p}layers.{i}."

_attn = _at + "self_attn."

_rope = "head_dim - kv_lora"  # the key is the latent and the rotary part

_lite = "n_layer - n_nextn == 26 or n_layer - n_nextn == 27 or n_layer - n_nextn == 48 and n_vocab == 128256"

_by_depth = f"({_lite}) and not q_lora or q_lora and not ({_lite})"

_nope = f"nope - ({_rope})"


_THIRD = (
    *("deepseek_v3", "deepseek_v32", "glm_moe_dsa", "glm4_moe_lite", "kimi_vl", "kimi_k2", "kimi_k25", "hy_v4"),
    *("dots3_note", "dots3_note_text"),
)
"""Types of models that choose their experts as V3 does."""


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """GGUF sees the absorbed form: one key and value head as wide as the latent."""
    nope, rope = int(config.get("qk_nope_head_dim", 128)), int(config.get("qk_rope_head_dim", 64))
    latent, value = int(config.get("kv_lora_rank") or 512), int(config.get("v_head_dim", 128))
    own["attention.head_count_kv"] = np.uint32(1)
    own["attention.kv_lora_rank"] = np.uint32(latent)
    own["attention.key_length"] = np.uint32(latent + rope)
    own["attention.value_length"] = np.uint32(latent)
    own["attention.key_length_mla"] = np.uint32(nope + rope)
    own["attention.value_length_mla"] = np.uint32(value)
    own["rope.dimension_count"] = np.uint32(rope)
    third = config.get("model_type") in _THIRD  # whose configs may leave out what V2's code does otherwise
    if third:
        own.setdefault("expert_gating_func", np.uint32(2))
    if not config.get("norm_topk_prob", third):
        own.pop("expert_weights_norm", None)
    elif not third:  # whose code scales weights, or makes them sum to 1; V3's does both
        own.pop("expert_weights_scale", None)
    dense, kinds = config.get("first_k_dense_replace"), config.get("mlp_layer_types")
    if isinstance(kinds, list):
        dense = next((i for i, kind in enumerate(kinds) if kind != "dense"), len(kinds))
    if dense is None:
        dense = 0 if config.get("n_routed_experts") is not None else dims["n_layer"]
    own["leading_dense_block_count"] = np.uint32(dense)
    every = own.get("expert_group_used_count", 0) >= own.get("expert_group_count", 1)  # llama.cpp wants fewer, or one
    if every or (not third and config.get("topk_method", "greedy") == "greedy"):
        own["expert_group_count"] = own["expert_group_used_count"] = np.uint32(1)
    yarn_magnitudes(own, config.get("rope") or {}, 0.1)
    if not own.get("nextn_predict_layers"):
        own.pop("nextn_predict_layers", None)
    count_nextn(own)


def _renewed(own: Mapping[str, Any]) -> dict[str, Any]:
    """Files from before the absorbed form state the heads as the model's configuration does."""
    latent, rope = whole(own.get("attention.kv_lora_rank", 0)), whole(own.get("rope.dimension_count", 0))
    if "attention.key_length_mla" in own or "attention.key_length" not in own or not 0 < latent + rope < 1 << 31:
        return {}
    return {
        "attention.head_count_kv": np.uint32(1),
        "attention.key_length_mla": own["attention.key_length"],
        "attention.value_length_mla": own.get("attention.value_length", own["attention.key_length"]),
        "attention.key_length": np.uint32(latent + rope),
        "attention.value_length": np.uint32(latent),
    }


def _disputed(config: Mapping[str, Any]) -> list[str]:
    return ["norm_topk_prob"] if config.get("norm_topk_prob") and config.get("model_type") == "deepseek_v2" else []


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    rope = dims["n_rot"]
    config["num_key_value_heads"] = dims["n_head"]
    config["qk_rope_head_dim"] = rope
    config["qk_nope_head_dim"] = dims["nope"] - rope
    config["v_head_dim"] = dims["v_mla"]
    config["kv_lora_rank"] = dims["kv_lora"]
    config["q_lora_rank"] = dims["q_lora"] or None
    config["first_k_dense_replace"] = dims["n_dense"]
    config["norm_topk_prob"] = bool(own.get("expert_weights_norm", False))
    if own.get("expert_gating_func") == 2:
        config.update(architectures=["DeepseekV3ForCausalLM"], model_type="deepseek_v3")
    magnitudes_back(config, own)
    uncount_nextn(config, dims)
    config["topk_method"] = "group_limited_greedy" if own.get("expert_group_count", 1) > 1 else "greedy"
    if own.get("expert_gating_func") == 2:
        del config["topk_method"]


DEEPSEEK2 = Architecture(
    "deepseek2",
    (
        HfName("DeepseekV2ForCausalLM", "deepseek_v2"),
        HfName("DeepseekV3ForCausalLM", "deepseek_v3"),
        HfName("Glm4MoeLiteForCausalLM", "glm4_moe_lite"),
        HfName("YoutuForCausalLM", "youtu"),
        HfName("YoutuVLForConditionalGeneration", "youtu_vl"),
        HfName("KimiVLForConditionalGeneration", "kimi_vl"),
        HfName("KimiK25ForConditionalGeneration", "kimi_k25"),
    ),
    keys=(
        *COMMON,
        *keys("""
            vocab_size                      u32   vocab_size
            attention.q_lora_rank           u32   q_lora_rank
            expert_count                    u32   n_routed_experts
            expert_used_count               u32   num_experts_per_tok
            expert_feed_forward_length      u32   moe_intermediate_size|intermediate_size
            expert_shared_count             u32   n_shared_experts          0
            expert_weights_scale            f32   routed_scaling_factor
            expert_weights_norm             bool  norm_topk_prob
            expert_group_count              u32   n_group
            expert_group_used_count         u32   topk_group
            nextn_predict_layers            u32   num_nextn_predict_layers
        """),
        Key("expert_gating_func", ("scoring_func",), "u32", None, {"softmax": 1, "sigmoid": 2}),
    ),
    rows=(
        *EMBEDDINGS,
        *NORMS,
        row("blk.{i}.attn_q.weight", _attn + "q_proj.weight", "n_head * nope, n_embd", when="not q_lora"),
        row("blk.{i}.attn_q_a.weight", _attn + "q_a_proj.weight", "q_lora, n_embd", when="q_lora"),
        row("blk.{i}.attn_q_a.bias", _attn + "q_a_proj.bias", "q_lora", when="q_lora", optional="attention_bias"),
        row("blk.{i}.attn_q_a_norm.weight", _attn + "q_a_layernorm.weight", "q_lora", when="q_lora"),
        row("blk.{i}.attn_q_b.weight", _attn + "q_b_proj.weight", "n_head * nope, q_lora", when="q_lora"),
        row("blk.{i}.attn_kv_a_mqa.weight", _attn + "kv_a_proj_with_mqa.weight", "head_dim, n_embd"),
        row("blk.{i}.attn_kv_a_mqa.bias", _attn + "kv_a_proj_with_mqa.bias", "head_dim", optional="attention_bias"),
        row("blk.{i}.attn_kv_a_norm.weight", _attn + "kv_a_layernorm.weight", "kv_lora"),
        row(
            ("blk.{i}.attn_k_b.weight", "blk.{i}.attn_v_b.weight"),
            _attn + "kv_b_proj.weight",
            (f"n_head, kv_lora, {_nope}", "n_head, v_mla, kv_lora"),
            Split((_nope, "v_mla"), "n_head", gguf_stacked=True),
            Only(0, Transpose()),
        ),
        row("blk.{i}.attn_output.weight", _attn + "o_proj.weight", "n_embd, n_head * v_mla"),
        row("blk.{i}.attn_output.bias", _attn + "o_proj.bias", "n_embd", optional="attention_bias"),
        *gated_mlp(when="i < n_dense"),
        row(
            "blk.{i}.ffn_gate_inp.weight",
            _at + "mlp.gate.weight",
            "n_expert, n_embd",
            when="n_expert and i >= n_dense",
        ),
        row(
            "blk.{i}.exp_probs_b.bias",
            _at + "mlp.gate.e_score_correction_bias",
            "n_expert",
            when="n_expert and i >= n_dense",
            optional=True,
        ),
        *experts()[1:],
        *shared_experts(),
        *NEXTN,
    ),
    finish=_finish,
    rebuild=_rebuild,
    renewed=_renewed,
    decoder={"rope": "pairs", "yarn_magnitudes_cancel": True, "latent_eps": 1e-6},
    reads="qk_nope_head_dim qk_rope_head_dim kv_lora_rank v_head_dim first_k_dense_replace mlp_layer_types topk_method"
    " rope_theta",
    inert="qk_head_dim head_dim num_experts",
    fixed={"moe_layer_freq": 1, "rope_interleave": True},
    disputed=_disputed,
    loader=Loader(
        refused=(*MLP_BIASES, *OUT_BIAS, "blk.{i}.attn_q_a.bias", "blk.{i}.attn_kv_a_mqa.bias"),
        wants={_by_depth: "a latent of the queries in all models but those of 26 or 27 layers"},
        pieces={"magnitude_in_scores": True, "group_by": 2, "latent_eps": 0.0},
    ),
)

ARCHITECTURES = (DEEPSEEK2,)
