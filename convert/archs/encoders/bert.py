"""BERT and its kin: encoders with norms after each block.

RoBERTa, XLM-R and CamemBERT are BERTs whose positions begin behind the padding's; DistilBERT has other names and no
types of tokens.  A pooler in front of a classifier is GGUF's `cls`; a lone pooler, and the heads that language models
were trained with, which llama.cpp has no use for, travel along.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.heads import CLASSIFIER, labels, rebuild
from llmconv.convert.archs.parts import norm
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Dims, Op, Tail
from llmconv.convert.tables.rows import Form, Row
from llmconv.errors import BadFile

_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert")
"""Types of models whose first position is the one behind the padding token's id."""


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["attention.causal"] = False
    labels(own, config)
    if config.get("model_type") == "distilbert":
        own["token_type_count"] = np.uint32(1)
    if config.get("model_type") in _AFTER_PADDING:
        padding = config.get("pad_token_id", 1)
        if not isinstance(padding, int) or not 0 <= padding < dims["n_ctx"] - 1:
            raise BadFile(f"config.json: pad_token_id is {padding!r:.40}, expected one before the last position")
        own["/" + own_keys.SKIPPED] = np.uint32(padding + 1)
        own["context_length"] = np.uint32(dims["n_ctx"] - padding - 1)


_DISTIL = {
    "hidden_size": "dim",
    "intermediate_size": "hidden_dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
}


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    rebuild(config, own, dims)
    if config["model_type"] == "distilbert":
        for name, theirs in _DISTIL.items():
            config[theirs] = config.pop(name)


def _linear(gguf: str, bert: str, distil: str, shape: str) -> tuple[Row, Row]:
    at = ("{p}encoder.layer.{i}.", "{p}transformer.layer.{i}.")
    return _both(gguf + ".weight", at[0] + bert + ".weight", at[1] + distil + ".weight", shape), _both(
        gguf + ".bias", at[0] + bert + ".bias", at[1] + distil + ".bias", shape.split(",")[0]
    )


def _both(gguf: str, bert: str, distil: str, shape: str, *ops: Op) -> Row:
    return row(gguf, bert, shape, *ops, alt=(Form((distil,), ops, without="token_types.weight"),))


BERT = Architecture(
    "bert",
    (
        HfName("BertModel", "bert"),
        HfName("BertForMaskedLM", "bert"),
        HfName("BertForSequenceClassification", "bert", "n_cls and not without_cls and not without_token_types"),
        HfName("RobertaModel", "roberta"),
        HfName("RobertaForMaskedLM", "roberta"),
        HfName("RobertaForSequenceClassification", "roberta"),
        HfName("XLMRobertaModel", "xlm-roberta"),
        HfName("XLMRobertaForMaskedLM", "xlm-roberta"),
        HfName("XLMRobertaForSequenceClassification", "xlm-roberta"),
        HfName("CamembertModel", "camembert"),
        HfName("CamembertForMaskedLM", "camembert"),
        HfName("CamembertForSequenceClassification", "camembert"),
        HfName(
            "DistilBertForSequenceClassification", "distilbert", "n_cls and not without_cls and without_token_types"
        ),
        HfName("DistilBertModel", "distilbert", "without_token_types"),
        HfName("DistilBertForMaskedLM", "distilbert"),
    ),
    keys=keys("""
        block_count                     u32   num_hidden_layers|n_layers
        context_length                  u32   max_position_embeddings
        embedding_length                u32   hidden_size|dim
        feed_forward_length             u32   intermediate_size|hidden_dim
        attention.head_count            u32   num_attention_heads|n_heads
        attention.layer_norm_epsilon    f32   layer_norm_eps            1e-12
        token_type_count                u32   type_vocab_size           2
    """),
    rows=(
        row("token_embd.weight", "{p}embeddings.word_embeddings.weight", "n_vocab, n_embd"),
        row(
            "token_types.weight",
            "{p}embeddings.token_type_embeddings.weight",
            "n_token_types, n_embd",
            optional=lambda config: config.get("model_type") != "distilbert",
        ),
        row("position_embd.weight", "{p}embeddings.position_embeddings.weight", "n_ctx, n_embd", Tail("n_skip")),
        *norm("token_embd_norm", "{p}embeddings.LayerNorm"),
        *_linear("blk.{i}.attn_q", "attention.self.query", "attention.q_lin", "n_embd, n_embd"),
        *_linear("blk.{i}.attn_k", "attention.self.key", "attention.k_lin", "n_embd, n_embd"),
        *_linear("blk.{i}.attn_v", "attention.self.value", "attention.v_lin", "n_embd, n_embd"),
        *_linear("blk.{i}.attn_output", "attention.output.dense", "attention.out_lin", "n_embd, n_embd"),
        *_linear("blk.{i}.attn_output_norm", "attention.output.LayerNorm", "sa_layer_norm", "n_embd"),
        *_linear("blk.{i}.ffn_up", "intermediate.dense", "ffn.lin1", "n_ff, n_embd"),
        *_linear("blk.{i}.ffn_down", "output.dense", "ffn.lin2", "n_embd, n_ff"),
        *_linear("blk.{i}.layer_output_norm", "output.LayerNorm", "output_layer_norm", "n_embd"),
        *CLASSIFIER,
    ),
    prefixes=("", "bert.", "roberta.", "distilbert."),
    dropped=(r".*embeddings\.position_ids",),
    kept=(
        r"(bert\.|roberta\.)?pooler\.dense\.(weight|bias)",
        r"cls\..*",
        r"lm_head\.((dense|layer_norm)\.(weight|bias)|bias|decoder\.bias)",
        r"vocab_(transform|layer_norm)\.(weight|bias)|vocab_projector\.bias",
    ),
    tied=True,
    finish=_finish,
    rebuild=_rebuild,
    fits=lambda config: config.get("position_embedding_type") != "rotary" and not config.get("lora_adaptations"),
    decoder={"positions": "learned", "causal": False, "activation": "gelu"},
    fixed={
        "is_decoder": False,
        "add_cross_attention": False,
        "position_embedding_type": "absolute",
        "activation": "gelu",
    },
    inert="pooler_type directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers"
    " pooler_size_per_head embedding_size sinusoidal_pos_embds seq_classif_dropout qa_dropout output_past"
    " num_labels id2label label2id problem_type pad_token_id",
    loader=Loader(),
)

ARCHITECTURES = (BERT,)
