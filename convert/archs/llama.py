"""Llama and what shares its GGUF name: Llama 1 to 3.3, Mistral, Mixtral."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import Architecture, Form, HfName, Made, keys, row
from llmconv.convert.tables.ops import Dims, Stack, rope_halves

COMMON = keys("""
    block_count                       u32   num_hidden_layers
    context_length                    u32   max_position_embeddings
    embedding_length                  u32   hidden_size
    feed_forward_length               u32   intermediate_size
    attention.head_count              u32   num_attention_heads
    attention.head_count_kv           u32   num_key_value_heads         = n_head
    rope.freq_base                    f32   rope_theta                  10000
    attention.layer_norm_rms_epsilon  f32   rms_norm_eps                1e-6
""")
"""The keys of most models since Llama."""

HEAD_DIM = keys("""
    attention.key_length              u32   head_dim                    = n_embd // n_head
    attention.value_length            u32   head_dim                    = n_embd // n_head
""")

EXPERTS = keys("""
    expert_count                      u32   num_local_experts|num_experts|n_routed_experts
    expert_used_count                 u32   num_experts_per_tok|num_experts_per_token|top_k_experts
""")

EMBEDDINGS = (
    row("token_embd.weight", "{p}embed_tokens.weight", "n_vocab, n_embd"),
    row("output_norm.weight", "{p}norm.weight", "n_embd"),
    row("output.weight", "lm_head.weight", "n_vocab, n_embd", optional="!tie_word_embeddings"),
)

NORMS = (
    row("blk.{i}.attn_norm.weight", "{p}layers.{i}.input_layernorm.weight", "n_embd"),
    row("blk.{i}.ffn_norm.weight", "{p}layers.{i}.post_attention_layernorm.weight", "n_embd"),
)


def attention(
    *, bias: bool | str = "attention_bias", out_bias: bool | str | None = None, permuted: bool = False
) -> Any:
    """Rows of q, k, v and the output projection; `permuted` for GGUFs that keep rotary pairs side by side."""
    q = (rope_halves("n_head"),) if permuted else ()
    k = (rope_halves("n_head_kv"),) if permuted else ()
    at = "{p}layers.{i}.self_attn."
    return (
        row("blk.{i}.attn_q.weight", at + "q_proj.weight", "n_head * head_dim, n_embd", *q),
        row("blk.{i}.attn_k.weight", at + "k_proj.weight", "n_head_kv * head_dim, n_embd", *k),
        row("blk.{i}.attn_v.weight", at + "v_proj.weight", "n_head_kv * head_dim_v, n_embd"),
        row("blk.{i}.attn_output.weight", at + "o_proj.weight", "n_embd, n_head * head_dim_v"),
        row("blk.{i}.attn_q.bias", at + "q_proj.bias", "n_head * head_dim", *q, optional=bias),
        row("blk.{i}.attn_k.bias", at + "k_proj.bias", "n_head_kv * head_dim", *k, optional=bias),
        row("blk.{i}.attn_v.bias", at + "v_proj.bias", "n_head_kv * head_dim_v", optional=bias),
        row("blk.{i}.attn_output.bias", at + "o_proj.bias", "n_embd", optional=bias if out_bias is None else out_bias),
    )


def gated_mlp(when: str = "") -> Any:
    """Rows of a gate, up, down block, with the biases that few models have."""
    at = "{p}layers.{i}.mlp."
    return (
        row("blk.{i}.ffn_gate.weight", at + "gate_proj.weight", "n_ff, n_embd", when=when),
        row("blk.{i}.ffn_up.weight", at + "up_proj.weight", "n_ff, n_embd", when=when),
        row("blk.{i}.ffn_down.weight", at + "down_proj.weight", "n_embd, n_ff", when=when),
        row("blk.{i}.ffn_gate.bias", at + "gate_proj.bias", "n_ff", when=when, optional="mlp_bias"),
        row("blk.{i}.ffn_up.bias", at + "up_proj.bias", "n_ff", when=when, optional="mlp_bias"),
        row("blk.{i}.ffn_down.bias", at + "down_proj.bias", "n_embd", when=when, optional="mlp_bias"),
    )


def _llama3(factor: float, low: float, high: float, original: int, base: float, dim: int) -> Any:
    """Llama 3.1's divisors of each rotary frequency (Meta's `apply_scaling`), in float32 as the reference computes."""
    if not base > 0:
        raise ValueError(f"a rope base of {base:g}")
    freqs = np.float32(1) / np.float32(base) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
    long_wave, short_wave = original / low, original / high
    out = []
    for freq in freqs:
        wave = np.float32(2 * math.pi) / freq
        if wave < short_wave:
            out.append(1.0)
        elif wave > long_wave:
            out.append(factor)
        else:
            smooth = (np.float32(original) / wave - np.float32(low)) / np.float32(high - low)
            out.append(float(np.float32(1) / ((np.float32(1) - smooth) / np.float32(factor) + smooth)))
    return np.asarray(out, np.float32)


def _make_rope_freqs(config: Mapping[str, Any], dims: Dims) -> Any:
    rope = config.get("rope") or {}
    if str(rope.get("rope_type", "")).lower() != "llama3":
        return None
    factors = []
    for name, default in (("factor", 8.0), ("low_freq_factor", 1.0), ("high_freq_factor", 4.0)):
        factors.append(float(rope.get(name, default)))
        if not factors[-1] > 0:
            raise ValueError("expected a number above 0")
    factor, low, high = factors
    return _llama3(
        factor,
        low,
        high,
        int(rope.get("original_max_position_embeddings", 8192)),
        float(rope.get("rope_theta", 10000.0)),
        dims["head_dim"],
    )


def _read_rope_freqs(values: Any, config: dict[str, Any]) -> None:
    """The factor is the largest divisor; the original context is the one that gives these values, else 8192."""
    values = np.asarray(values, np.float32).reshape(-1)
    factor, base = float(values.max()), float(config.get("rope_theta", 10000.0))

    def fits(original: int) -> bool:
        return bool(np.allclose(_llama3(factor, 1.0, 4.0, original, base, 2 * values.size), values, rtol=1e-5))

    config["rope_scaling"] = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": next((n for n in (8192, *(1 << k for k in range(5, 21))) if fits(n)), 8192),
    }


ROPE_FREQS = Made("rope_freqs.weight", _make_rope_freqs, _read_rope_freqs)

_experts = "{p}layers.{i}.block_sparse_moe."

LLAMA = Architecture(
    "llama",
    (
        HfName("LlamaForCausalLM", "llama"),
        HfName("MixtralForCausalLM", "mixtral", when="n_expert"),
        HfName("MistralForCausalLM", "mistral", when="window"),
        HfName("LLaMAForCausalLM", "llama"),
        HfName("LlamaModel", "llama"),
    ),
    keys=(
        *COMMON,
        *keys("""
            vocab_size                        u32   vocab_size
            rope.dimension_count              u32   head_dim                    = n_embd // n_head
            attention.sliding_window          u32   sliding_window
        """),
        *HEAD_DIM,
        *EXPERTS,
    ),
    rows=(
        *EMBEDDINGS,
        *NORMS,
        *attention(permuted=True),
        *gated_mlp(when="not n_expert"),
        row("blk.{i}.ffn_gate_inp.weight", _experts + "gate.weight", "n_expert, n_embd", when="n_expert"),
        row(
            "blk.{i}.ffn_gate_exps.weight",
            _experts + "experts.{e}.w1.weight",
            "n_expert, n_ff, n_embd",
            Stack(),
            when="n_expert",
        ),
        row(
            "blk.{i}.ffn_down_exps.weight",
            _experts + "experts.{e}.w2.weight",
            "n_expert, n_embd, n_ff",
            Stack(),
            when="n_expert",
        ),
        row(
            "blk.{i}.ffn_up_exps.weight",
            _experts + "experts.{e}.w3.weight",
            "n_expert, n_ff, n_embd",
            Stack(),
            when="n_expert",
        ),
    ),
    made=(ROPE_FREQS,),
    decoder={"rope": "pairs", "window_pattern": 0, "normalize_experts": True},
)

ARCHITECTURES = (LLAMA,)

__all__ = [
    "ARCHITECTURES",
    "COMMON",
    "EMBEDDINGS",
    "EXPERTS",
    "HEAD_DIM",
    "LLAMA",
    "NORMS",
    "ROPE_FREQS",
    "Form",
    "attention",
    "gated_mlp",
]
