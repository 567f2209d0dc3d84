"""Qwen 2 and 3, dense and with experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmconv.convert.archs.parts import COMMON, EMBEDDINGS, HEAD_DIM, NORMS, QK_NORMS, attention, experts, gated_mlp
from llmconv.convert.archs.rope import ROPE_FREQS
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.ops import Dims

_at = "{p}layers.{i}."

QWEN2 = Architecture(
    "qwen2",
    (HfName("Qwen2ForCausalLM", "qwen2"), HfName("Qwen2Model", "qwen2")),
    keys=COMMON,
    rows=(*EMBEDDINGS, *NORMS, *attention(bias="attention_bias=true", out_bias=True), *gated_mlp()),
    made=(ROPE_FREQS,),
)

QWEN3 = QWEN2.variant(
    "qwen3",
    HfName("Qwen3ForCausalLM", "qwen3"),
    HfName("Qwen3Model", "qwen3"),
    keys=HEAD_DIM,
    rows=(*attention(), *QK_NORMS),
)

_EXPERT_KEYS = (
    *keys("""
        expert_count                        u32   num_experts|num_local_experts
        expert_used_count                   u32   num_experts_per_tok
        expert_feed_forward_length          u32   moe_intermediate_size
        expert_shared_feed_forward_length   u32   shared_expert_intermediate_size
    """),
)

_dense = [r.gguf[0] for r in gated_mlp()]

_shared = _at + "mlp.shared_expert."

QWEN2_MOE = QWEN2.variant(
    "qwen2moe",
    HfName("Qwen2MoeForCausalLM", "qwen2_moe"),
    keys=_EXPERT_KEYS,
    rows=(
        *experts(),
        row("blk.{i}.ffn_gate_inp_shexp.weight", _at + "mlp.shared_expert_gate.weight", "1, n_embd"),
        row("blk.{i}.ffn_gate_shexp.weight", _shared + "gate_proj.weight", "n_ff_shexp, n_embd"),
        row("blk.{i}.ffn_up_shexp.weight", _shared + "up_proj.weight", "n_ff_shexp, n_embd"),
        row("blk.{i}.ffn_down_shexp.weight", _shared + "down_proj.weight", "n_embd, n_ff_shexp"),
    ),
    drop=_dense,
)


def _normed(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """llama.cpp always makes the weights of Qwen 3's chosen experts sum to one; only the other case needs a key."""
    if not config.get("norm_topk_prob", False):
        own["expert_weights_norm"] = False


def _renormed(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["norm_topk_prob"] = bool(own.get("expert_weights_norm", True))


QWEN3_MOE = QWEN3.variant(
    "qwen3moe",
    HfName("Qwen3MoeForCausalLM", "qwen3_moe"),
    keys=_EXPERT_KEYS,
    rows=experts(),
    drop=[*_dense, "expert_shared_feed_forward_length"],
    finish=_normed,
    rebuild=_renormed,
    decoder={"normalize_experts": True},
)

ARCHITECTURES = (QWEN2, QWEN3, QWEN2_MOE, QWEN3_MOE)
