"""Refact 1.6: one head of keys and values, ALiBi, a gated feed-forward under GPT-2's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import HEAD
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.ops import Dims, Split

_at = "{p}h.{i}."


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """Two thirds of four times the width, in multiples of 256."""
    own["feed_forward_length"] = np.uint32(256 * ((int(8 * dims["n_embd"] / 3) + 255) // 256))


REFACT = Architecture(
    "refact",
    (HfName("GPTRefactForCausalLM", "gpt_refact"),),
    keys=keys("""
        block_count                       u32   n_layer
        context_length                    u32   n_positions
        embedding_length                  u32   n_embd
        attention.head_count              u32   n_head
        attention.head_count_kv           u32   -                     1
        attention.layer_norm_rms_epsilon  f32   layer_norm_epsilon    1e-5
    """),
    rows=(
        row("token_embd.weight", "{p}wte.weight", "n_vocab, n_embd"),
        row("output_norm.weight", "{p}ln_f.weight", "n_embd"),
        HEAD,
        row("blk.{i}.attn_norm.weight", _at + "ln_1.weight", "n_embd"),
        row("blk.{i}.attn_q.weight", _at + "attn.q.weight", "n_head * head_dim, n_embd"),
        row(
            ("blk.{i}.attn_k.weight", "blk.{i}.attn_v.weight"),
            _at + "attn.kv.weight",
            ("n_head_kv * head_dim, n_embd", "n_head_kv * head_dim, n_embd"),
            Split(("n_head_kv * head_dim", "n_head_kv * head_dim")),
        ),
        row("blk.{i}.attn_output.weight", _at + "attn.c_proj.weight", "n_embd, n_head * head_dim"),
        row("blk.{i}.ffn_norm.weight", _at + "ln_2.weight", "n_embd"),
        row(
            ("blk.{i}.ffn_gate.weight", "blk.{i}.ffn_up.weight"),
            _at + "mlp.gate_up_proj.weight",
            ("n_ff, n_embd", "n_ff, n_embd"),
            Split(("n_ff", "n_ff")),
        ),
        row("blk.{i}.ffn_down.weight", _at + "mlp.c_proj.weight", "n_embd, n_ff"),
    ),
    prefixes=("transformer.", ""),
    finish=_finish,
    decoder={"positions": "alibi", "activation_key": ""},
    inert="activation_function attention_bias_in_fp32 attention_softmax_in_fp32 n_inner do_sample eos_token_id"
    " scale_attention_softmax_in_fp32",
    fixed={"multi_query": True, "scale_attn_weights": True},
)

ARCHITECTURES = (REFACT,)
