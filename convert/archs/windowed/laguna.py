"""Laguna: heads by layer, a gate on what attention gives, windows that turn less, DeepSeek V3's experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import (
    COMMON,
    EMBEDDINGS,
    HEAD_DIM,
    NORMS,
    QK_NORMS,
    attention,
    experts,
    gated_mlp,
    shared_experts,
)
from llmconv.convert.archs.windowed.spark import turned_parts, turned_parts_back
from llmconv.convert.tables.architecture import Architecture, Form, HfName, keys, row
from llmconv.convert.tables.loader import OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims
from llmconv.errors import BadFile, Unsupported

_at = "{p}layers.{i}."

_PER_HEAD = (True, None, "per-head", "per_head")


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    n_layer = min(dims["n_layer"], 1 << 16)
    heads = config.get("num_attention_heads_per_layer") or [dims["n_head"]] * n_layer
    if len(heads) != n_layer:
        raise BadFile(f"config.json: num_attention_heads_per_layer has {len(heads)} entries for {n_layer} layers")
    own["attention.head_count"] = np.asarray(heads, np.int32)
    kinds = config.get("mlp_layer_types") or ["dense", *["sparse"] * (n_layer - 1)]
    dense = next((i for i, kind in enumerate(kinds) if kind != "dense"), len(kinds))
    if "dense" in kinds[dense:]:
        raise Unsupported("config.json: mlp_layer_types has dense layers behind sparse ones, which no GGUF can say")
    own["leading_dense_block_count"] = np.uint32(dense)
    own["rope.dimension_count"] = np.uint32(dims["head_dim"])
    turned_parts(own, config, dims)
    kinds = config.get("layer_types") or ["full_attention"] * n_layer
    own["attention.sliding_window_pattern"] = np.asarray([k == "sliding_attention" for k in kinds], np.bool_)
    if (cap := config.get("moe_router_logit_softcapping")) is not None and cap > 0:
        own["router_logit_softcapping"] = np.float32(cap)
    own["expert_weights_norm"] = True
    if config.get("gating") not in _PER_HEAD:
        own["attention.gate_per_number"] = True


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    heads = np.broadcast_to(np.asarray(own["attention.head_count"]), (dims["n_layer"],))
    config["num_attention_heads"] = max((int(n) for n in heads), default=0)
    config["num_attention_heads_per_layer"] = [int(n) for n in heads]
    config["mlp_layer_types"] = ["dense" if i < dims["n_dense"] else "sparse" for i in range(dims["n_layer"])]
    turned_parts_back(config, own, dims)
    config["moe_router_logit_softcapping"] = float(own.get("router_logit_softcapping", 0))
    config["gating"] = "per-element" if own.get("attention.gate_per_number") else True


LAGUNA = Architecture(
    "laguna",
    (HfName("LagunaForCausalLM", "laguna"),),
    keys=(
        *COMMON,
        *HEAD_DIM,
        *keys("""
            vocab_size                          u32   vocab_size
            expert_count                        u32   num_experts
            expert_used_count                   u32   num_experts_per_tok
            attention.sliding_window            u32   sliding_window
            expert_feed_forward_length          u32   moe_intermediate_size
            expert_shared_feed_forward_length   u32   shared_expert_intermediate_size
            expert_weights_scale                f32   moe_routed_scaling_factor     1
            rope.freq_base_swa                  f32   rope_local_base_freq
        """),
    ),
    rows=(
        *EMBEDDINGS,
        *NORMS,
        *attention(),
        *QK_NORMS,
        row(
            "blk.{i}.attn_gate.weight",
            _at + "self_attn.g_proj.weight",
            "n_head * (1 + each_gate * (head_dim - 1)), n_embd",
        ),
        *gated_mlp(when="i < n_dense"),
        *experts(),
        row(
            "blk.{i}.exp_probs_b.bias",
            _at + "mlp.experts.e_score_correction_bias",
            "n_expert",
            when="i >= n_dense",
            alt=(Form((_at + "mlp.gate.e_score_correction_bias",)),),
        ),
        *(
            row(r.gguf[0], r.forms[0].patterns[0], r.shapes[0], when=r.when, alt=(Form((other,)),))
            for r in shared_experts("mlp.shared_expert.")
            for other in (r.forms[0].patterns[0].replace("shared_expert.", "shared_experts."),)
        ),
    ),
    constants={"expert_gating_func": np.uint32(2)},
    finish=_finish,
    rebuild=_rebuild,
    decoder={
        "window_pattern": 4,
        "window_first": True,
        "window_rope_scaled": False,
        "gating": "sigmoid",
        "attention_gate": "softplus",
        "router_capped": True,
    },
    reads="layer_types mlp_layer_types num_attention_heads_per_layer gating moe_router_logit_softcapping"
    " partial_rotary_factor",
    inert="gating_types intermediate_size",
    fixed={"moe_apply_router_weight_on_input": False},
    loader=Loader(unread=("router_logit_softcapping",), refused=OUT_BIAS, always_windows=True),
)

ARCHITECTURES = (LAGUNA,)
