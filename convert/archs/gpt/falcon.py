"""Falcon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import HEAD, linear, norm
from llmconv.convert.tables.architecture import Architecture, Form, HfName, Key, keys, row
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Concat, Dims, Split

_h = "{p}h.{i}."

_qkv = "(n_head + 2 * n_head_kv) * head_dim"


def _falcon_finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    grouped = config.get("new_decoder_architecture", False)
    heads = config.get("num_kv_heads") or config.get("n_head_kv") or dims["n_head"]
    if not grouped:
        heads = config.get("n_head_kv") or (1 if config.get("multi_query", True) else dims["n_head"])
    own["attention.head_count_kv"] = np.uint32(heads)
    if grouped and heads in (1, dims["n_head"]):  # which nothing else tells from the older form
        own["new_decoder_architecture"] = True
    if config.get("alibi"):
        own["attention.max_alibi_bias"] = np.float32(8.0)
    if not config.get("parallel_attn", True):
        own["use_parallel_residual"] = False


def _falcon_rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    heads = dims["n_head_kv"]
    grouped = bool(own.get("new_decoder_architecture", heads not in (1, dims["n_head"])))
    config["new_decoder_architecture"] = grouped
    config["multi_query"] = heads == 1
    config["num_kv_heads"] = heads
    config["alibi"] = bool(own.get("attention.max_alibi_bias", 0.0))
    config["parallel_attn"] = bool(own.get("use_parallel_residual", True))


# Each group of heads keeps its queries, its key and its value together; GGUF has all q, all k, all v.
_groups = (
    Split(("n_head // n_head_kv * head_dim", "head_dim", "head_dim"), "n_head_kv"),
    Concat(("n_head * head_dim", "n_head_kv * head_dim", "n_head_kv * head_dim")),
)


def _one_after_another(config: Mapping[str, Any]) -> bool:
    return not config.get("parallel_attn", True)


def _two_norms(config: Mapping[str, Any]) -> bool:
    norms = config.get("num_ln_in_parallel_attn") or (2 if config.get("new_decoder_architecture") else 1)
    return norms == 2 and not _one_after_another(config)


FALCON = Architecture(
    "falcon",
    (HfName("FalconForCausalLM", "falcon"), HfName("RWForCausalLM", "RefinedWebModel")),
    keys=(
        Key("context_length", ("max_position_embeddings",), "u32", 2048),
        *keys("""
            block_count                     u32   num_hidden_layers|n_layer
            embedding_length                u32   hidden_size
            feed_forward_length             u32   ffn_hidden_size           = 4 * n_embd
            attention.head_count            u32   num_attention_heads|n_head
            attention.layer_norm_epsilon    f32   layer_norm_epsilon        1e-5
            rope.freq_base                  f32   rope_theta                10000
        """),
    ),
    rows=(
        row("token_embd.weight", "{p}word_embeddings.weight", "n_vocab, n_embd"),
        *norm("output_norm", "{p}ln_f"),
        HEAD,
        row(
            ("blk.{i}.attn_norm.weight", "blk.{i}.attn_norm.bias"),
            (_h + "input_layernorm.weight", _h + "input_layernorm.bias"),
            ("n_embd", "n_embd"),
            alt=(Form((_h + "ln_mlp.weight", _h + "ln_mlp.bias"), beside="blk.{i}.attn_norm_2.weight"),),
        ),
        *norm("blk.{i}.attn_norm_2", _h + "ln_attn", optional=_two_norms),
        *linear("blk.{i}.attn_qkv", _h + "self_attention.query_key_value", _qkv, "n_embd", *_groups, bias="bias"),
        *linear("blk.{i}.attn_output", _h + "self_attention.dense", "n_embd", "n_embd", bias="bias"),
        *norm("blk.{i}.ffn_norm", _h + "post_attention_layernorm", optional=_one_after_another),
        *linear("blk.{i}.ffn_up", _h + "mlp.dense_h_to_4h", "n_ff", "n_embd", bias="bias"),
        *linear("blk.{i}.ffn_down", _h + "mlp.dense_4h_to_h", "n_embd", "n_ff", bias="bias"),
    ),
    prefixes=("transformer.", ""),
    tied=True,
    constants={"tensor_data_layout": "jploski"},
    finish=_falcon_finish,
    rebuild=_falcon_rebuild,
    decoder={"parallel": True, "activation": "gelu", "activation_key": "activation", "alibi_quirk": True},
    reads="new_decoder_architecture num_kv_heads n_head_kv multi_query alibi parallel_attn num_ln_in_parallel_attn",
    inert="apply_residual_connection_post_layernorm n_embed",
    loader=Loader(
        unread=("attention.max_alibi_bias", "use_parallel_residual"),
        refused=(
            "blk.{i}.ffn_norm.weight",
            "blk.{i}.ffn_norm.bias",
            *(f"blk.{{i}}.{n}.bias" for n in ("attn_qkv", "attn_output", "ffn_up", "ffn_down")),
        ),
    ),
)

ARCHITECTURES = (FALCON,)
