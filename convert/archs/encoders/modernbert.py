"""ModernBERT: rotary positions, windows in two of three layers, gated MLPs, and no norm before the first attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.heads import labels, rebuild
from llmconv.convert.tables.architecture import Architecture, HfName, Key, keys, row
from llmconv.convert.tables.ops import Dims

_at = "{p}layers.{i}."


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["attention.causal"] = False
    own.setdefault("rope.scaling.type", "none")
    if isinstance(every := config.get("global_attn_every_n_layers"), int):
        own["attention.sliding_window_pattern"] = np.uint32(every)
    if isinstance(stated := config.get("hidden_activation"), str):
        own["hidden_activation"] = stated
    labels(own, config)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    rebuild(config, own, dims)
    if isinstance(every := own.get("attention.sliding_window_pattern"), int | np.integer):
        config["global_attn_every_n_layers"] = int(every)
    scaled = config.pop("rope_scaling", None) or {}  # of the layers without a window
    config["rope_parameters"] = {
        "full_attention": {"rope_type": "default", "rope_theta": float(own["rope.freq_base"])} | scaled,
        "sliding_attention": {"rope_type": "default", "rope_theta": float(own.get("rope.freq_base_swa", 10000.0))},
    }


MODERNBERT = Architecture(
    "modern-bert",
    (
        HfName("ModernBertModel", "modernbert"),
        HfName("ModernBertForMaskedLM", "modernbert"),
        HfName("ModernBertForSequenceClassification", "modernbert", "n_cls and not without_cls"),
    ),
    keys=(
        *keys("""
            block_count                     u32   num_hidden_layers
            context_length                  u32   max_position_embeddings
            embedding_length                u32   hidden_size
            feed_forward_length             u32   intermediate_size
            attention.head_count            u32   num_attention_heads
            attention.layer_norm_epsilon    f32   norm_eps|layer_norm_eps     1e-5
            attention.sliding_window        u32   local_attention             128
            rope.freq_base                  f32   rope_theta                  160000
            rope.freq_base_swa              f32   rope_local_base_freq        10000
            vocab_size                      u32   vocab_size
        """),
        Key("classifier.pooling_type", ("classifier_pooling",), "u32", None, {"mean": 1, "cls": 2}),
    ),
    rows=(
        row("token_embd.weight", "{p}embeddings.tok_embeddings.weight", "n_vocab, n_embd"),
        row("token_embd_norm.weight", "{p}embeddings.norm.weight", "n_embd"),
        row("output_norm.weight", "{p}final_norm.weight", "n_embd"),
        row("blk.{i}.attn_norm.weight", _at + "attn_norm.weight", "n_embd", when="i > 0"),
        row("blk.{i}.attn_qkv.weight", _at + "attn.Wqkv.weight", "3 * n_embd, n_embd"),
        row("blk.{i}.attn_output.weight", _at + "attn.Wo.weight", "n_embd, n_embd"),
        row("blk.{i}.ffn_norm.weight", _at + "mlp_norm.weight", "n_embd"),
        row("blk.{i}.ffn_up.weight", _at + "mlp.Wi.weight", "2 * n_ff, n_embd"),
        row("blk.{i}.ffn_down.weight", _at + "mlp.Wo.weight", "n_embd, n_ff"),
        row("cls.weight", "head.dense.weight", "n_embd, n_embd", when="n_cls", optional=lambda config: True),
        row("cls.norm.weight", "head.norm.weight", "n_embd", when="n_cls", optional=lambda config: True),
        row("cls.output.weight", "classifier.weight", "n_cls, n_embd", when="n_cls", optional=lambda config: True),
        row("cls.output.bias", "classifier.bias", "n_cls", when="n_cls", optional=lambda config: True),
    ),
    prefixes=("", "model."),
    kept=(r"head\.(dense|norm)\.(weight|bias)", r"decoder\.bias"),
    tied=True,
    finish=_finish,
    rebuild=_rebuild,
    decoder={
        "window_rope_scaled": False,
        "window_rope_base": 10000.0,
        "norm": "layer",
        "causal": False,
        "activation": "gelu",
        "activation_key": "hidden_activation",
        "window_pattern": 3,
        "window_first": True,
        "window_both_sides": True,
    },
    reads="global_attn_every_n_layers layer_types hidden_activation architectures id2label",
    inert="num_labels label2id problem_type decoder_bias sparse_prediction sparse_pred_ignore_index reference_compile"
    " repad_logits_with_grad deterministic_flash_attn embedding_dropout mlp_dropout classifier_dropout"
    " initializer_cutoff_factor position_embedding_type layer_norm_eps gradient_checkpointing",
    fixed={
        "norm_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "classifier_bias": False,
        "classifier_activation": "gelu",
    },
)

ARCHITECTURES = (MODERNBERT,)
