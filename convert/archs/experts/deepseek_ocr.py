"""The text model of DeepSeek-OCR and Unlimited-OCR: DeepSeek 2's experts behind a Llama's attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import (
    COMMON,
    EMBEDDINGS,
    EXPERTS,
    NORMS,
    attention,
    choice_bias,
    experts,
    gated_mlp,
    shared_experts,
)
from llmconv.convert.tables.architecture import Architecture, HfName, keys
from llmconv.convert.tables.loader import OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims
from llmconv.errors import Unsupported


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    if config.get("use_mla") or config.get("kv_lora_rank"):
        raise Unsupported("config.json: use_mla is true, known of a deepseek2-ocr model: attention without a latent")
    dense = config.get("first_k_dense_replace")
    own["leading_dense_block_count"] = np.uint32(dense or 0)
    own["rope.dimension_count"] = np.uint32(config.get("qk_rope_head_dim") or 0)
    if not config.get("norm_topk_prob"):
        own.pop("expert_weights_norm", None)
    window = config.get("sliding_window_size") or config.get("sliding_window")
    if window:
        own["attention.sliding_window"] = np.uint32(window)  # which nobody computes with


DEEPSEEK_OCR = Architecture(
    "deepseek2-ocr",
    (
        HfName("DeepseekOCRForCausalLM", "DeepseekOCR"),
        HfName("DeepseekOCRForCausalLM", "deepseek_vl_v2"),
        HfName("UnlimitedOCRForCausalLM", "unlimited_ocr"),
    ),
    keys=(
        *COMMON,
        *EXPERTS,
        *keys("""
            vocab_size                      u32   vocab_size
            expert_feed_forward_length      u32   moe_intermediate_size|intermediate_size
            expert_shared_count             u32   n_shared_experts          0
            expert_weights_scale            f32   routed_scaling_factor
            expert_weights_norm             bool  norm_topk_prob
            expert_group_count              u32   n_group
            expert_group_used_count         u32   topk_group
        """),
    ),
    rows=(
        *EMBEDDINGS,
        *NORMS,
        *attention(),
        *gated_mlp(when="i < n_dense"),
        *experts(),
        choice_bias(),
        *shared_experts(),
    ),
    finish=_finish,
    rebuild=lambda config, own, dims: config.update(use_mla=False, first_k_dense_replace=dims["n_dense"]),
    decoder={"gating": "softmax"},
    reads="first_k_dense_replace qk_rope_head_dim use_mla kv_lora_rank sliding_window sliding_window_size",
    inert="q_lora_rank qk_nope_head_dim v_head_dim rm_head lm_head topk_method",
    fixed={"moe_layer_freq": 1, "scoring_func": "softmax"},
    loader=Loader(refused=OUT_BIAS),
)

ARCHITECTURES = (DEEPSEEK_OCR,)
