"""Nemotron-H, dense and with experts: each layer is a Mamba 2, attention without positions, or a feed-forward."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import HEAD, choice_bias, each_layer
from llmconv.convert.archs.recurrent.parts import NO_LIMIT, dual_scan, only
from llmconv.convert.tables.architecture import Architecture, Form, HfName, Row, keys, row
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Dims, Stack, rope_halves
from llmconv.errors import Unsupported

_at = "{p}layers.{i}.mixer."

_LAYERS = 1 << 16  # as many as are looked at one by one

_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}

_NAMES = {"linear_attention": "mamba", "full_attention": "attention"}

_scan, _full, _ff = "not n_head_kv and not n_ff", "n_head_kv", "n_ff"

_main, _further = "i < n_layer - n_nextn", "i >= n_layer - n_nextn"


def _kinds(config: Mapping[str, Any]) -> list[str]:
    """What each layer is: "mamba", "attention", "mlp" or "moe"."""
    found = config.get("layers_block_type", config.get("layer_types")) or config.get("hybrid_override_pattern") or []
    if isinstance(blocks := config.get("block_configs"), list):
        found = [block.get("block_type") for block in blocks]
    kinds = [_LETTERS.get(kind, _NAMES.get(kind, kind)) for kind in found]
    if unknown := [kind for kind in kinds if kind not in _LETTERS.values()]:
        raise Unsupported(f"config.json: a layer is {unknown[0]!r:.60}; known: {', '.join(_LETTERS.values())}")
    return kinds


def _with_experts(config: Mapping[str, Any]) -> bool:
    return "moe" in _kinds(config)


def _blocks(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What Puzzle's models say of each layer, whose experts differ in size and number."""
    found = config.get("block_configs")
    return found if isinstance(found, list) else []


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    kinds = _kinds(config)[:_LAYERS]
    if {"mlp", "moe"} <= set(kinds):
        raise Unsupported("config.json: layers of experts and plain feed-forwards in one Nemotron-H are not known here")
    further = int(config.get("num_nextn_predict_layers") or 0) if "moe" in kinds and not _blocks(config) else 0
    if further > 1:
        raise Unsupported(
            f"config.json: num_nextn_predict_layers is {further}, of a Nemotron-H at most 1 is known here"
        )
    width = dims["n_ff_exp"] if "moe" in kinds else dims["n_ff"]
    heads = [dims["n_head_kv"] * (k == "attention") for k in kinds] + [dims["n_head_kv"]] * further
    widths = [width * (k in ("mlp", "moe")) for k in kinds] + [width] * further
    if blocks := _blocks(config):
        widths = [int(block.get("moe_intermediate_size") or 0) for block in blocks]
        own["expert_feed_forward_length"] = np.asarray(widths, np.int32)
        own["expert_used_count"] = np.asarray(
            [int(block.get("num_experts_per_tok") or 0) for block in blocks], np.int32
        )
    own["block_count"] = np.uint32(len(widths))
    own["attention.head_count_kv"] = np.asarray(heads, np.int32)
    own["feed_forward_length"] = np.asarray(widths, np.int32)
    if further:
        own["nextn_predict_layers"] = np.uint32(further)
    own["ssm.inner_size"] = np.uint32(config["mamba_num_heads"] * config["mamba_head_dim"])
    own["rope.dimension_count"] = np.uint32(dims["n_embd"] // dims["n_head"])


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    heads = each_layer(own, "attention.head_count_kv")
    widths = each_layer(own, "feed_forward_length")
    plain = "moe" if dims["n_expert"] else "mlp"
    kinds = ["full_attention" if h else plain if w else "linear_attention" for h, w in zip(heads, widths, strict=False)]
    further = int(own.get("nextn_predict_layers", 0))
    kinds = kinds[: len(kinds) - further]
    config["layers_block_type"], config["num_hidden_layers"] = kinds, len(kinds)
    config["num_key_value_heads"], config["intermediate_size"] = max(heads), max(widths)
    if further:
        config["num_nextn_predict_layers"] = further
    used = own.get("expert_used_count")
    if isinstance(used, np.ndarray | list):  # Puzzle's
        config["architectures"], config["model_type"] = ["NemotronHPuzzleForCausalLM"], "nemotron_h_puzzle"
        names = {"linear_attention": "mamba", "full_attention": "attention"}
        config["block_configs"] = [
            {"block_type": names.get(kind, kind), "moe_intermediate_size": int(w), "num_experts_per_tok": int(n)}
            for kind, w, n in zip(kinds, widths, used, strict=False)
        ]
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
    reads="layers_block_type layer_types hybrid_override_pattern mamba_head_dim mamba_num_heads block_configs"
    " num_nextn_predict_layers",
    inert="expand chunk_size time_step_min time_step_max time_step_floor time_step_rank residual_in_fp32 norm_eps"
    " rescale_prenorm_residual use_mamba_kernels mamba_ssm_cache_dtype num_logits_to_keep mtp_layers_block_type"
    " mtp_hybrid_override_pattern moe_shared_expert_overlap n_routed_experts n_shared_experts"
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


_MOE = NEMOTRON_H.variant(
    "nemotron_h_moe",
    HfName("NemotronHForCausalLM", "nemotron_h"),
    HfName("NemotronHPuzzleForCausalLM", "nemotron_h_puzzle"),
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
        dataclasses.replace(choice_bias("mixer.gate.e_score_correction_bias", "n_ff"), optional=lambda config: True),
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

_HALVES = ("mtp.layers.0.", "mtp.layers.1.")
"""Where the layer for further tokens has its attention, and its experts."""


def _predicting(rows: tuple[Row, ...]) -> Iterator[Row]:
    """The rows of a layer with attention and experts, as the layer for further tokens has them."""
    for each in rows:
        name = each.gguf[0].removeprefix("blk.{i}.")
        if name.startswith("ssm_"):
            continue
        half = _HALVES[name.startswith(("ffn_", "exp_probs"))]
        forms = tuple(
            dataclasses.replace(f, patterns=tuple(p.replace("{p}layers.{i}.", half) for p in f.patterns))
            for f in each.forms
        )
        yield dataclasses.replace(each, forms=forms, when=f"{_further} and ({each.when})" if each.when else _further)


_nextn = tuple(
    row(f"blk.{{i}}.{gguf}.weight", hf, shape, when=_further)
    for gguf, hf, shape in (
        ("nextn.eh_proj", "mtp.layers.0.eh_proj.weight", "n_embd, 2 * n_embd"),
        ("nextn.enorm", "mtp.layers.0.enorm.weight", "n_embd"),
        ("nextn.hnorm", "mtp.layers.0.hnorm.weight", "n_embd"),
        ("post_attention_norm", "mtp.layers.1.norm.weight", "n_embd"),
        ("nextn.shared_head_norm", "mtp.layers.1.final_layernorm.weight", "n_embd"),
    )
)

_of_layers = tuple(r for r in _MOE.rows if r.per_layer)

NEMOTRON_H_MOE = dataclasses.replace(
    _MOE,
    rows=(
        *(r for r in _MOE.rows if not r.per_layer),
        *only(_of_layers, _main),
        *_predicting(_of_layers),
        *_nextn,
    ),
)

ARCHITECTURES = (NEMOTRON_H, NEMOTRON_H_MOE)
