"""Spark 2.5: a gate on each head, windows that turn another part of a head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import COMMON, EMBEDDINGS, HEAD_DIM, NORMS, gated_mlp
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.loader import MLP_BIASES, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims
from llmconv.convert.tables.windows import PATTERN

_attn = "{p}layers.{i}.self_attn."


def turned_parts(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """How many dimensions turn, in the layers that see everything and in those with windows."""
    parameters = config.get("rope_parameters") or {}
    kinds = (("full_attention", "rope.dimension_count"), ("sliding_attention", "rope.dimension_count_swa"))
    for kind, key in kinds:
        if isinstance(of_kind := parameters.get(kind), Mapping):
            own[key] = np.uint32(int(dims["head_dim"] * float(of_kind.get("partial_rotary_factor") or 1)))


def turned_parts_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    """The way back of `turned_parts`, with both bases."""
    full = {**config.pop("rope_scaling", {"rope_type": "default"}), "rope_theta": config["rope_theta"]}
    windowed = {"rope_type": "default", "rope_theta": float(own.get("rope.freq_base_swa", config["rope_theta"]))}
    full["partial_rotary_factor"] = dims["n_rot"] / dims["head_dim"]
    windowed["partial_rotary_factor"] = int(own.get("rope.dimension_count_swa", dims["n_rot"])) / dims["head_dim"]
    config["rope_parameters"] = {"full_attention": full, "sliding_attention": windowed}


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    turned_parts(own, config, dims)
    own[PATTERN] = np.asarray([kind == "sliding_attention" for kind in config["layer_types"]], np.bool_)


SPARK = Architecture(
    "spark2_5",
    (HfName("Spark2_5ForCausalLM", "spark2_5"),),
    keys=(
        *COMMON,
        *HEAD_DIM,
        *keys("""
            vocab_size                        u32   vocab_size
            attention.sliding_window          u32   sliding_window
            rope.freq_base_swa                f32   rope_local_base_freq
        """),
    ),
    rows=(
        *EMBEDDINGS,
        *NORMS,
        row("blk.{i}.attn_qkv.weight", _attn + "q_k_v_proj.weight", "(n_head + 2 * n_head_kv) * head_dim, n_embd"),
        row("blk.{i}.attn_gate.weight", _attn + "g_proj.weight", "n_head, n_embd"),
        row("blk.{i}.attn_output.weight", _attn + "o_proj.weight", "n_embd, n_head * head_dim"),
        *gated_mlp(),
    ),
    finish=_finish,
    rebuild=turned_parts_back,
    decoder={"window_pattern": 0, "window_rope_scaled": False, "activation": "gelu_tanh", "activation_key": ""},
    reads="layer_types partial_rotary_factor",
    fixed={"gate_attn_act_mode": "sigmoid", "headwise_attn_output_gate": True, "hidden_act": "gelu"},
    loader=Loader(refused=(*MLP_BIASES, *OUT_BIAS)),
)

ARCHITECTURES = (SPARK,)
