"""K-EXAONE: EXAONE 4's windows before norms again, with DeepSeek V3's experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.dense.exaone import EXAONE4, NEXTN, window_pattern
from llmconv.convert.archs.parts import (
    EMBEDDINGS,
    NORMS,
    QK_NORMS,
    attention,
    choice_bias,
    count_nextn,
    experts,
    gated_mlp,
    predicting,
    shared_experts,
    sigmoid_experts,
    uncount_nextn,
)
from llmconv.convert.tables.architecture import HfName, keys
from llmconv.convert.tables.loader import HEAD, Loader
from llmconv.convert.tables.ops import Dims


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    window_pattern(own, config, dims)
    kinds, dense = config.get("mlp_layer_types"), own.get("leading_dense_block_count", 0)
    if isinstance(kinds, list):
        dense = next((i for i, kind in enumerate(kinds) if kind != "dense"), len(kinds))
    own["leading_dense_block_count"] = np.uint32(dense)
    shared = int(own.get("expert_shared_count", 0)) * int(own["expert_feed_forward_length"])
    own["expert_shared_feed_forward_length"] = np.uint32(shared)
    own.setdefault("rope.scaling.type", "none")
    count_nextn(own)


_MOE = EXAONE4.variant(
    "exaone-moe",
    HfName("ExaoneMoeForCausalLM", "exaone_moe"),
    HfName("ExaoneMoEForCausalLM", "exaone_moe"),
    keys=(
        *sigmoid_experts(count="num_experts", shared="num_shared_experts"),
        *keys("""
            leading_dense_block_count       u32   first_k_dense_replace|first_last_k_dense_replace   0
            nextn_predict_layers            u32   num_nextn_predict_layers                         0
        """),
    ),
    finish=_finish,
    rebuild=lambda config, own, dims: uncount_nextn(config, dims),
    decoder={"gating": "sigmoid", "rope_layers": "windowed"},
    reads="mlp_layer_types",
    loader=Loader(windows_at=0, needed=HEAD, always_windows=True),
)

_layer = (
    *NORMS,
    *attention(),
    *QK_NORMS,
    *gated_mlp(when="i < n_dense or i >= n_layer - n_nextn"),
    *experts(where="i >= n_dense and i < n_layer - n_nextn"),
    choice_bias("mlp.e_score_correction_bias", where="i >= n_dense and i < n_layer - n_nextn"),
    *shared_experts(where="i >= n_dense and i < n_layer - n_nextn"),
)

EXAONE_MOE = dataclasses.replace(_MOE, rows=(*EMBEDDINGS, *predicting(_layer), *NEXTN))

ARCHITECTURES = (EXAONE_MOE,)
