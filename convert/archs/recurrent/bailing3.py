"""Ling 3 (Bailing MoE V3): Kimi's delta rules, with one matrix for forgetting, one for gates, and latent attention."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.experts.deepseek import DEEPSEEK2
from llmconv.convert.archs.parts import (
    COMMON,
    EMBEDDINGS,
    NEXTN,
    NORMS,
    choice_bias,
    count_nextn,
    each_layer,
    experts,
    gated_mlp,
    shared_experts,
    sigmoid_experts,
    uncount_nextn,
)
from llmconv.convert.archs.recurrent.parts import only
from llmconv.convert.archs.rope import magnitudes_back, rope_sections, yarn_magnitudes
from llmconv.convert.tables.architecture import Architecture, Form, HfName, Key, Row, keys, row
from llmconv.convert.tables.loader import CHOICE, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims, Exp, Reshape

_at = "{p}layers.{i}.attention."

_delta, _full = "not n_head_kv", "n_head_kv"

_inner = "n_head * kda_dim"


def _is_full(config: Mapping[str, Any], i: int, count: int) -> bool:
    if isinstance(kinds := config.get("layer_types"), list) and i < len(kinds):
        return bool(kinds[i] == "full_attention")
    every = int(config.get("layer_group_size") or 6)
    return i >= count or (i + 1) % every == 0 or i >= count // every * every


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    yarn_magnitudes(own, config.get("rope") or {}, 0.1)
    count = min(dims["n_layer"], 1 << 16)
    further = int(own.get("nextn_predict_layers", 0))
    own["attention.head_count_kv"] = np.asarray(
        [int(_is_full(config, i, count)) for i in range(count + further)], np.int32
    )
    turned, rank = int(config["qk_rope_head_dim"]), int(config["kv_lora_rank"])
    own["rope.dimension_count"] = np.uint32(turned)
    own["attention.key_length"] = np.uint32(rank + turned)
    own["attention.key_length_mla"] = np.uint32(int(config["qk_nope_head_dim"]) + turned)
    own["attention.value_length_mla"] = np.uint32(config["v_head_dim"])
    usual = int(own["expert_feed_forward_length"]) * int(own["expert_shared_count"])
    own["expert_shared_feed_forward_length"] = np.uint32(config.get("moe_shared_expert_intermediate_size") or usual)
    for name, key in _LIMITS:
        if isinstance(limits := config.get(name), list):
            filled = [float(n or 0) for n in limits[: count + further]]
            own[key] = np.asarray(filled + [0.0] * (count + further - len(filled)), np.float32)
    if sections := config.get("mrope_section"):
        own["rope.dimension_sections"] = np.asarray([*[*sections, 0, 0][:3], 0], np.int32)
    rope_sections(own, config, dims)
    if not further:
        own.pop("nextn_predict_layers", None)
    count_nextn(own)


_LIMITS = (
    ("expert_swiglu_limit_list", "swiglu_clamp_exp"),
    ("share_expert_swiglu_limit_list", "swiglu_clamp_shexp"),
)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    uncount_nextn(config, dims)
    magnitudes_back(config, own)
    full = each_layer(own, "attention.head_count_kv")[: config["num_hidden_layers"]]
    config["layer_types"] = ["full_attention" if on else "linear_attention" for on in full]
    config["layer_group_size"] = next((i + 1 for i, on in enumerate(full) if on), len(full))
    config["num_key_value_heads"] = dims["n_head"]
    config["qk_rope_head_dim"], config["v_head_dim"] = dims["n_rot"], dims["v_mla"]
    config["qk_nope_head_dim"] = dims["nope"] - dims["n_rot"]
    config["kv_lora_rank"], config["q_lora_rank"] = dims["kv_lora"], dims["q_lora"] or None
    config["moe_shared_expert_intermediate_size"] = dims["n_ff_shexp"]
    config.update(no_kda_lora=True, gated_attention_proj_granularity_type="head_wise")
    for name, key in _LIMITS:
        if key in own:
            config[name] = [float(n) for n in own[key]]


def _latent() -> tuple[Row, ...]:
    """DeepSeek's rows of latent attention, under the family's names."""
    out = []
    for each in DEEPSEEK2.rows:
        name = each.gguf[0]
        if name.startswith("blk.{i}.attn_") and not name.endswith((".bias", "attn_norm.weight", "attn_output.weight")):
            forms = tuple(
                dataclasses.replace(f, patterns=tuple(p.replace("self_attn.", "attention.") for p in f.patterns))
                for f in each.forms
            )
            out.append(dataclasses.replace(each, forms=forms))
    return tuple(out)


def _convolution(part: str) -> Row:
    return row(
        f"blk.{{i}}.ssm_conv1d_{part}.weight",
        _at + f"{part}_conv1d.weight",
        f"1, {_inner}, 1, d_conv",
        Reshape((_inner, 1, "d_conv"), (1, _inner, 1, "d_conv")),
        when=_delta,
    )


_OTHERWISE = ("context_length", "expert_used_count", "expert_weights_norm", "expert_group_count")
"""What transformers calls otherwise than the published models."""

BAILING3 = Architecture(
    "bailingmoe3",
    (
        HfName("BailingMoeV3ForCausalLM", "bailing_hybrid"),
        HfName("BailingHybridForCausalLM", "bailing_hybrid"),
        HfName("BailingMoeV3VLForConditionalGeneration", "bailing_moe_v3_vl"),
    ),
    keys=(
        *(k for k in COMMON if k.gguf not in _OTHERWISE),
        *(
            k
            for k in sigmoid_experts(count="num_experts", shared="num_shared_experts")
            if k.gguf not in ("expert_gating_func", "expert_shared_count", *_OTHERWISE)
        ),
        Key("expert_gating_func", ("score_function", "scoring_func"), "u32", "sigmoid", {"softmax": 1, "sigmoid": 2}),
        *keys("""
            context_length                  u32   max_position_embeddings|model_max_length
            expert_used_count               u32   num_experts_per_tok|num_experts_per_token
            expert_weights_norm             bool  norm_topk_prob|moe_renormalize
            expert_group_count              u32   n_group|num_expert_group
            expert_shared_count             u32   num_shared_experts              1
            attention.value_length          u32   linear_head_dim|head_dim        128
            vocab_size                      u32   vocab_size
            leading_dense_block_count       u32   first_k_dense_replace           2
            attention.q_lora_rank           u32   q_lora_rank
            attention.kv_lora_rank          u32   kv_lora_rank
            ssm.conv_kernel                 u32   short_conv_kernel_size|linear_conv_kernel_dim   4
            kda.head_dim                    u32   linear_head_dim|head_dim        128
            kda.safe_gate                   bool  kda_safe_gate                   true
            kda.gate_lower_bound            f32   kda_lower_bound                 -5
            nextn_predict_layers            u32   num_nextn_predict_layers
        """),
    ),
    rows=(
        row("token_embd.weight", "{p}word_embeddings.weight", "n_vocab, n_embd"),
        *EMBEDDINGS[1:],
        *NORMS,
        *(_convolution(part) for part in "qkv"),
        *(
            row(f"blk.{{i}}.attn_{part}.weight", _at + f"{part}_proj.weight", f"{_inner}, n_embd", when=_delta)
            for part in "qkv"
        ),
        row("blk.{i}.ssm_f_a.weight", _at + "f_proj.weight", f"{_inner}, n_embd", when=_delta),
        row("blk.{i}.ssm_beta.weight", _at + "b_proj.weight", "n_head, n_embd", when=_delta),
        row("blk.{i}.ssm_a", _at + "A_log", "n_head, 1", Exp(), Reshape(("n_head",), ("n_head", 1)), when=_delta),
        row("blk.{i}.ssm_dt.bias", _at + "dt_bias", _inner, when=_delta),
        row("blk.{i}.ssm_g_a.weight", _at + "g_proj.weight", f"{_inner}, n_embd", when=_delta),
        row("blk.{i}.ssm_norm.weight", _at + "o_norm.weight", "kda_dim", when=_delta),
        row(
            "blk.{i}.attn_output.weight",
            _at + "o_proj.weight",
            f"n_embd, {_inner}",
            when=_delta,
            alt=(Form((_at + "dense.weight",)),),  # as transformers writes it
        ),
        *only(_latent(), _full),
        row("blk.{i}.attn_gate.weight", _at + "g_proj.weight", "n_head, n_embd", when=_full),
        row(
            "blk.{i}.attn_output.weight",
            _at + "dense.weight",
            "n_embd, n_head * v_mla",
            when=_full,
            alt=(Form((_at + "dense.weight",)),),
        ),
        *(r for r in gated_mlp(when="i < n_dense") if r.gguf[0].endswith(".weight")),
        *experts(),
        choice_bias("mlp.gate.expert_bias"),
        *shared_experts(),
        *NEXTN,
        row(
            "blk.{i}.layer_output_norm.weight",
            "{p}layers.{i}.final_layernorm.weight",
            "n_embd",
            when="i >= n_layer - n_nextn",
            optional=True,
        ),
    ),
    finish=_finish,
    rebuild=_rebuild,
    decoder={
        "rope": "pairs",
        "folded_halves": True,
        "gating": "sigmoid",
        "latent_eps": 1e-6,
        "yarn_magnitudes_cancel": True,
    },
    reads="qk_nope_head_dim qk_rope_head_dim v_head_dim kv_lora_rank layer_group_size layer_types mrope_section"
    " mlp_layer_types moe_shared_expert_intermediate_size expert_swiglu_limit_list share_expert_swiglu_limit_list",
    inert="num_key_value_heads use_bias use_qkv_bias rotary_dim partial_rotary_factor router_dtype qk_head_dim"
    " mtp_loss_scaling_factor linear_num_heads",
    fixed={
        "attention_bias": False,
        "no_kda_lora": True,
        "kda_safe_gate": True,
        "gated_attention_proj_granularity_type": "head_wise",
    },
    loader=Loader(refused=OUT_BIAS, needed=CHOICE, pieces={"latent_eps": 0.0, "scan_norms_by_model": True}),
)

ARCHITECTURES = (BAILING3,)
