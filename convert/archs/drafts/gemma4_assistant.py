"""Gemma 4's assistants: layers without keys of their own, which read those of the model that they draft for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmconv.convert.archs.drafts.eagle3 import DRAFTS
from llmconv.convert.archs.gemma.gemma4 import GEMMA4
from llmconv.convert.tables.architecture import HfName, keys, row
from llmconv.convert.tables.ops import Dims


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    if not own.get("attention.shared_kv_layers"):
        own["attention.shared_kv_layers"] = own["block_count"]
    assert GEMMA4.finish is not None
    GEMMA4.finish(own, config, dims)
    own["nextn_predict_layers"] = own["block_count"]


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    assert GEMMA4.rebuild is not None
    GEMMA4.rebuild(config, own, dims)
    config["vocab_size_per_layer_input"] = 0


GEMMA4_ASSISTANT = GEMMA4.variant(
    "gemma4-assistant",
    HfName("Gemma4AssistantForCausalLM", "gemma4_assistant"),
    HfName("Gemma4UnifiedAssistantForCausalLM", "gemma4_unified_assistant"),
    keys=keys("""
        embedding_length_out              u32   backbone_hidden_size               1536
        embedding_length_per_layer_input  u32   hidden_size_per_layer_input        0
    """),
    rows=(
        row("nextn.pre_projection.weight", "pre_projection.weight", "n_embd, 2 * n_backbone"),
        row("nextn.post_projection.weight", "post_projection.weight", "n_backbone, n_embd"),
    ),
    kept=(r"masked_embedding\..*",),
    finish=_finish,
    rebuild=_rebuild,
    decoder={"not_run": DRAFTS},
    inside="gemma4_text",
    reads="use_ordered_embeddings num_centroids centroid_intermediate_top_k",
)

ARCHITECTURES = (GEMMA4_ASSISTANT,)
