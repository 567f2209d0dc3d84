"""BERT: an encoder, norms after each block.  Its pooler and heads, which llama.cpp has no use for, travel along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmconv.convert.archs.parts import linear, norm
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.ops import Dims

_at = "{p}encoder.layer.{i}."

_self = _at + "attention.self."


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["attention.causal"] = False


BERT = Architecture(
    "bert",
    (HfName("BertModel", "bert"), HfName("BertForMaskedLM", "bert"), HfName("BertForSequenceClassification", "bert")),
    keys=keys("""
        block_count                     u32   num_hidden_layers
        context_length                  u32   max_position_embeddings
        embedding_length                u32   hidden_size
        feed_forward_length             u32   intermediate_size
        attention.head_count            u32   num_attention_heads
        attention.layer_norm_epsilon    f32   layer_norm_eps            1e-12
        token_type_count                u32   type_vocab_size           2
    """),
    rows=(
        row("token_embd.weight", "{p}embeddings.word_embeddings.weight", "n_vocab, n_embd"),
        row("token_types.weight", "{p}embeddings.token_type_embeddings.weight", "n_token_types, n_embd"),
        row("position_embd.weight", "{p}embeddings.position_embeddings.weight", "n_ctx, n_embd"),
        *norm("token_embd_norm", "{p}embeddings.LayerNorm"),
        *linear("blk.{i}.attn_q", _self + "query", "n_embd", "n_embd"),
        *linear("blk.{i}.attn_k", _self + "key", "n_embd", "n_embd"),
        *linear("blk.{i}.attn_v", _self + "value", "n_embd", "n_embd"),
        *linear("blk.{i}.attn_output", _at + "attention.output.dense", "n_embd", "n_embd"),
        *norm("blk.{i}.attn_output_norm", _at + "attention.output.LayerNorm"),
        *linear("blk.{i}.ffn_up", _at + "intermediate.dense", "n_ff", "n_embd"),
        *linear("blk.{i}.ffn_down", _at + "output.dense", "n_embd", "n_ff"),
        *norm("blk.{i}.layer_output_norm", _at + "output.LayerNorm"),
    ),
    prefixes=("", "bert."),
    dropped=(r".*embeddings\.position_ids",),
    kept=(r"(bert\.)?pooler\.dense\.(weight|bias)", r"cls\..*", r"classifier\.(weight|bias)"),
    tied=True,
    finish=_finish,
    decoder={"positions": "learned", "causal": False, "activation": "gelu"},
    fixed={"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"},
    inert="pooler_type directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers"
    " pooler_size_per_head embedding_size",
)

ARCHITECTURES = (BERT,)
