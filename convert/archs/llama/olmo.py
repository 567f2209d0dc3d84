"""OLMo 1 and 2 (3), OLMoE: no norm weights, then norms after each block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import (
    COMMON,
    COMMON_BUT_EPSILON,
    EMBEDDINGS,
    EXPERTS,
    NORMS,
    attention,
    experts,
    gated_mlp,
)
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.loader import HEAD, MLP_BIASES, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims

_at = "{p}layers.{i}."

_head = EMBEDDINGS[2]

OLMO = Architecture(
    "olmo",
    (HfName("OlmoForCausalLM", "olmo"), HfName("OLMoForCausalLM", "hf_olmo")),
    keys=(
        *COMMON_BUT_EPSILON,
        *keys("""
            attention.layer_norm_epsilon    f32   -             1e-5
            attention.clamp_kqv             f32   clip_qkv
        """),
    ),
    rows=(EMBEDDINGS[0], _head, *attention(permuted=True), *gated_mlp()),
    decoder={"rope": "pairs", "weightless": ("attn_norm", "ffn_norm", "output_norm")},
    loader=Loader(refused=(*MLP_BIASES, *OUT_BIAS)),
)


def _olmo2_finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    window, kinds = config.get("sliding_window"), config.get("layer_types")
    if window is None:
        return
    if isinstance(kinds, list):
        pattern = [kind == "sliding_attention" for kind in kinds]
    else:
        pattern = [(i + 1) % 4 != 0 for i in range(min(dims["n_layer"], 1 << 16))]
    if not any(pattern):
        return
    own["attention.sliding_window"] = np.uint32(window)
    own["attention.sliding_window_pattern"] = np.asarray(pattern, np.bool_)


def _olmo2_rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    pattern = own.get("attention.sliding_window_pattern")
    if pattern is not None and dims["window"]:
        config.update(architectures=["Olmo3ForCausalLM"], model_type="olmo3", sliding_window=dims["window"])
        config["layer_types"] = ["sliding_attention" if on else "full_attention" for on in pattern]
        base = float(own["rope.freq_base"])
        whole = {"rope_type": "default", **config.pop("rope_scaling", {}), "rope_theta": base}
        near = {"rope_type": "default", "rope_theta": float(own.get("rope.freq_base_swa", base))}
        config["rope_parameters"] = {"full_attention": whole, "sliding_attention": near}


OLMO2 = Architecture(
    "olmo2",
    (HfName("Olmo2ForCausalLM", "olmo2"), HfName("Olmo3ForCausalLM", "olmo3")),
    keys=(*COMMON, *keys("rope.freq_base_swa  f32  rope_local_base_freq")),
    rows=(
        *EMBEDDINGS,
        *attention(),
        row("blk.{i}.attn_q_norm.weight", _at + "self_attn.q_norm.weight", "n_head * head_dim"),
        row("blk.{i}.attn_k_norm.weight", _at + "self_attn.k_norm.weight", "n_head_kv * head_dim"),
        row("blk.{i}.post_attention_norm.weight", _at + "post_attention_layernorm.weight", "n_embd"),
        row("blk.{i}.post_ffw_norm.weight", _at + "post_feedforward_layernorm.weight", "n_embd"),
        *gated_mlp(),
    ),
    finish=_olmo2_finish,
    rebuild=_olmo2_rebuild,
    decoder={"window_pattern": 4, "window_rope_scaled": False},
    reads="sliding_window layer_types",
    loader=Loader(unread=("rope.freq_base_swa",), refused=(*MLP_BIASES, *OUT_BIAS), needed=HEAD),
)


def _olmoe_finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    if config.get("norm_topk_prob"):
        own["expert_weights_norm"] = True


def _olmoe_rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["norm_topk_prob"] = bool(own.get("expert_weights_norm", False))


OLMOE = Architecture(
    "olmoe",
    (HfName("OlmoeForCausalLM", "olmoe"),),
    keys=(*COMMON, *EXPERTS, *keys("attention.clamp_kqv  f32  clip_qkv")),
    rows=(
        *EMBEDDINGS,
        *NORMS,
        *attention(),
        row("blk.{i}.attn_q_norm.weight", _at + "self_attn.q_norm.weight", "n_head * head_dim"),
        row("blk.{i}.attn_k_norm.weight", _at + "self_attn.k_norm.weight", "n_head_kv * head_dim"),
        *experts(),
    ),
    finish=_olmoe_finish,
    rebuild=_olmoe_rebuild,
    reads="norm_topk_prob",
    decoder={"clamp_normed": True},
    loader=Loader(
        unread=("expert_weights_norm", "attention.clamp_kqv"),
        refused=OUT_BIAS,
        needed=HEAD,
        wants={"n_head == n_head_kv": "as many heads of keys as of queries"},
    ),
)

ARCHITECTURES = (OLMO, OLMO2, OLMOE)
