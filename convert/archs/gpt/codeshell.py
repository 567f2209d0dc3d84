"""CodeShell: GPT-2's block with grouped queries in one matrix and rotary positions."""

from __future__ import annotations

import numpy as np

from llmconv.convert.archs.parts import HEAD, linear, norm
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.loader import Loader

_at = "{p}h.{i}."

CODESHELL = Architecture(
    "codeshell",
    (HfName("CodeShellForCausalLM", "codeshell"),),
    keys=keys("""
        block_count                     u32   n_layer
        context_length                  u32   n_positions
        embedding_length                u32   n_embd
        feed_forward_length             u32   n_inner               = 4 * n_embd
        attention.head_count            u32   n_head
        attention.head_count_kv         u32   num_query_groups
        attention.layer_norm_epsilon    f32   layer_norm_epsilon    1e-5
        rope.freq_base                  f32   rope_theta            10000
    """),
    rows=(
        row("token_embd.weight", "{p}wte.weight", "n_vocab, n_embd"),
        *norm("output_norm", "{p}ln_f"),
        HEAD,
        *norm("blk.{i}.attn_norm", _at + "ln_1"),
        *linear("blk.{i}.attn_qkv", _at + "attn.c_attn", "(n_head + 2 * n_head_kv) * head_dim", "n_embd"),
        *linear("blk.{i}.attn_output", _at + "attn.c_proj", "n_embd", "n_head * head_dim"),
        *norm("blk.{i}.ffn_norm", _at + "ln_2"),
        *linear("blk.{i}.ffn_up", _at + "mlp.c_fc", "n_ff", "n_embd"),
        *linear("blk.{i}.ffn_down", _at + "mlp.c_proj", "n_embd", "n_ff"),
    ),
    prefixes=("transformer.", ""),
    dropped=(r".*\.rotary_emb\.inv_freq", r".*\.attn\.bias"),
    constants={"rope.scaling.type": "linear", "rope.scaling.factor": np.float32(1)},
    decoder={"activation": "gelu_tanh", "activation_key": "activation_function"},
    loader=Loader(needed=("output.weight",)),
    inert="attention_softmax_in_fp32 scale_attention_softmax_in_fp32 group_query_attention",
    fixed={"position_embedding_type": "rope", "scale_attn_weights": True},
)

ARCHITECTURES = (CODESHELL,)
