"""AFMoE (Trinity): a gate on what attention gives, norms on both sides of the sublayers, sigmoid scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import (
    COMMON,
    EMBEDDINGS,
    HEAD_DIM,
    QK_NORMS,
    attention,
    choice_bias,
    experts,
    gated_mlp,
    shared_experts,
    sigmoid_experts,
)
from llmconv.convert.tables.architecture import Architecture, HfName, Key, keys, row
from llmconv.convert.tables.loader import MLP_BIASES, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims

_at = "{p}layers.{i}."


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["expert_weights_norm"] = bool(config.get("route_norm", True))
    if not config.get("mup_enabled", False):  # its readers scale the embeddings, whatever a file says
        own["embedding_scale"] = np.float32(1)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["mup_enabled"] = "embedding_scale" not in own


AFMOE = Architecture(
    "afmoe",
    (HfName("AfmoeForCausalLM", "afmoe"),),
    keys=(
        *COMMON,
        *HEAD_DIM,
        *(
            k
            for k in sigmoid_experts(count="num_experts", shared="num_shared_experts", scale="route_scale")
            if k.gguf not in ("expert_weights_norm", "expert_gating_func")
        ),
        Key("expert_gating_func", ("score_func",), "u32", None, {"softmax": 1, "sigmoid": 2}),
        *keys("""
            vocab_size                        u32   vocab_size
            rope.dimension_count              u32   head_dim            = n_embd // n_head
            leading_dense_block_count         u32   num_dense_layers
            attention.sliding_window          u32   sliding_window
        """),
    ),
    rows=(
        *EMBEDDINGS,
        row("blk.{i}.attn_norm.weight", _at + "input_layernorm.weight", "n_embd"),
        *attention(),
        *QK_NORMS,
        row("blk.{i}.attn_gate.weight", _at + "self_attn.gate_proj.weight", "n_head * head_dim, n_embd"),
        row("blk.{i}.post_attention_norm.weight", _at + "post_attention_layernorm.weight", "n_embd"),
        row("blk.{i}.ffn_norm.weight", _at + "pre_mlp_layernorm.weight", "n_embd"),
        row("blk.{i}.post_ffw_norm.weight", _at + "post_mlp_layernorm.weight", "n_embd"),
        *gated_mlp(when="i < n_dense"),
        row("blk.{i}.ffn_gate_inp.weight", _at + "mlp.router.gate.weight", "n_expert, n_embd", when="i >= n_dense"),
        *experts()[1:],
        replace(choice_bias("mlp.expert_bias"), optional=False),
        *shared_experts(),
    ),
    finish=_finish,
    rebuild=_rebuild,
    decoder={
        "gating": "sigmoid",
        "window_pattern": 4,
        "rope_layers": "windowed",
        "embed_scale": "sqrt",
    },
    reads="mup_enabled route_norm layer_types global_attn_every_n_layers",
    inert="num_local_experts load_balance_coeff num_expert_groups num_limited_groups use_grouped_mm",
    loader=Loader(
        unread=("embedding_scale", "attention.sliding_window_pattern"),
        refused=(*MLP_BIASES, *OUT_BIAS),
        pieces={"no_rope_every": 4, "rope_layers": ""},
    ),
)

ARCHITECTURES = (AFMOE,)
