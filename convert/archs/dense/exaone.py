"""EXAONE 3 and 4: Llama under other names; then norms behind the sublayers, and positions in windowed layers alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import (
    COMMON,
    EMBEDDINGS,
    HEAD_DIM,
    QK_NORMS,
    attention,
    count_nextn,
    gated_mlp,
    predicting,
    uncount_nextn,
)
from llmconv.convert.archs.rope import ROPE_FREQS
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.loader import MLP_BIASES, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims

_h = "{p}h.{i}."

_qkv = _h + "attn.attention."

EXAONE = Architecture(
    "exaone",
    (HfName("ExaoneForCausalLM", "exaone"),),
    keys=(
        *keys("""
            block_count                       u32   num_layers|num_hidden_layers
            context_length                    u32   max_position_embeddings
            embedding_length                  u32   hidden_size
            feed_forward_length               u32   intermediate_size
            attention.head_count              u32   num_attention_heads
            attention.head_count_kv           u32   num_key_value_heads         = n_head
            rope.freq_base                    f32   rope_theta                  10000
            attention.layer_norm_rms_epsilon  f32   layer_norm_epsilon          1e-5
            attention.layer_norm_epsilon      f32   layer_norm_epsilon          1e-5
            rope.dimension_count              u32   head_dim                    = n_embd // n_head
        """),
    ),
    rows=(
        row("token_embd.weight", "{p}wte.weight", "n_vocab, n_embd"),
        row("output_norm.weight", "{p}ln_f.weight", "n_embd"),
        EMBEDDINGS[2],
        row("blk.{i}.attn_norm.weight", _h + "ln_1.weight", "n_embd"),
        row("blk.{i}.attn_q.weight", _qkv + "q_proj.weight", "n_head * head_dim, n_embd"),
        row("blk.{i}.attn_k.weight", _qkv + "k_proj.weight", "n_head_kv * head_dim, n_embd"),
        row("blk.{i}.attn_v.weight", _qkv + "v_proj.weight", "n_head_kv * head_dim, n_embd"),
        row("blk.{i}.attn_output.weight", _qkv + "out_proj.weight", "n_embd, n_head * head_dim"),
        row("blk.{i}.ffn_norm.weight", _h + "ln_2.weight", "n_embd"),
        row("blk.{i}.ffn_gate.weight", _h + "mlp.c_fc_0.weight", "n_ff, n_embd"),
        row("blk.{i}.ffn_up.weight", _h + "mlp.c_fc_1.weight", "n_ff, n_embd"),
        row("blk.{i}.ffn_down.weight", _h + "mlp.c_proj.weight", "n_embd, n_ff"),
    ),
    made=(ROPE_FREQS,),
    prefixes=("transformer.", "model.transformer.", ""),
    dropped=(r".*\.rotary(_emb)?\.inv_freq",),
    decoder={"norm": "rms", "activation_key": "activation_function"},
)


_further = "i >= n_layer - n_nextn"

NEXTN = tuple(
    row(f"blk.{{i}}.nextn.{gguf}.weight", f"mtp.{hf}.weight", shape, when=_further)
    for gguf, hf, shape in (
        ("eh_proj", "fc", "n_embd, 2 * n_embd"),
        ("enorm", "pre_fc_norm_embedding", "n_embd"),
        ("hnorm", "pre_fc_norm_hidden", "n_embd"),
        ("shared_head_norm", "norm", "n_embd"),
    )
)
"""What the layer for further tokens has beside those of any layer; published under names of their own."""


def window_pattern(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """The pattern of the windows, which stand in the configuration as a list, as letters (LLLG) or a number."""
    if not own.get("attention.sliding_window"):
        return
    n_layer, kinds = min(dims["n_layer"], 1 << 16), config.get("layer_types")
    every = config.get("sliding_window_pattern", 4)
    if isinstance(kinds, list):
        pattern = [kind == "sliding_attention" for kind in kinds]
    elif isinstance(every, str) and every:
        pattern = [every[i % len(every)] == "L" for i in range(n_layer)]
    else:
        pattern = [(i + 1) % int(every or 1) != 0 for i in range(n_layer)]
    own["attention.sliding_window_pattern"] = np.asarray(pattern, np.bool_)


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    window_pattern(own, config, dims)
    if not own.get("nextn_predict_layers"):
        own.pop("nextn_predict_layers", None)
    count_nextn(own)


EXAONE4 = Architecture(
    "exaone4",
    (HfName("Exaone4ForCausalLM", "exaone4"), HfName("Exaone4_5_ForConditionalGeneration", "exaone4_5")),
    keys=(
        *COMMON,
        *HEAD_DIM,
        *keys("""
            vocab_size                        u32   vocab_size
            attention.sliding_window          u32   sliding_window
            nextn_predict_layers              u32   num_nextn_predict_layers
        """),
    ),
    rows=(
        *EMBEDDINGS,
        *predicting(
            (
                *attention(),
                *QK_NORMS,
                row("blk.{i}.post_attention_norm.weight", "{p}layers.{i}.post_attention_layernorm.weight", "n_embd"),
                row("blk.{i}.post_ffw_norm.weight", "{p}layers.{i}.post_feedforward_layernorm.weight", "n_embd"),
                *gated_mlp(),
            )
        ),
        *NEXTN,
    ),
    made=(ROPE_FREQS,),
    finish=_finish,
    rebuild=lambda config, own, dims: uncount_nextn(config, dims),
    decoder={"window_pattern": 4, "rope_layers": "windowed if any"},
    reads="sliding_window_pattern layer_types",
    loader=Loader(refused=(*MLP_BIASES, *OUT_BIAS), windows_at=64),
)

ARCHITECTURES = (EXAONE, EXAONE4)
