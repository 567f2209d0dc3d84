"""Jamba: Mamba 1 in most layers, attention without positions in some; experts in every other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import EXPERTS, attention, each_layer
from llmconv.convert.archs.recurrent.parts import only, selective_scan
from llmconv.convert.tables.architecture import Architecture, Form, HfName, keys, row
from llmconv.convert.tables.loader import OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims, Split, Stack

_at = "{p}layers.{i}."

_mamba = _at + "mamba."

_ff = _at + "feed_forward."

_LAYERS = 1 << 16  # as many as are looked at one by one

_scan, _full = "not n_head_kv", "n_head_kv"


def _every(period: int, offset: int, n_layer: int) -> list[bool]:
    return [i % period == offset for i in range(min(n_layer, _LAYERS))]


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    rank = config.get("mamba_dt_rank", "auto")
    own["ssm.time_step_rank"] = np.uint32(-(-dims["n_embd"] // 16) if rank == "auto" else rank)
    own["ssm.inner_size"] = np.uint32(config.get("mamba_expand", 2) * dims["n_embd"])
    full = _every(config.get("attn_layer_period", 8), config.get("attn_layer_offset", 4), dims["n_layer"])
    own["attention.head_count_kv"] = np.asarray([dims["n_head_kv"] * on for on in full], np.int32)
    sparse = _every(config.get("expert_layer_period", 2), config.get("expert_layer_offset", 1), dims["n_layer"])
    own["moe_layers"] = np.asarray([on and dims["n_expert"] > 1 for on in sparse], np.uint32)


def _regular(on: list[bool]) -> tuple[int, int]:
    """(period, offset) of the layers that are on."""
    where = [i for i, flag in enumerate(on) if flag]
    if not where:
        return len(on) + 1, len(on)
    return (where[1] - where[0] if len(where) > 1 else len(on)), where[0]


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    heads = each_layer(own, "attention.head_count_kv")
    config["num_key_value_heads"] = max(heads)
    config["attn_layer_period"], config["attn_layer_offset"] = _regular([n > 0 for n in heads])
    if (sparse := own.get("moe_layers")) is not None:
        config["expert_layer_period"], config["expert_layer_offset"] = _regular([bool(n) for n in sparse])
    config["mamba_dt_rank"] = dims["dt_rank"]
    config["mamba_expand"] = dims["d_inner"] // dims["n_embd"]


def _sparse(tensors: Mapping[str, Any], dims: Dims) -> dict[str, Any]:
    """Which layers have experts, by their routers."""
    layers = range(min(dims["n_layer"], len(tensors)))
    return {"moe_layers": np.asarray([f"blk.{i}.ffn_gate_inp.weight" in tensors for i in layers], np.uint32)}


def _dense(name: str, hf: str, shape: str) -> Any:
    """A plain feed-forward's row; older files keep it as an only expert."""
    return row(
        f"blk.{{i}}.ffn_{name}.weight",
        _ff + f"{hf}.weight",
        shape,
        when="not sparse",
        alt=(Form((_ff + f"experts.0.{hf}.weight",)),),
    )


_expert = _ff + "experts.{e}."

JAMBA = Architecture(
    "jamba",
    (HfName("JambaForCausalLM", "jamba"),),
    keys=(
        *keys("""
            block_count                       u32   num_hidden_layers
            context_length                    u32   max_position_embeddings     262144
            embedding_length                  u32   hidden_size
            feed_forward_length               u32   intermediate_size
            attention.head_count              u32   num_attention_heads
            attention.head_count_kv           u32   num_key_value_heads         = n_head
            attention.layer_norm_rms_epsilon  f32   rms_norm_eps                1e-6
            ssm.conv_kernel                   u32   mamba_d_conv                4
            ssm.state_size                    u32   mamba_d_state               16
        """),
        *EXPERTS,
    ),
    rows=(
        row("token_embd.weight", "{p}embed_tokens.weight", "n_vocab, n_embd"),
        row("output_norm.weight", "{p}final_layernorm.weight", "n_embd"),
        row("output.weight", "lm_head.weight", "n_vocab, n_embd", optional="!tie_word_embeddings"),
        row("blk.{i}.attn_norm.weight", _at + "input_layernorm.weight", "n_embd"),
        row("blk.{i}.ffn_norm.weight", _at + "pre_ff_layernorm.weight", "n_embd"),
        *only(attention(bias=True), _full),
        *selective_scan(_mamba, _scan, "mamba_proj_bias", "mamba_conv_bias=true"),
        row("blk.{i}.ssm_dt_norm.weight", _mamba + "dt_layernorm.weight", "dt_rank", when=_scan),
        row("blk.{i}.ssm_b_norm.weight", _mamba + "b_layernorm.weight", "d_state", when=_scan),
        row("blk.{i}.ssm_c_norm.weight", _mamba + "c_layernorm.weight", "d_state", when=_scan),
        _dense("gate", "gate_proj", "n_ff, n_embd"),
        _dense("up", "up_proj", "n_ff, n_embd"),
        _dense("down", "down_proj", "n_embd, n_ff"),
        row("blk.{i}.ffn_gate_inp.weight", _ff + "router.weight", "n_expert, n_embd", when="sparse"),
        row(
            ("blk.{i}.ffn_gate_exps.weight", "blk.{i}.ffn_up_exps.weight"),
            (_expert + "gate_proj.weight", _expert + "up_proj.weight"),
            ("n_expert, n_ff, n_embd", "n_expert, n_ff, n_embd"),
            Stack(2),
            when="sparse",
            alt=(
                Form(
                    (_ff + "experts.gate_up_proj",),
                    (Split(("n_ff", "n_ff"), "n_expert", hf_stacked=True, gguf_stacked=True),),
                ),
            ),
        ),
        row(
            "blk.{i}.ffn_down_exps.weight",
            _expert + "down_proj.weight",
            "n_expert, n_embd, n_ff",
            Stack(),
            when="sparse",
            alt=(Form((_ff + "experts.down_proj",)),),
        ),
    ),
    finish=_finish,
    rebuild=_rebuild,
    told=_sparse,
    decoder={"positions": "none", "normalize_experts": False},
    reads="mamba_dt_rank mamba_expand attn_layer_period attn_layer_offset expert_layer_period expert_layer_offset",
    inert="use_mamba_kernels use_mambapy use_associative_scan num_logits_to_keep",
    loader=Loader(
        untold=("moe_layers",),
        refused=(*OUT_BIAS, "blk.{i}.ssm_in.bias", "blk.{i}.ssm_out.bias"),
        needed=("blk.{i}.ssm_conv1d.bias if not n_head_kv",),
        wants={"d_inner == 2 * n_embd": "twice as many numbers in a scan as in a token's vector"},
    ),
)

ARCHITECTURES = (JAMBA,)
