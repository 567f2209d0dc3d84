"""Granite and Granite-MoE (Llama with multipliers), Command-R and Cohere2 (parallel, no biases), SmolLM3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.llama import COMMON, EXPERTS, HEAD_DIM, LLAMA, attention, gated_mlp
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.ops import Dims, Split

_at = "{p}layers.{i}."
_dense = [r.gguf[0] for r in gated_mlp()]
_of_experts = ["expert_count", "expert_used_count", "attention.sliding_window"]
_head_dim = [k.gguf for k in HEAD_DIM]
_expert_rows = [r.gguf[0] for r in LLAMA.rows if "exps" in r.gguf[0] or "gate_inp" in r.gguf[0]]

SMOLLM3 = LLAMA.variant(
    "smollm3",
    HfName("SmolLM3ForCausalLM", "smollm3"),
    drop=[*_of_experts, *_head_dim, *_expert_rows],
    keys=keys("rope.freq_base  f32  rope_theta  2000000"),
    tied=True,
    decoder={"no_rope_every": 4},
)

GRANITE = LLAMA.variant(
    "granite",
    HfName("GraniteForCausalLM", "granite"),
    drop=[*_of_experts, *_head_dim, *_expert_rows],
    keys=keys("""
        attention.scale     f32   attention_multiplier
        embedding_scale     f32   embedding_multiplier
        residual_scale      f32   residual_multiplier
        logit_scale         f32   logits_scaling
    """),
    decoder={"logit_scale_divides": True},
)

_experts = _at + "block_sparse_moe."

GRANITE_MOE = GRANITE.variant(
    "granitemoe",
    HfName("GraniteMoeForCausalLM", "granitemoe"),
    HfName("GraniteMoeSharedForCausalLM", "granitemoeshared", when="n_ff_shexp"),
    keys=(*EXPERTS, *keys("expert_shared_feed_forward_length  u32  shared_intermediate_size")),
    rows=(
        row("blk.{i}.ffn_gate_inp.weight", _experts + "router.layer.weight", "n_expert, n_embd", when="n_expert"),
        row(
            ("blk.{i}.ffn_gate_exps.weight", "blk.{i}.ffn_up_exps.weight"),
            _experts + "input_linear.weight",
            ("n_expert, n_ff, n_embd", "n_expert, n_ff, n_embd"),
            Split(("n_ff", "n_ff"), "n_expert", hf_stacked=True, gguf_stacked=True),
            when="n_expert",
        ),
        row("blk.{i}.ffn_down_exps.weight", _experts + "output_linear.weight", "n_expert, n_embd, n_ff"),
        row(
            ("blk.{i}.ffn_gate_shexp.weight", "blk.{i}.ffn_up_shexp.weight"),
            _at + "shared_mlp.input_linear.weight",
            ("n_ff_shexp, n_embd", "n_ff_shexp, n_embd"),
            Split(("n_ff_shexp", "n_ff_shexp")),
            when="n_ff_shexp",
        ),
        row(
            "blk.{i}.ffn_down_shexp.weight",
            _at + "shared_mlp.output_linear.weight",
            "n_embd, n_ff_shexp",
            when="n_ff_shexp",
        ),
    ),
    drop=_dense,
    decoder={"normalize_experts": True},
)


def _no_scaling(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own.setdefault("rope.scaling.type", "none")


COMMAND_R = Architecture(
    "command-r",
    (HfName("CohereForCausalLM", "cohere"),),
    keys=(
        *(k for k in COMMON if "epsilon" not in k.gguf),
        *keys("""
            attention.layer_norm_epsilon    f32   layer_norm_eps        1e-5
            logit_scale                     f32   logit_scale           0.0625
            attention.key_length            u32   head_dim
            attention.value_length          u32   head_dim
        """),
    ),
    rows=(
        row("token_embd.weight", "{p}embed_tokens.weight", "n_vocab, n_embd"),
        row("output_norm.weight", "{p}norm.weight", "n_embd"),
        row("output.weight", "lm_head.weight", "n_vocab, n_embd", optional="!tie_word_embeddings"),
        row("blk.{i}.attn_norm.weight", _at + "input_layernorm.weight", "n_embd"),
        *attention(),
        row("blk.{i}.attn_q_norm.weight", _at + "self_attn.q_norm.weight", "n_head, head_dim", optional="use_qk_norm"),
        row(
            "blk.{i}.attn_k_norm.weight", _at + "self_attn.k_norm.weight", "n_head_kv, head_dim", optional="use_qk_norm"
        ),
        *gated_mlp(),
    ),
    tied=True,
    finish=_no_scaling,
    decoder={"rope": "pairs", "parallel": True},
)


def _cohere2_finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    fraction = config.get("rotary_pct", 1.0)
    own["rope.dimension_count"] = np.uint32(int(fraction * dims["head_dim"]))
    own.setdefault("rope.scaling.type", "none")


COHERE2 = COMMAND_R.variant(
    "cohere2",
    HfName("Cohere2ForCausalLM", "cohere2"),
    keys=keys("""
        attention.sliding_window        u32   sliding_window        4096
        vocab_size                      u32   vocab_size
    """),
    drop=["blk.{i}.attn_q_norm.weight", "blk.{i}.attn_k_norm.weight"],
    finish=_cohere2_finish,
    decoder={"window_pattern": 4, "rope_layers": "windowed"},
)

ARCHITECTURES = (SMOLLM3, GRANITE, GRANITE_MOE, COMMAND_R, COHERE2)
