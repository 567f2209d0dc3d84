"""Nemotron-H, dense and with experts: each layer is a Mamba 2, attention without positions, or a feed-forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import HEAD, choice_bias, each_layer
from llmconv.convert.archs.recurrent.parts import NO_LIMIT, dual_scan
from llmconv.convert.tables.architecture import Architecture, Form, HfName, keys, row
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Dims, Stack, rope_halves
from llmconv.errors import Unsupported

_at = "{p}layers.{i}.mixer."

_LAYERS = 1 << 16  # as many as are looked at one by one

_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}

_NAMES = {"linear_attention": "mamba", "full_attention": "attention"}

_scan, _full, _ff = "not n_head_kv and not n_ff", "n_head_kv", "n_ff"


def _kinds(config: Mapping[str, Any]) -> list[str]:
    """What each layer is: "mamba", "attention", "mlp" or "moe"."""
    found = config.get("layers_block_type", config.get("layer_types")) or config.get("hybrid_override_pattern") or []
    kinds = [_LETTERS.get(kind, _NAMES.get(kind, kind)) for kind in found]
    if unknown := [kind for kind in kinds if kind not in _LETTERS.values()]:
        raise Unsupported(f"config.json: a layer is {unknown[0]!r:.60}; known: {', '.join(_LETTERS.values())}")
    return kinds


def _with_experts(config: Mapping[str, Any]) -> bool:
    return "moe" in _kinds(config)


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    kinds = _kinds(config)[:_LAYERS]
    if {"mlp", "moe"} <= set(kinds):
        raise Unsupported("config.json: layers of experts and plain feed-forwards in one Nemotron-H are not known here")
    width = dims["n_ff_exp"] if "moe" in kinds else dims["n_ff"]
    own["block_count"] = np.uint32(len(kinds))
    own["attention.head_count_kv"] = np.asarray([dims["n_head_kv"] * (k == "attention") for k in kinds], np.int32)
    own["feed_forward_length"] = np.asarray([width * (k in ("mlp", "moe")) for k in kinds], np.int32)
    own["ssm.inner_size"] = np.uint32(config["mamba_num_heads"] * config["mamba_head_dim"])
    own["rope.dimension_count"] = np.uint32(dims["n_embd"] // dims["n_head"])


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    heads = each_layer(own, "attention.head_count_kv")
    widths = each_layer(own, "feed_forward_length")
    plain = "moe" if dims["n_expert"] else "mlp"
    kinds = ["full_attention" if h else plain if w else "linear_attention" for h, w in zip(heads, widths, strict=False)]
    config["layers_block_type"], config["num_hidden_layers"] = kinds, len(kinds)
    config["num_key_value_heads"], config["intermediate_size"] = max(heads), max(widths)
    config["mamba_head_dim"] = dims["d_inner"] // dims["dt_rank"]


_turned, _turned_kv = rope_halves("n_head"), rope_halves("n_head_kv")  # as if there were positions

NEMOTRON_H = Architecture(
    "nemotron_h",
    (HfName("NemotronHForCausalLM", "nemotron_h"),),
    fits=lambda config: not _with_experts(config),
    keys=keys("""
        block_count                       u32   num_hidden_layers             1
        context_length                    u32   -                             1048576
        embedding_length                  u32   hidden_size
        feed_forward_length               u32   intermediate_size             0
        attention.head_count              u32   num_attention_heads
        attention.head_count_kv           u32   num_key_value_heads           = n_head
        attention.key_length              u32   head_dim|attention_head_dim   128
        attention.value_length            u32   head_dim|attention_head_dim   128
        attention.layer_norm_rms_epsilon  f32   layer_norm_epsilon|norm_eps   1e-5
        attention.layer_norm_epsilon      f32   layer_norm_epsilon|norm_eps   1e-5
        vocab_size                        u32   vocab_size
        ssm.conv_kernel                   u32   conv_kernel|mamba_d_conv      4
        ssm.state_size                    u32   ssm_state_size                128
        ssm.group_count                   u32   n_groups|mamba_n_groups       8
        ssm.time_step_rank                u32   mamba_num_heads               128
    """),
    rows=(
        row("token_embd.weight", "{p}embeddings.weight", "n_vocab, n_embd"),
        row("output_norm.weight", "{p}norm_f.weight", "n_embd"),
        HEAD,
        row("blk.{i}.attn_norm.weight", "{p}layers.{i}.norm.weight", "n_embd"),
        *dual_scan(_at, _scan),
        row(
            "blk.{i}.attn_q.weight",
            _at + "q_proj.weight",
            "n_head * head_dim, n_embd",
            rope_halves("n_head"),
            when=_full,
        ),
        row(
            "blk.{i}.attn_k.weight",
            _at + "k_proj.weight",
            "n_head_kv * head_dim, n_embd",
            rope_halves("n_head_kv"),
            when=_full,
        ),
        row("blk.{i}.attn_v.weight", _at + "v_proj.weight", "n_head_kv * head_dim_v, n_embd", when=_full),
        row("blk.{i}.attn_output.weight", _at + "o_proj.weight", "n_embd, n_head * head_dim_v", when=_full),
        row("blk.{i}.ffn_up.weight", _at + "up_proj.weight", "n_ff, n_embd", when=_ff),
        row("blk.{i}.ffn_down.weight", _at + "down_proj.weight", "n_embd, n_ff", when=_ff),
        row("blk.{i}.ffn_up.bias", _at + "up_proj.bias", "n_ff", when=_ff, optional="mlp_bias"),
        row("blk.{i}.ffn_down.bias", _at + "down_proj.bias", "n_embd", when=_ff, optional="mlp_bias"),
    ),
    prefixes=("backbone.", "model.", "language_model.backbone.", ""),
    constants={"rope.scaling.finetuned": False},
    finish=_finish,
    rebuild=_rebuild,
    decoder={
        "norm": "rms",
        "positions": "none",
        "single": True,
        "activation": "relu2",
        "activation_key": "mlp_hidden_act",
    },
    reads="layers_block_type layer_types hybrid_override_pattern mamba_head_dim mamba_num_heads",
    inert="expand chunk_size time_step_min time_step_max time_step_floor time_step_rank residual_in_fp32 norm_eps"
    " rescale_prenorm_residual use_mamba_kernels mamba_ssm_cache_dtype num_logits_to_keep mtp_layers_block_type"
    " mtp_hybrid_override_pattern num_nextn_predict_layers moe_shared_expert_overlap n_routed_experts n_shared_experts"
    " moe_intermediate_size moe_shared_expert_intermediate_size num_experts_per_tok routed_scaling_factor n_group"
    " topk_group norm_topk_prob sliding_window rope_theta attention_bias mamba_proj_bias moe_latent_size"
    " max_position_embeddings",
    fixed={"mamba_hidden_act": "silu", "time_step_limit": NO_LIMIT},
    loader=Loader(
        refused=("blk.{i}.ssm_in.bias", "blk.{i}.ssm_out.bias"), needed=(f"blk.{{i}}.ssm_conv1d.bias if {_scan}",)
    ),
)

_latent = "n_embd - (n_embd - n_latent) * (n_latent > 0)"

_expert = _at + "experts.{e}."


def _experts(name: str, hf: str, shape: str) -> Any:
    return row(
        f"blk.{{i}}.ffn_{name}_exps.weight",
        _expert + f"{hf}.weight",
        f"n_expert, {shape}",
        Stack(),
        when=_ff,
        alt=(Form((_at + f"experts.{hf}",)),),
    )


NEMOTRON_H_MOE = NEMOTRON_H.variant(
    "nemotron_h_moe",
    HfName("NemotronHForCausalLM", "nemotron_h"),
    fits=_with_experts,
    keys=keys("""
        expert_count                        u32   n_routed_experts
        expert_used_count                   u32   num_experts_per_tok
        expert_feed_forward_length          u32   moe_intermediate_size
        expert_shared_feed_forward_length   u32   moe_shared_expert_intermediate_size
        expert_shared_count                 u32   n_shared_experts
        expert_weights_norm                 bool  norm_topk_prob                  true
        expert_weights_scale                f32   routed_scaling_factor           1
        expert_group_count                  u32   n_group                         1
        expert_group_used_count             u32   topk_group                      1
        moe_latent_size                     u32   moe_latent_size
    """),
    rows=(
        row("blk.{i}.ffn_gate_inp.weight", _at + "gate.weight", "n_expert, n_embd", when=_ff),
        choice_bias("mixer.gate.e_score_correction_bias", "n_ff"),
        row(
            "blk.{i}.ffn_latent_down.weight",
            _at + "fc1_latent_proj.weight",
            "n_latent, n_embd",
            when="n_ff and n_latent",
        ),
        row(
            "blk.{i}.ffn_latent_up.weight", _at + "fc2_latent_proj.weight", "n_embd, n_latent", when="n_ff and n_latent"
        ),
        _experts("up", "up_proj", f"n_ff_exp, {_latent}"),
        _experts("down", "down_proj", f"{_latent}, n_ff_exp"),
        row("blk.{i}.ffn_up_shexp.weight", _at + "shared_experts.up_proj.weight", "n_ff_shexp, n_embd", when=_ff),
        row("blk.{i}.ffn_down_shexp.weight", _at + "shared_experts.down_proj.weight", "n_embd, n_ff_shexp", when=_ff),
    ),
    drop=tuple(f"blk.{{i}}.ffn_{name}" for name in ("up.weight", "down.weight", "up.bias", "down.bias")),
    decoder={"gating": "sigmoid", "normalize_experts": True},
    inert="intermediate_size mlp_bias",
)

ARCHITECTURES = (NEMOTRON_H, NEMOTRON_H_MOE)
