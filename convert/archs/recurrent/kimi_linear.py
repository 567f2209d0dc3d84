"""Kimi Linear: delta rules whose every number decays by itself, and latent attention without positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.experts.deepseek import DEEPSEEK2
from llmconv.convert.archs.parts import COMMON, EMBEDDINGS, NORMS, choice_bias, each_layer
from llmconv.convert.archs.recurrent.parts import only
from llmconv.convert.tables.architecture import Architecture, Form, HfName, Key, keys, row
from llmconv.convert.tables.loader import OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims, NegativeExp, Reshape, Stack
from llmconv.errors import Unsupported

_at = "{p}layers.{i}."

_attn = _at + "self_attn."

_moe = _at + "block_sparse_moe."

_LAYERS = 1 << 16  # as many as are looked at one by one

_KINDS = ("linear_attention", "full_attention")

_delta, _full, _sparse = "not n_head_kv", "n_head_kv", "n_expert and i >= n_dense"

_inner = "n_head * kda_dim"


def _attending(config: Mapping[str, Any], n_layer: int) -> list[bool]:
    """Which layers have latent attention: by `layer_types`, or counted from 1."""
    kinds, listed = config.get("layer_types"), (config.get("linear_attn_config") or {}).get("full_attn_layers")
    if listed is not None:
        return [i + 1 in listed for i in range(n_layer)]
    if not isinstance(kinds, list):
        return [bool(i) and i % 4 == 0 for i in range(n_layer)]
    if unknown := [kind for kind in kinds if kind not in _KINDS]:
        raise Unsupported(f"config.json: layer_types has {unknown[0]!r:.60}; known: {', '.join(_KINDS)}")
    return [kind == "full_attention" for kind in kinds[:n_layer]]


def dense_layers(config: Mapping[str, Any]) -> int:
    """How many layers come before those with experts."""
    kinds = config.get("mlp_layer_types")
    if not isinstance(kinds, list):
        return int(config.get("first_k_dense_replace", 1))
    count = next((i for i, kind in enumerate(kinds) if kind != "dense"), len(kinds))
    if "dense" in kinds[count:]:
        raise Unsupported("config.json: mlp_layer_types has a dense layer behind one with experts; not known here")
    return count


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    full = _attending(config, min(dims["n_layer"], _LAYERS))
    own["attention.head_count_kv"] = np.asarray(full, np.int32)  # all heads share one latent
    rope, rank = config["qk_rope_head_dim"], config["kv_lora_rank"]
    own["rope.dimension_count"] = np.uint32(rope)
    own["attention.key_length"] = np.uint32(rank + rope)
    own["attention.key_length_mla"] = np.uint32(config["qk_nope_head_dim"] + rope)
    own["attention.value_length_mla"] = np.uint32(config["v_head_dim"])
    if own.get("expert_weights_norm", True):  # as llama.cpp always does
        own.pop("expert_weights_norm", None)
    if own.get("expert_group_count", 1) == 1:
        own.pop("expert_group_count", None)
    own["leading_dense_block_count"] = np.uint32(dense_layers(config))


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    heads = each_layer(own, "attention.head_count_kv")
    config["layer_types"] = [_KINDS[n > 0] for n in heads]
    config["mlp_layer_types"] = ["dense" if i < dims["n_dense"] else "sparse" for i in range(len(heads))]
    config["num_key_value_heads"] = config["linear_num_heads"] = dims["n_head"]
    config["qk_rope_head_dim"], config["v_head_dim"] = dims["n_rot"], dims["v_mla"]
    config["qk_nope_head_dim"] = dims["nope"] - dims["n_rot"]
    config.setdefault("moe_renormalize", True)
    config["kv_lora_rank"], config["q_lora_rank"] = dims["kv_lora"], dims["q_lora"] or None


def _convolution(part: str) -> Any:
    return row(
        f"blk.{{i}}.ssm_conv1d_{part}.weight",
        _attn + f"{part}_conv1d.weight",
        f"1, {_inner}, 1, d_conv",
        Reshape((_inner, 1, "d_conv"), (1, _inner, 1, "d_conv")),
        when=_delta,
    )


def _plain(name: str, shape: str) -> Any:
    return row(
        f"blk.{{i}}.ffn_{name}.weight",
        _at + f"mlp.{name}_proj.weight",
        shape,
        when="i < n_dense",
        alt=(Form((_moe + f"{name}_proj.weight",)),),
    )


def _expert(name: str, hf: str, shape: str) -> Any:
    return row(f"blk.{{i}}.ffn_{name}_exps.weight", _moe + f"experts.{{e}}.{hf}.weight", shape, Stack(), when=_sparse)


def _shared(name: str, shape: str) -> Any:
    return row(f"blk.{{i}}.ffn_{name}_shexp.weight", _moe + f"shared_experts.{name}_proj.weight", shape, when=_sparse)


_latent = tuple(r for r in DEEPSEEK2.rows if r.gguf[0].startswith("blk.{i}.attn_") and r.gguf[0] != NORMS[0].gguf[0])

KIMI_LINEAR = Architecture(
    "kimi-linear",
    (HfName("KimiLinearForCausalLM", "kimi_linear"), HfName("KimiLinearModel", "kimi_linear")),
    keys=(
        *(key for key in COMMON if key.gguf not in ("context_length", "rope.freq_base")),
        *keys("""
            context_length                  u32   model_max_length|max_position_embeddings   1048576
            rope.freq_base                  f32   rope_theta                     10000
            attention.value_length          u32   head_dim
            vocab_size                      u32   vocab_size
            attention.q_lora_rank           u32   q_lora_rank
            attention.kv_lora_rank          u32   kv_lora_rank
            expert_count                    u32   num_experts|num_local_experts
            expert_used_count               u32   num_experts_per_token|num_experts_per_tok
            expert_feed_forward_length      u32   moe_intermediate_size
            expert_shared_count             u32   num_shared_experts|n_shared_experts
            expert_weights_scale            f32   routed_scaling_factor
            expert_weights_norm             bool  moe_renormalize|norm_topk_prob
            expert_group_count              u32   num_expert_group|n_group
            expert_group_used_count         u32   topk_group
            ssm.conv_kernel                 u32   linear_conv_kernel_dim|linear_attn_config.short_conv_kernel_size  4
            kda.head_dim                    u32   linear_head_dim|linear_attn_config.head_dim                       128
        """),
        Key("expert_gating_func", ("moe_router_activation_func",), "u32", "sigmoid", {"softmax": 1, "sigmoid": 2}),
    ),
    rows=(
        *EMBEDDINGS,
        *NORMS,
        *(_convolution(part) for part in "qkv"),
        *(
            row(f"blk.{{i}}.attn_{part}.weight", _attn + f"{part}_proj.weight", f"{_inner}, n_embd", when=_delta)
            for part in "qkv"
        ),
        row("blk.{i}.ssm_f_a.weight", _attn + "f_a_proj.weight", "kda_dim, n_embd", when=_delta),
        row("blk.{i}.ssm_f_b.weight", _attn + "f_b_proj.weight", f"{_inner}, kda_dim", when=_delta),
        row("blk.{i}.ssm_beta.weight", _attn + "b_proj.weight", "n_head, n_embd", when=_delta),
        row("blk.{i}.ssm_a", _attn + "A_log", "1, 1, n_head, 1", NegativeExp(), when=_delta),
        row("blk.{i}.ssm_dt.bias", _attn + "dt_bias", _inner, when=_delta),
        row("blk.{i}.ssm_g_a.weight", _attn + "g_a_proj.weight", "kda_dim, n_embd", when=_delta),
        row("blk.{i}.ssm_g_b.weight", _attn + "g_b_proj.weight", f"{_inner}, kda_dim", when=_delta),
        row("blk.{i}.ssm_norm.weight", _attn + "o_norm.weight", "kda_dim", when=_delta),
        row("blk.{i}.attn_output.weight", _attn + "o_proj.weight", f"n_embd, {_inner}", when=_delta),
        *only(_latent, _full),
        _plain("gate", "n_ff, n_embd"),
        _plain("up", "n_ff, n_embd"),
        _plain("down", "n_embd, n_ff"),
        row("blk.{i}.ffn_gate_inp.weight", _moe + "gate.weight", "n_expert, n_embd", when=_sparse),
        choice_bias("block_sparse_moe.gate.e_score_correction_bias"),
        _expert("gate", "w1", "n_expert, n_ff_exp, n_embd"),
        _expert("down", "w2", "n_expert, n_embd, n_ff_exp"),
        _expert("up", "w3", "n_expert, n_ff_exp, n_embd"),
        _shared("gate", "n_ff_shexp, n_embd"),
        _shared("up", "n_ff_shexp, n_embd"),
        _shared("down", "n_embd, n_ff_shexp"),
    ),
    finish=_finish,
    rebuild=_rebuild,
    decoder={"positions": "none", "gating": "sigmoid", "normalize_experts": True, "latent_eps": 1e-6},
    reads="layer_types mlp_layer_types first_k_dense_replace linear_num_heads linear_attn_config.num_heads"
    " linear_attn_config.full_attn_layers linear_attn_config.kda_layers qk_nope_head_dim qk_rope_head_dim v_head_dim"
    " kv_lora_rank",
    inert="qk_head_dim num_key_value_heads use_grouped_topk",
    fixed={"mla_use_nope": True, "moe_layer_freq": 1},
    loader=Loader(
        refused=(*OUT_BIAS, "blk.{i}.attn_q_a.bias", "blk.{i}.attn_kv_a_mqa.bias"),
        unread=("expert_weights_norm", "expert_group_count"),
        needed=("output.weight",),
        wants={"not q_lora": "no latent of the queries"},
        pieces={"latent_eps": 0.0, "scan_norms_by_model": True},
    ),
)

ARCHITECTURES = (KIMI_LINEAR,)
