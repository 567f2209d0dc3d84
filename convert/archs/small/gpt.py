"""small-gpt: the GPT that people write themselves, with whatever biases and norms it has.

Pre-norm blocks (attention, then an MLP), learned positions, LayerNorms.  Which activation stands in the MLP is stated
by a key, since nothing else shows it.  A GPT that has exactly GPT-2's parts is a `gpt2`; this is the family of the
others: Karpathy's lecture GPT, nanoGPT without biases, those in numpy and in Rust.  No transformers class exists.
"""

from __future__ import annotations

from typing import Any

from llmconv.convert.tables.architecture import Architecture, HfName, keys, row

_at = "{p}layers.{i}."

KEYS = keys("""
    vocab_size              u32   vocab_size
    context_length          u32   max_position_embeddings
    embedding_length        u32   hidden_size
    block_count             u32   num_hidden_layers
    feed_forward_length     u32   intermediate_size         = 4 * n_embd
    attention.head_count    u32   num_attention_heads       1
    attention.head_count_kv u32   num_key_value_heads
    attention.key_length    u32   head_dim
    hidden_activation       str   hidden_act
    position_embedding      str   position_embedding_type   learned
    rope.interleaved        bool  rope_interleaved
    attention.causal        bool  is_causal                 true
""")
"""Sizes, and what no tensor shows."""

LAYER_EPSILON = keys("attention.layer_norm_epsilon      f32   layer_norm_eps   1e-5")
RMS_EPSILON = keys("attention.layer_norm_rms_epsilon  f32   rms_norm_eps     1e-5")


def linear(gguf: str, hf: str, n_out: str, n_in: str, optional: bool | str = False, bias: str = "bias") -> Any:
    """Rows of a weight and of the bias that it may have.   bias: the flag of a config that has it."""
    return (
        row(f"{gguf}.weight", f"{hf}.weight", f"{n_out}, {n_in}", optional=optional),
        row(f"{gguf}.bias", f"{hf}.bias", n_out, optional=bias),
    )


def norm(gguf: str, hf: str, optional: bool | str = False) -> Any:
    """Rows of a norm and of the bias that it may have."""
    return (
        row(f"{gguf}.weight", f"{hf}.weight", "n_embd", optional=optional),
        row(f"{gguf}.bias", f"{hf}.bias", "n_embd", optional="bias"),
    )


ENDS = (
    row("token_embd.weight", "{p}embed_tokens.weight", "n_vocab, n_embd"),
    row("position_embd.weight", "{p}embed_positions.weight", "n_ctx, n_embd", optional="!no_learned_positions"),
)
HEAD = linear("output", "lm_head", "n_vocab", "n_embd", optional="!tie_word_embeddings", bias="head_bias")
MLP = (
    *linear("blk.{i}.ffn_gate", _at + "mlp.gate_proj", "n_ff", "n_embd", optional="gated_mlp", bias="gate_bias"),
    *linear("blk.{i}.ffn_up", _at + "mlp.up_proj", "n_ff", "n_embd"),
    *linear("blk.{i}.ffn_down", _at + "mlp.down_proj", "n_embd", "n_ff"),
)
APART = (
    *linear("blk.{i}.attn_q", _at + "self_attn.q_proj", "n_head * head_dim", "n_embd", bias="attention_bias"),
    *linear("blk.{i}.attn_k", _at + "self_attn.k_proj", "n_head_kv * head_dim", "n_embd", bias="attention_bias"),
    *linear("blk.{i}.attn_v", _at + "self_attn.v_proj", "n_head_kv * head_dim", "n_embd", bias="attention_bias"),
)
"""Queries, keys and values as three matrices."""
OUT = linear("blk.{i}.attn_output", _at + "self_attn.o_proj", "n_embd", "n_head * head_dim")

SMALL_GPT = Architecture(
    "small-gpt",
    (HfName("SmallGptModel", "small-gpt"),),
    keys=(*KEYS, *LAYER_EPSILON),
    rows=(
        *ENDS,
        *norm("output_norm", "{p}norm", optional="!no_final_norm"),
        *HEAD,
        *norm("blk.{i}.attn_norm", _at + "input_layernorm"),
        *linear("blk.{i}.attn_qkv", _at + "self_attn.qkv_proj", "3 * n_embd", "n_embd", bias="attention_bias"),
        *OUT,
        *norm("blk.{i}.ffn_norm", _at + "post_attention_layernorm"),
        *MLP,
    ),
    prefixes=("model.", ""),
    decoder={"norm": "layer", "positions": "learned", "activation": "relu", "tokenizer": "characters"},
)

ARCHITECTURES = (SMALL_GPT,)
