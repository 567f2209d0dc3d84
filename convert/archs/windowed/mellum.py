"""Mellum 2: Qwen 3's experts behind attention with windows of its own rotary base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import (
    COMMON,
    EMBEDDINGS,
    EXPERTS,
    HEAD_DIM,
    NORMS,
    QK_NORMS,
    attention,
    experts,
)
from llmconv.convert.tables.architecture import Architecture, HfName, keys
from llmconv.convert.tables.loader import HEAD, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims
from llmconv.errors import Unsupported


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    kinds = config.get("mlp_layer_types")
    if isinstance(kinds, list) and set(kinds) - {"sparse"}:
        raise Unsupported("config.json: mlp_layer_types has other than 'sparse', of which no Mellum is known")
    if not config.get("norm_topk_prob", True):
        own["expert_weights_norm"] = False
    if config.get("use_sliding_window") is False or not own.get("attention.sliding_window"):
        own.pop("attention.sliding_window", None)
        return
    kinds = config.get("layer_types")
    windowed = [kind == "sliding_attention" for kind in kinds] if isinstance(kinds, list) else [False] * dims["n_layer"]
    own["attention.sliding_window_pattern"] = np.asarray(windowed, np.bool_)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["norm_topk_prob"] = bool(own.get("expert_weights_norm", True))
    full = {**config.pop("rope_scaling", {"rope_type": "default"}), "rope_theta": config["rope_theta"]}
    windowed = {"rope_type": "default", "rope_theta": float(own.get("rope.freq_base_swa", config["rope_theta"]))}
    config["rope_parameters"] = {"full_attention": full, "sliding_attention": windowed}


MELLUM = Architecture(
    "mellum",
    (HfName("MellumForCausalLM", "mellum"),),
    keys=(
        *COMMON,
        *HEAD_DIM,
        *EXPERTS,
        *keys("""
            expert_feed_forward_length        u32   moe_intermediate_size
            attention.sliding_window          u32   sliding_window
            rope.freq_base_swa                f32   rope_local_base_freq
        """),
    ),
    rows=(*EMBEDDINGS, *NORMS, *attention(), *QK_NORMS, *experts(where="1")),
    finish=_finish,
    rebuild=_rebuild,
    decoder={"window_pattern": 4, "window_rope_scaled": False, "normalize_experts": True},
    reads="layer_types mlp_layer_types norm_topk_prob use_sliding_window",
    inert="num_nextn_predict_layers num_mtp_layers mtp_layer_types mtp_mlp_layer_types intermediate_size",
    loader=Loader(
        unread=("expert_weights_norm", "rope.freq_base_swa"), refused=OUT_BIAS, needed=HEAD, always_windows=True
    ),
)

ARCHITECTURES = (MELLUM,)
