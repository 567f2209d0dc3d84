"""ERNIE 4.5 with experts: softmax scores, a bias on the choice, weights that sum to one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.dense.ernie import ERNIE
from llmconv.convert.archs.parts import experts, gated_mlp, shared_experts
from llmconv.convert.tables.architecture import HfName, keys, row
from llmconv.convert.tables.ops import Dims
from llmconv.errors import Unsupported


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    if shared := config.get("moe_num_shared_experts"):
        own["expert_shared_feed_forward_length"] = np.uint32(int(config["moe_intermediate_size"]) * shared)
    last = config.get("moe_layer_end_index")
    if (last is not None and last not in (-1, dims["n_layer"] - 1)) or own["interleave_moe_layer_step"] != 1:
        raise Unsupported("config.json: layers without experts behind others (moe_layer_end_index) are not known here")


ERNIE_MOE = ERNIE.variant(
    "ernie4_5-moe",
    HfName("Ernie4_5_MoeForCausalLM", "ernie4_5_moe"),
    keys=keys("""
        expert_count                        u32   moe_num_experts
        expert_used_count                   u32   moe_k
        expert_feed_forward_length          u32   moe_intermediate_size
        expert_shared_count                 u32   moe_num_shared_experts
        leading_dense_block_count           u32   moe_layer_start_index       1
        interleave_moe_layer_step           u32   moe_layer_interval          1
    """),
    rows=(
        *gated_mlp(when="i < n_dense"),
        *experts(),
        row(
            "blk.{i}.exp_probs_b.bias",
            "{p}layers.{i}.mlp.moe_statics.e_score_correction_bias",
            "1, n_expert",
            when="n_expert and i >= n_dense",
        ),
        *shared_experts(),
    ),
    drop=("blk.{i}.ffn_gate.weight",),
    finish=_finish,
    dropped=(*ERNIE.dropped, r".*mtp_(block|emb_norm|hidden_norm|linear_proj)\..*"),
    decoder={"gating": "softmax", "normalize_experts": True},
    reads="moe_layer_end_index",
    inert="num_experts num_experts_per_tok",
    fixed={"moe_norm_min": 1e-12},
)

ARCHITECTURES = (ERNIE_MOE,)
