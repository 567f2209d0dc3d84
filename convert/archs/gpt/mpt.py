"""MPT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import HEAD, linear
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.config import look_up
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Dims

_b = "{p}blocks.{i}."

_qkv = "(n_head + 2 * n_head_kv) * head_dim"


def _mpt_finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    attention = config.get("attn_config") or {}
    alibi = attention.get("alibi", True)
    own["attention.max_alibi_bias"] = np.float32(attention.get("alibi_bias_max", 8) if alibi else 0.0)
    own["feed_forward_length"] = np.uint32(int(config.get("expansion_ratio", 4) * dims["n_embd"]))


def _mpt_rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    attention = config.setdefault("attn_config", {})
    attention["alibi"] = bool(own.get("attention.max_alibi_bias", 0.0))
    config["expansion_ratio"] = dims["n_ff"] // dims["n_embd"] if dims["n_embd"] else 4


def _disputed(config: Mapping[str, Any]) -> list[str]:
    exponent = look_up(config, ("attn_config.alibi_bias_max",))
    if _learned(config):
        return ["attn_config.alibi"]
    return ["attn_config.alibi_bias_max"] if exponent not in (None, 8) else []


def _learned(config: Mapping[str, Any]) -> bool:
    return look_up(config, ("attn_config.alibi",)) is False


def _qk_norms(config: Mapping[str, Any]) -> bool:
    return bool(look_up(config, ("attn_config.qk_ln",)))


MPT = Architecture(
    "mpt",
    (HfName("MptForCausalLM", "mpt"), HfName("MPTForCausalLM", "mpt")),
    keys=(
        *keys("""
            block_count                 u32   n_layers
            context_length              u32   max_seq_len
            embedding_length            u32   d_model
            attention.head_count        u32   n_heads
            attention.head_count_kv     u32   attn_config.kv_n_heads
            attention.layer_norm_epsilon  f32  layer_norm_epsilon  1e-5
            attention.scale             f32   attn_config.softmax_scale
            attention.clamp_kqv         f32   attn_config.clip_qkv
            feed_forward_length         u32   -                         = 4 * n_embd
        """),
    ),
    rows=(
        row("token_embd.weight", "{p}wte.weight", "n_vocab, n_embd"),
        row("position_embd.weight", "{p}wpe.weight", "n_ctx, n_embd", optional=_learned),
        row("output_norm.weight", "{p}norm_f.weight", "n_embd"),
        row("output_norm.bias", "{p}norm_f.bias", "n_embd", optional="!no_bias"),
        HEAD,
        row("blk.{i}.attn_norm.weight", _b + "norm_1.weight", "n_embd"),
        row("blk.{i}.attn_norm.bias", _b + "norm_1.bias", "n_embd", optional="!no_bias"),
        row("blk.{i}.attn_q_norm.weight", _b + "attn.q_ln.weight", "n_embd", optional=_qk_norms),
        row("blk.{i}.attn_q_norm.bias", _b + "attn.q_ln.bias", "n_embd", optional=_qk_norms),
        row("blk.{i}.attn_k_norm.weight", _b + "attn.k_ln.weight", "n_head_kv * head_dim", optional=_qk_norms),
        row("blk.{i}.attn_k_norm.bias", _b + "attn.k_ln.bias", "n_head_kv * head_dim", optional=_qk_norms),
        *linear("blk.{i}.attn_qkv", _b + "attn.Wqkv", _qkv, "n_embd", bias="!no_bias"),
        *linear("blk.{i}.attn_output", _b + "attn.out_proj", "n_embd", "n_embd", bias="!no_bias"),
        row("blk.{i}.ffn_norm.weight", _b + "norm_2.weight", "n_embd"),
        row("blk.{i}.ffn_norm.bias", _b + "norm_2.bias", "n_embd", optional="!no_bias"),
        *linear("blk.{i}.ffn_up", _b + "ffn.up_proj", "n_ff", "n_embd", bias="!no_bias"),
        row("blk.{i}.ffn.act.scales", _b + "ffn.act.scales", "n_ff", optional=True),
        *linear("blk.{i}.ffn_down", _b + "ffn.down_proj", "n_embd", "n_ff", bias="!no_bias"),
    ),
    prefixes=("transformer.", ""),
    dropped=(),
    tied=True,
    finish=_mpt_finish,
    rebuild=_mpt_rebuild,
    decoder={"positions": "alibi", "alibi_bias": 0.0, "activation": "gelu", "activation_key": ""},
    reads="expansion_ratio attn_config.alibi attn_config.alibi_bias_max",
    inert="learned_pos_emb verbose fc_type param_init_fn init_config attn_config.attn_impl"
    " attn_config.attn_uses_sequence_id attn_config.qk_ln attn_config.rope_theta attn_config.rope_impl",
    fixed={
        "logit_scale": None,
        "embedding_fraction": 1.0,
        "norm_type": ("low_precision_layernorm", "layernorm"),
        "attn_config.attn_type": ("multihead_attention", "multiquery_attention", "grouped_query_attention"),
        "attn_config.prefix_lm": False,
        "attn_config.rope": False,
        "attn_config.sliding_window_size": -1,
    },
    disputed=_disputed,
    loader=Loader(unread=("attention.scale",)),
)

ARCHITECTURES = (MPT,)
