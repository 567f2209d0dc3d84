"""Jais 1: GPT-2 with ALiBi and a gated MLP; embeddings and head are multiplied by numbers of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import GPT_KEYS, linear, norm
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.ops import Dims, Transpose
from llmconv.convert.tables.times import Times

_at = "{p}h.{i}."


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    if (alpha := config.get("mup_output_alpha")) is not None:
        own["scaled_by.lm_head"] = np.float32(alpha * config["mup_width_scale"])
    by_size = config.get("mup_scale_qk_dot_by_d", config.get("scale_qk_dot_by_d", True))
    if not by_size:
        own["attention.scale"] = np.float32(dims["head_dim"] ** -0.5)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["scale_qk_dot_by_d"] = "attention.scale" not in own
    config.setdefault("embeddings_scale", 1.0)
    config.setdefault("width_scale", 1.0)
    config.update(activation_function="swiglu", position_embedding_type="alibi")


JAIS = Architecture(
    "jais",
    (HfName("JAISLMHeadModel", "jais"),),
    keys=(
        *GPT_KEYS,
        *keys("""
            scaled_by.embedding   f32   embeddings_scale|mup_embeddings_scale
            scaled_by.lm_head     f32   width_scale
        """),
    ),
    rows=(
        row("token_embd.weight", "{p}wte.weight", "n_vocab, n_embd", Times(("embedding",))),
        *norm("output_norm", "{p}ln_f"),
        row("output.weight", "lm_head.weight", "n_vocab, n_embd", Times(("lm_head",)), optional="!tie_word_embeddings"),
        *norm("blk.{i}.attn_norm", _at + "ln_1"),
        *linear("blk.{i}.attn_qkv", _at + "attn.c_attn", "3 * n_embd", "n_embd", Transpose()),
        *linear("blk.{i}.attn_output", _at + "attn.c_proj", "n_embd", "n_embd", Transpose()),
        *norm("blk.{i}.ffn_norm", _at + "ln_2"),
        *linear("blk.{i}.ffn_up", _at + "mlp.c_fc", "n_ff", "n_embd", Transpose()),
        *linear("blk.{i}.ffn_gate", _at + "mlp.c_fc2", "n_ff", "n_embd", Transpose()),
        *linear("blk.{i}.ffn_down", _at + "mlp.c_proj", "n_embd", "n_ff", Transpose()),
    ),
    prefixes=("transformer.", ""),
    constants={"attention.max_alibi_bias": np.float32(8)},
    dropped=(r".*\.attn\.(masked_)?bias",),
    kept=(r".*relative_pe\.slopes",),
    finish=_finish,
    rebuild=_rebuild,
    decoder={"positions": "alibi", "activation_key": "", "conv1d": True, "scale_power": 1.0},
    reads="mup_output_alpha mup_width_scale mup_scale_qk_dot_by_d scale_qk_dot_by_d",
    inert="reorder_and_upcast_attn alibi_scaling mup_width_scale",
    fixed={
        "activation_function": "swiglu",
        "position_embedding_type": "alibi",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
    },
)

ARCHITECTURES = (JAIS,)
