"""DBRX: LayerNorms without biases, queries, keys and values clipped, all experts of a layer in one matrix each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.loader import HEAD, Loader
from llmconv.convert.tables.ops import Dims, Reshape, Transpose
from llmconv.errors import BadFile

_block = "{p}blocks.{i}."

_attn = _block + "norm_attn_norm."

_experts = _block + "ffn.experts.mlp."

_q, _kv = "n_head * head_dim", "n_head_kv * head_dim"

_stacked = Reshape(("n_expert * n_ff", "n_embd"), ("n_expert", "n_ff", "n_embd"))


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    ffn = config.get("ffn_config")
    power = ffn.get("moe_normalize_expert_weights", 1) if isinstance(ffn, Mapping) else 1
    if power is None:
        own["expert_weights_norm"] = False
    elif power != 1:
        raise BadFile(f"config.json: ffn_config.moe_normalize_expert_weights is {power!r:.40}, expected 1 or null")
    if own.get("attention.clamp_kqv") is None:
        own["attention.clamp_kqv"] = np.float32(0)  # without the key llama.cpp does not load a file


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config.setdefault("ffn_config", {})["hidden_size"] = dims["n_embd"]
    if own.get("expert_weights_norm") is False:
        config["ffn_config"]["moe_normalize_expert_weights"] = None
    if not own.get("attention.clamp_kqv"):
        config.setdefault("attn_config", {})["clip_qkv"] = None
    config.setdefault("attn_config", {})["rope_theta"] = config["rope_theta"]


DBRX = Architecture(
    "dbrx",
    (HfName("DbrxForCausalLM", "dbrx"),),
    keys=keys("""
        block_count                     u32   n_layers
        context_length                  u32   max_seq_len
        embedding_length                u32   d_model
        feed_forward_length             u32   ffn_config.ffn_hidden_size
        attention.head_count            u32   n_heads
        attention.head_count_kv         u32   attn_config.kv_n_heads      1
        rope.freq_base                  f32   rope_theta|attn_config.rope_theta   10000
        attention.clamp_kqv             f32   attn_config.clip_qkv
        expert_count                    u32   ffn_config.moe_num_experts
        expert_used_count               u32   ffn_config.moe_top_k
        attention.layer_norm_epsilon    f32   -                           1e-5
    """),
    rows=(
        row("token_embd.weight", "{p}wte.weight", "n_vocab, n_embd"),
        row("output_norm.weight", "{p}norm_f.weight", "n_embd"),
        row("output.weight", "lm_head.weight", "n_vocab, n_embd", optional="!tie_word_embeddings"),
        row("blk.{i}.attn_norm.weight", _attn + "norm_1.weight", "n_embd"),
        row("blk.{i}.attn_qkv.weight", _attn + "attn.Wqkv.weight", f"{_q} + 2 * {_kv}, n_embd"),
        row("blk.{i}.attn_output.weight", _attn + "attn.out_proj.weight", f"n_embd, {_q}"),
        row("blk.{i}.attn_output_norm.weight", _attn + "norm_2.weight", "n_embd"),
        row("blk.{i}.ffn_gate_inp.weight", _block + "ffn.router.layer.weight", "n_expert, n_embd"),
        row("blk.{i}.ffn_gate_exps.weight", _experts + "w1", "n_expert, n_ff, n_embd", _stacked),
        row("blk.{i}.ffn_down_exps.weight", _experts + "w2", "n_expert, n_embd, n_ff", _stacked, Transpose()),
        row("blk.{i}.ffn_up_exps.weight", _experts + "v1", "n_expert, n_ff, n_embd", _stacked),
    ),
    prefixes=("transformer.", ""),
    finish=_finish,
    rebuild=_rebuild,
    loader=Loader(needed=HEAD),
    decoder={"mlp_norm": "attn_output_norm", "normalize_experts": True, "activation_key": ""},
    reads="ffn_config.moe_normalize_expert_weights",
    inert="ffn_config.hidden_size ffn_config.moe_jitter_eps ffn_config.moe_loss_weight attn_config.attn_pdrop"
    " ffn_config.model_type attn_config.model_type num_key_value_heads",
    fixed={"ffn_config.ffn_act_fn": {"name": "silu"}},
)

ARCHITECTURES = (DBRX,)
