"""MiniMax M2: experts scored by sigmoids, norms over all heads of the queries and keys together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import COMMON, EMBEDDINGS, EXPERTS, HEAD_DIM, NORMS, attention, choice_bias
from llmconv.convert.tables.architecture import Architecture, HfName, Key, keys, row
from llmconv.convert.tables.loader import CHOICE, HEAD, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims, Stack

_at = "{p}layers.{i}."

_experts = _at + "block_sparse_moe."


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    turning = config.get("rotary_dim") or round(config.get("partial_rotary_factor", 1.0) * dims["head_dim"])
    own["rope.dimension_count"] = np.uint32(turning)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["rotary_dim"] = dims["n_rot"]
    config["partial_rotary_factor"] = dims["n_rot"] / (dims["head_dim"] or 1)


MINIMAX_M2 = Architecture(
    "minimax-m2",
    (HfName("MiniMaxM2ForCausalLM", "minimax_m2"),),
    keys=(
        *(k for k in COMMON if k.gguf != "rope.freq_base"),
        *keys("rope.freq_base  f32  rope_theta  5000000"),
        *HEAD_DIM,
        *EXPERTS,
        Key("expert_feed_forward_length", ("intermediate_size",)),
        Key("expert_gating_func", ("scoring_func",), "u32", "sigmoid", {"softmax": 1, "sigmoid": 2}),
    ),
    rows=(
        *EMBEDDINGS,
        *NORMS,
        *(r for r in attention() if r.gguf[0].endswith(".weight")),
        row("blk.{i}.attn_q_norm.weight", _at + "self_attn.q_norm.weight", "n_head * head_dim"),
        row("blk.{i}.attn_k_norm.weight", _at + "self_attn.k_norm.weight", "n_head_kv * head_dim"),
        row("blk.{i}.ffn_gate_inp.weight", _experts + "gate.weight", "n_expert, n_embd"),
        choice_bias("block_sparse_moe.e_score_correction_bias"),
        row("blk.{i}.ffn_gate_exps.weight", _experts + "experts.{e}.w1.weight", "n_expert, n_ff, n_embd", Stack()),
        row("blk.{i}.ffn_down_exps.weight", _experts + "experts.{e}.w2.weight", "n_expert, n_embd, n_ff", Stack()),
        row("blk.{i}.ffn_up_exps.weight", _experts + "experts.{e}.w3.weight", "n_expert, n_ff, n_embd", Stack()),
    ),
    finish=_finish,
    rebuild=_rebuild,
    decoder={"gating": "sigmoid", "normalize_experts": True},
    reads="rotary_dim partial_rotary_factor",
    inert="num_experts attn_type_list mtp_transformer_layers num_mtp_modules use_mtp shared_moe_mode use_routing_bias",
    fixed={"use_qk_norm": True, "qk_norm_type": "per_layer", "shared_intermediate_size": 0},
    loader=Loader(refused=OUT_BIAS, needed=(*HEAD, *CHOICE)),
)

ARCHITECTURES = (MINIMAX_M2,)
