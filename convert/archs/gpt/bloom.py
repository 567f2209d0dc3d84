"""BLOOM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmconv.convert.archs.parts import HEAD, linear, norm
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.ops import Dims, SwapRows

_heads = SwapRows("n_head", 3, inner="head_dim")  # (head, q k v, ...) -> (q k v, head, ...)

_h = "{p}h.{i}."


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    if config.get("apply_residual_connection_post_layernorm"):
        own["residual_after_norm"] = True


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["apply_residual_connection_post_layernorm"] = own.get("residual_after_norm") is True


BLOOM = Architecture(
    "bloom",
    (HfName("BloomForCausalLM", "bloom"), HfName("BloomModel", "bloom")),
    keys=keys("""
        block_count                     u32   n_layer|num_hidden_layers
        embedding_length                u32   hidden_size|n_embed
        context_length                  u32   seq_length                = n_embd
        feed_forward_length             u32   -                         = 4 * n_embd
        attention.head_count            u32   n_head|num_attention_heads
        attention.head_count_kv         u32   -                         = n_head
        attention.layer_norm_epsilon    f32   layer_norm_epsilon        1e-5
    """),
    rows=(
        row("token_embd.weight", "{p}word_embeddings.weight", "n_vocab, n_embd"),
        *norm("token_embd_norm", "{p}word_embeddings_layernorm"),
        *norm("output_norm", "{p}ln_f"),
        HEAD,
        *norm("blk.{i}.attn_norm", _h + "input_layernorm"),
        *linear("blk.{i}.attn_qkv", _h + "self_attention.query_key_value", "3 * n_embd", "n_embd", _heads),
        *linear("blk.{i}.attn_output", _h + "self_attention.dense", "n_embd", "n_embd"),
        *norm("blk.{i}.ffn_norm", _h + "post_attention_layernorm"),
        *linear("blk.{i}.ffn_up", _h + "mlp.dense_h_to_4h", "n_ff", "n_embd"),
        *linear("blk.{i}.ffn_down", _h + "mlp.dense_4h_to_h", "n_embd", "n_ff"),
    ),
    prefixes=("transformer.", ""),
    dropped=(),
    tied=True,
    decoder={"positions": "alibi", "activation": "gelu_tanh", "activation_key": ""},
    finish=_finish,
    rebuild=_rebuild,
    reads="apply_residual_connection_post_layernorm",
    inert="slow_but_exact masked_softmax_fusion bias_dropout_fusion skip_bias_add skip_bias_add_qkv offset_alibi",
)

ARCHITECTURES = (BLOOM,)
