"""Falcon-H1: attention and a Mamba 2 side by side in every layer; its multipliers are in a GGUF's weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import COMMON, HEAD_DIM
from llmconv.convert.archs.recurrent.parts import NO_LIMIT, dual_scan
from llmconv.convert.tables.architecture import Architecture, HfName, Row, keys, row
from llmconv.convert.tables.loader import OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims
from llmconv.convert.tables.times import Times

_at = "{p}layers.{i}."

_attn, _mamba, _ff = _at + "self_attn.", _at + "mamba.", _at + "feed_forward."

_NUMBERS = ("attention_in", "attention_out", "key", "ssm_in", "ssm_out", "embedding", "lm_head")


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    inner = config.get("mamba_d_ssm")
    inner = config.get("mamba_expand", 2) * dims["n_embd"] if inner is None else inner
    own["ssm.inner_size"] = np.uint32(inner)
    if config.get("mamba_rms_norm") and config.get("mamba_norm_before_gate", True):
        own["ssm.norm_before_gate"] = True
    if config.get("tie_word_embeddings"):  # the head is the embedding, which has another factor
        own["logit_scale"] = np.float32(config.get("lm_head_multiplier", 1.0) / config.get("embedding_multiplier", 1.0))


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["mamba_d_ssm"] = dims["d_inner"]
    config["mamba_d_head"] = dims["d_inner"] // dims["dt_rank"]
    config["mamba_norm_before_gate"] = bool(own.get("ssm.norm_before_gate", False))
    if scale := own.get("logit_scale"):
        config["lm_head_multiplier"] = float(scale) * config.get("embedding_multiplier", 1.0)


def _scan() -> tuple[Row, ...]:
    """The scan's rows, its projections multiplied; its norm is there where the configuration says so."""
    shared = "n_group * d_state"
    parts = ("d_inner", "d_inner", shared, shared, "dt_rank")
    runs = tuple((size, f"ssm.{i}") for i, size in enumerate(parts))
    scaled = {
        "blk.{i}.ssm_in.weight": Times(("ssm_in",), runs),
        "blk.{i}.ssm_in.bias": Times((), runs),
        "blk.{i}.ssm_out.weight": Times(("ssm_out",)),
        "blk.{i}.ssm_out.bias": Times(("ssm_out",)),
    }
    out = []
    for each in dual_scan(_mamba, "", "mamba_proj_bias", "mamba_conv_bias=true"):
        if (op := scaled.get(each.gguf[0])) is not None:
            each = dataclasses.replace(each, forms=tuple(dataclasses.replace(f, ops=(op,)) for f in each.forms))
        flags = {"blk.{i}.ssm_norm.weight": "mamba_rms_norm", "blk.{i}.ssm_out.bias": "projectors_bias"}
        each = dataclasses.replace(each, optional=flags.get(each.gguf[0], each.optional))
        out.append(each)
    return tuple(out)


FALCON_H1 = Architecture(
    "falcon-h1",
    (HfName("FalconH1ForCausalLM", "falcon_h1"),),
    keys=(
        *(key for key in COMMON if not key.gguf.endswith("epsilon")),
        *HEAD_DIM,
        *keys("""
            attention.layer_norm_rms_epsilon  f32   rms_norm_eps                1e-5
            vocab_size                        u32   vocab_size
            ssm.conv_kernel                   u32   mamba_d_conv                4
            ssm.state_size                    u32   mamba_d_state               256
            ssm.group_count                   u32   mamba_n_groups              1
            ssm.time_step_rank                u32   mamba_n_heads               128
            scaled_by.mlp                     f32s  mlp_multipliers
            scaled_by.ssm                     f32s  ssm_multipliers
        """),
        *keys("\n".join(f"scaled_by.{name} f32 {name}_multiplier" for name in _NUMBERS)),
    ),
    rows=(
        row("token_embd.weight", "{p}embed_tokens.weight", "n_vocab, n_embd", Times(("embedding",))),
        row("output_norm.weight", "{p}final_layernorm.weight", "n_embd"),
        row(
            "output.weight",
            "lm_head.weight",
            "n_vocab, n_embd",
            Times(("lm_head",)),
            optional="!tie_word_embeddings",
        ),
        row("blk.{i}.attn_norm.weight", _at + "input_layernorm.weight", "n_embd"),
        row("blk.{i}.ffn_norm", _at + "pre_ff_layernorm.weight", "n_embd"),
        row("blk.{i}.attn_q.weight", _attn + "q_proj.weight", "n_head * head_dim, n_embd", Times(("attention_in",))),
        row(
            "blk.{i}.attn_k.weight",
            _attn + "k_proj.weight",
            "n_head_kv * head_dim, n_embd",
            Times(("key", "attention_in")),
        ),
        row(
            "blk.{i}.attn_v.weight", _attn + "v_proj.weight", "n_head_kv * head_dim_v, n_embd", Times(("attention_in",))
        ),
        row(
            "blk.{i}.attn_output.weight",
            _attn + "o_proj.weight",
            "n_embd, n_head * head_dim_v",
            Times(("attention_out",)),
        ),
        row("blk.{i}.attn_q.bias", _attn + "q_proj.bias", "n_head * head_dim", optional="attention_bias"),
        row(
            "blk.{i}.attn_k.bias",
            _attn + "k_proj.bias",
            "n_head_kv * head_dim",
            Times(("key",)),
            optional="attention_bias",
        ),
        row("blk.{i}.attn_v.bias", _attn + "v_proj.bias", "n_head_kv * head_dim_v", optional="attention_bias"),
        row(
            "blk.{i}.attn_output.bias",
            _attn + "o_proj.bias",
            "n_embd",
            Times(("attention_out",)),
            optional="attention_bias",
        ),
        *_scan(),
        row("blk.{i}.ffn_gate.weight", _ff + "gate_proj.weight", "n_ff, n_embd", Times(("mlp.0",))),
        row("blk.{i}.ffn_up.weight", _ff + "up_proj.weight", "n_ff, n_embd"),
        row("blk.{i}.ffn_down.weight", _ff + "down_proj.weight", "n_embd, n_ff", Times(("mlp.1",))),
        row("blk.{i}.ffn_gate.bias", _ff + "gate_proj.bias", "n_ff", Times(("mlp.0",)), optional="mlp_bias"),
        row("blk.{i}.ffn_up.bias", _ff + "up_proj.bias", "n_ff", optional="mlp_bias"),
        row("blk.{i}.ffn_down.bias", _ff + "down_proj.bias", "n_embd", Times(("mlp.1",)), optional="mlp_bias"),
    ),
    finish=_finish,
    rebuild=_rebuild,
    reads="mamba_d_ssm mamba_expand mamba_rms_norm mamba_d_head mamba_norm_before_gate",
    inert="mamba_chunk_size num_logits_to_keep mamba_use_mlp layer_types layers_block_type mamba_intermediate_size",
    fixed={"time_step_limit": NO_LIMIT},
    loader=Loader(
        unread=("logit_scale", "ssm.norm_before_gate"),
        refused=("blk.{i}.ssm_in.bias", "blk.{i}.ssm_out.bias"),
        ignored=OUT_BIAS,
        needed=("blk.{i}.ssm_conv1d.bias",),
    ),
)

ARCHITECTURES = (FALCON_H1,)
