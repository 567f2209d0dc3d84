"""dots.llm1: Qwen 3's attention, DeepSeek V3's experts."""

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
    choice_bias,
    experts,
    gated_mlp,
    shared_experts,
    sigmoid_experts,
)
from llmconv.convert.tables.architecture import Architecture, HfName, keys
from llmconv.convert.tables.loader import HEAD, MLP_BIASES, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """A window is in most of its configurations and in none of its layers."""
    kinds, first = config.get("layer_types"), config.get("max_window_layers")
    n_layer = min(dims["n_layer"], 1 << 16)
    windows = [i >= (62 if first is None else int(first)) for i in range(n_layer)]
    if isinstance(kinds, list):
        windows = [kind == "sliding_attention" for kind in kinds]
    if any(windows):
        own["attention.sliding_window_pattern"] = np.asarray(windows, np.bool_)
    else:
        own.pop("attention.sliding_window", None)
    own["expert_gating_func"] = np.uint32(2)  # whatever word the configuration has for it


DOTS1 = Architecture(
    "dots1",
    (HfName("Dots1ForCausalLM", "dots1"),),
    keys=(
        *COMMON,
        *HEAD_DIM,
        *(key for key in sigmoid_experts() if key.gguf != "expert_gating_func"),
        *keys("""
            leading_dense_block_count       u32   first_k_dense_replace
            attention.sliding_window        u32   sliding_window
        """),
    ),
    rows=(
        *EMBEDDINGS,
        *NORMS,
        *attention(),
        *QK_NORMS,
        *gated_mlp(when="i < n_dense"),
        *experts(),
        choice_bias(),
        *shared_experts(),
    ),
    finish=_finish,
    decoder={"gating": "sigmoid", "window_pattern": 1 << 30},
    reads="layer_types max_window_layers",
    inert="num_local_experts scoring_func",
    loader=Loader(
        refused=(*MLP_BIASES, *OUT_BIAS),
        unread=("attention.sliding_window", "attention.sliding_window_pattern"),
        needed=HEAD,
        wants={"n_head == n_head_kv": "as many heads of keys as of queries"},
    ),
)

ARCHITECTURES = (DOTS1,)
