"""Qwen 2 and 3, dense and with experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmconv.convert.archs.llama import COMMON, EMBEDDINGS, HEAD_DIM, NORMS, ROPE_FREQS, attention, gated_mlp
from llmconv.convert.tables.architecture import Architecture, Form, HfName, Row, keys, row
from llmconv.convert.tables.ops import Dims, Split, Stack

_at = "{p}layers.{i}."

QK_NORMS = (
    row("blk.{i}.attn_q_norm.weight", _at + "self_attn.q_norm.weight", "head_dim"),
    row("blk.{i}.attn_k_norm.weight", _at + "self_attn.k_norm.weight", "head_dim"),
)


def experts(at: str = "mlp.") -> tuple[Row, ...]:
    """Rows of a router and its experts, which files keep apart and some releases of transformers stack."""
    one, all_of_them = _at + at + "experts.{e}.", _at + at + "experts."
    return (
        row("blk.{i}.ffn_gate_inp.weight", _at + at + "gate.weight", "n_expert, n_embd", when="n_expert"),
        row(
            ("blk.{i}.ffn_gate_exps.weight", "blk.{i}.ffn_up_exps.weight"),
            (one + "gate_proj.weight", one + "up_proj.weight"),
            ("n_expert, n_ff_exp, n_embd", "n_expert, n_ff_exp, n_embd"),
            Stack(2),
            when="n_expert and i >= n_dense",
            alt=(
                Form(
                    (all_of_them + "gate_up_proj",),
                    (Split(("n_ff_exp", "n_ff_exp"), "n_expert", hf_stacked=True, gguf_stacked=True),),
                ),
            ),
        ),
        row(
            "blk.{i}.ffn_down_exps.weight",
            one + "down_proj.weight",
            "n_expert, n_embd, n_ff_exp",
            Stack(),
            when="n_expert and i >= n_dense",
            alt=(Form((all_of_them + "down_proj",)),),
        ),
    )


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
