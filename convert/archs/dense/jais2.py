"""Jais 2: LayerNorms, rotary positions, biases everywhere, a squared ReLU without a gate."""

from __future__ import annotations

from llmconv.convert.archs.parts import COMMON_BUT_EPSILON, EMBEDDINGS, HEAD_DIM, attention, linear, norm
from llmconv.convert.tables.architecture import Architecture, HfName, keys
from llmconv.convert.tables.loader import MLP_BIASES_UNGATED, OUT_BIAS, Loader

_at = "{p}layers.{i}."

JAIS2 = Architecture(
    "jais2",
    (HfName("Jais2ForCausalLM", "jais2"),),
    keys=(
        *COMMON_BUT_EPSILON,
        *HEAD_DIM,
        *keys("""
            attention.layer_norm_epsilon    f32   layer_norm_eps    1e-5
            rope.dimension_count            u32   head_dim          = n_embd // n_head
        """),
    ),
    rows=(
        EMBEDDINGS[0],
        *norm("output_norm", "{p}norm"),
        EMBEDDINGS[2],
        *norm("blk.{i}.attn_norm", _at + "input_layernorm"),
        *attention(bias="attention_bias=true"),
        *norm("blk.{i}.ffn_norm", _at + "post_attention_layernorm"),
        *linear("blk.{i}.ffn_up", _at + "mlp.up_proj", "n_ff", "n_embd", bias="mlp_bias=true"),
        *linear("blk.{i}.ffn_down", _at + "mlp.down_proj", "n_embd", "n_ff", bias="mlp_bias=true"),
    ),
    decoder={"norm": "layer", "activation": "relu2"},
    loader=Loader(needed=(*OUT_BIAS, *MLP_BIASES_UNGATED)),
)

ARCHITECTURES = (JAIS2,)
