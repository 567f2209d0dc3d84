"""NeoBERT: norms before each block, rotary positions of neighbours, gated MLPs, no biases.

Its folder keeps each head's query, key and value together in one matrix, and its code (chandar-lab/NeoBERT) takes them
apart so; llama.cpp takes all queries first, so they are put in that order.  `attention.qkv_groups` says of how many
groups they were; files of others have the folder's order and no such key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.heads import labels, rebuild
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.ops import Concat, Dims, Split

_at = "{p}transformer_encoder.{i}."


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["attention.causal"] = False
    own["attention.qkv_groups"] = np.uint32(dims["n_head"])
    own["feed_forward_length"] = np.uint32((2 * dims["n_ff"] // 3 + 7) // 8 * 8)  # two thirds, in multiples of 8
    labels(own, config)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    rebuild(config, own, dims)
    config["intermediate_size"] = (3 * dims["n_ff"] + 1) // 2
    config["dim_head"] = dims["head_dim"]
    config["hidden_act"] = "SwiGLU"


NEOBERT = Architecture(
    "neo-bert",
    (
        HfName("NeoBERT", "neobert"),
        HfName("NeoBERTForSequenceClassification", "neobert", "n_cls and not without_cls"),
        HfName("NeoBERTLMHead", "neobert"),
    ),
    keys=keys("""
        block_count                       u32   num_hidden_layers
        context_length                    u32   max_length|max_position_embeddings
        embedding_length                  u32   hidden_size
        feed_forward_length               u32   intermediate_size
        attention.head_count              u32   num_attention_heads
        attention.layer_norm_rms_epsilon  f32   norm_eps                  1e-6
    """),
    rows=(
        row("token_embd.weight", "{p}encoder.weight", "n_vocab, n_embd"),
        row("enc.output_norm.weight", "{p}layer_norm.weight", "n_embd"),
        row("blk.{i}.attn_norm.weight", _at + "attention_norm.weight", "n_embd"),
        row(
            "blk.{i}.attn_qkv.weight",
            _at + "qkv.weight",
            "3 * n_embd, n_embd",
            Split(("n_embd // qkv_groups",) * 3, "qkv_groups"),
            Concat(("n_embd",) * 3),
        ),
        row("blk.{i}.attn_output.weight", _at + "wo.weight", "n_embd, n_embd"),
        row("blk.{i}.ffn_norm.weight", _at + "ffn_norm.weight", "n_embd"),
        row("blk.{i}.ffn_up.weight", _at + "ffn.w12.weight", "2 * n_ff, n_embd"),
        row("blk.{i}.ffn_down.weight", _at + "ffn.w3.weight", "n_embd, n_ff"),
        row("cls.weight", "dense.weight", "n_embd, n_embd", when="n_cls", optional=lambda config: True),
        row("cls.bias", "dense.bias", "n_embd", when="n_cls", optional=lambda config: True),
        row("cls.output.weight", "classifier.weight", "n_cls, n_embd", when="n_cls", optional=lambda config: True),
        row("cls.output.bias", "classifier.bias", "n_cls", when="n_cls", optional=lambda config: True),
    ),
    prefixes=("model.", ""),
    dropped=(r"(model\.)?freqs_cis",),
    kept=(r"decoder\.(weight|bias)", r"(dense|classifier)\.(weight|bias)"),
    constants={
        "rope.freq_base": np.float32(10000.0),
        "rope.scaling.type": "none",
        "pooling_type": np.uint32(2),  # of the first token, as its card says
    },
    finish=_finish,
    rebuild=_rebuild,
    decoder={"causal": False, "rope": "pairs", "side": "enc", "qkv_by_head": True, "activation_key": ""},
    reads="architectures id2label",
    inert="dim_head kwargs decoder_init_range embedding_init_range classifier_init_range classifier_dropout"
    " num_labels label2id problem_type return_dict gradient_checkpointing",
    fixed={"hidden_act": ("SwiGLU", "swiglu"), "rms_norm": True, "rope": True, "ngpt": False, "flash_attention": None},
)

ARCHITECTURES = (NEOBERT,)
