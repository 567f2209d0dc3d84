"""OpenELM: as many heads and as wide a feed-forward as each layer's place asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.loader import HEAD, Loader
from llmconv.convert.tables.ops import Dims, Split

_at = "{p}layers.{i}."


def _divisible(width: float, divisor: int) -> int:
    """The nearest multiple, but no less than nine tenths."""
    near = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return near + divisor if near < 0.9 * width else near


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    widths = [_divisible(times * dims["n_embd"], int(config["ffn_dim_divisor"])) for times in config["ffn_multipliers"]]
    own["feed_forward_length"] = np.asarray(widths, np.int32)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    widths = np.broadcast_to(np.asarray(own["feed_forward_length"]), (dims["n_layer"],))
    config["ffn_multipliers"] = [int(width) / dims["n_embd"] for width in widths]
    config["ffn_dim_divisor"] = int(np.gcd.reduce(widths.astype(np.int64))) if widths.size else 1
    for name in ("num_query_heads", "num_kv_heads"):
        if not isinstance(config[name], list):
            config[name] = [config[name]] * dims["n_layer"]


OPENELM = Architecture(
    "openelm",
    (HfName("OpenELMForCausalLM", "openelm"),),
    keys=keys("""
        block_count                       u32   num_transformer_layers
        context_length                    u32   max_context_length
        embedding_length                  u32   model_dim
        attention.head_count              i32s  num_query_heads
        attention.head_count_kv           i32s  num_kv_heads
        rope.freq_base                    f32   rope_freq_constant    10000
        attention.layer_norm_rms_epsilon  f32   -                     1e-6
        rope.dimension_count              u32   head_dim
        attention.key_length              u32   head_dim
        attention.value_length            u32   head_dim
    """),
    rows=(
        row("token_embd.weight", "{p}token_embeddings.weight", "n_vocab, n_embd"),
        row("output_norm.weight", "{p}norm.weight", "n_embd"),
        row("output.weight", "lm_head.weight", "n_vocab, n_embd", optional="!share_input_output_layers=true"),
        row("blk.{i}.attn_norm.weight", _at + "attn_norm.weight", "n_embd"),
        row("blk.{i}.attn_qkv.weight", _at + "attn.qkv_proj.weight", "(n_head + 2 * n_head_kv) * head_dim, n_embd"),
        row("blk.{i}.attn_q_norm.weight", _at + "attn.q_norm.weight", "head_dim"),
        row("blk.{i}.attn_k_norm.weight", _at + "attn.k_norm.weight", "head_dim"),
        row("blk.{i}.attn_output.weight", _at + "attn.out_proj.weight", "n_embd, n_head * head_dim"),
        row("blk.{i}.ffn_norm.weight", _at + "ffn_norm.weight", "n_embd"),
        row(
            ("blk.{i}.ffn_gate.weight", "blk.{i}.ffn_up.weight"),
            _at + "ffn.proj_1.weight",
            ("n_ff, n_embd", "n_ff, n_embd"),
            Split(("n_ff", "n_ff")),
        ),
        row("blk.{i}.ffn_down.weight", _at + "ffn.proj_2.weight", "n_embd, n_ff"),
    ),
    prefixes=("transformer.", ""),
    tied=True,
    finish=_finish,
    rebuild=_rebuild,
    decoder={"activation_key": "activation_fn_name"},
    loader=Loader(refused=HEAD),
    reads="ffn_multipliers ffn_dim_divisor share_input_output_layers",
    inert="num_gqa_groups qkv_multipliers rope_max_length",
    fixed={"ffn_with_glu": True, "normalization_layer_name": "rms_norm", "normalize_qk_projections": True},
)

ARCHITECTURES = (OPENELM,)
