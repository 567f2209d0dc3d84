"""OPT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import linear, norm
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Dims

_opt = "{p}layers.{i}."


def _opt_finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["norm_before"] = bool(config.get("do_layer_norm_before", True))
    width = config.get("word_embed_proj_dim") or dims["n_embd"]
    own["word_embedding_length"] = np.uint32(width)
    own.pop("hidden_activation", None)
    if config.get("_remove_final_layer_norm"):
        own["final_norm"] = False
    own["activation"] = str(config.get("activation_function", "relu"))


def _opt_rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["_remove_final_layer_norm"] = not own.get("final_norm", True)
    config["do_layer_norm_before"] = bool(own.get("norm_before", True))
    config["word_embed_proj_dim"] = int(own.get("word_embedding_length", dims["n_embd"]))
    config["activation_function"] = str(own.get("activation", "relu"))


def _final_norm(config: Mapping[str, Any]) -> bool:
    return bool(config.get("do_layer_norm_before", True)) and not config.get("_remove_final_layer_norm", False)


OPT = Architecture(
    "opt",  # a name of our own: llama.cpp has no OPT
    (HfName("OPTForCausalLM", "opt"), HfName("OPTModel", "opt")),
    keys=(
        *keys("""
            block_count             u32   num_hidden_layers
            context_length          u32   max_position_embeddings
            embedding_length        u32   hidden_size
            feed_forward_length     u32   ffn_dim
            attention.head_count    u32   num_attention_heads
            vocab_size              u32   vocab_size
            attention.layer_norm_epsilon  f32  -  1e-5
        """),
    ),
    rows=(
        row("token_embd.weight", "{p}embed_tokens.weight", "n_vocab, n_word"),
        row("position_embd.weight", "{p}embed_positions.weight", "n_ctx + 2, n_embd"),
        row("token_embd_in.weight", "{p}project_in.weight", "n_embd, n_word", when="n_word != n_embd"),
        row("output_in.weight", "{p}project_out.weight", "n_word, n_embd", when="n_word != n_embd"),
        *norm("output_norm", "{p}final_layer_norm", optional=_final_norm),
        row("output.weight", "lm_head.weight", "n_vocab, n_word", optional="!tie_word_embeddings"),
        *norm("blk.{i}.attn_norm", _opt + "self_attn_layer_norm"),
        *linear("blk.{i}.attn_q", _opt + "self_attn.q_proj", "n_embd", "n_embd", bias="enable_bias"),
        *linear("blk.{i}.attn_k", _opt + "self_attn.k_proj", "n_embd", "n_embd", bias="enable_bias"),
        *linear("blk.{i}.attn_v", _opt + "self_attn.v_proj", "n_embd", "n_embd", bias="enable_bias"),
        *linear("blk.{i}.attn_output", _opt + "self_attn.out_proj", "n_embd", "n_embd", bias="enable_bias"),
        *norm("blk.{i}.ffn_norm", _opt + "final_layer_norm"),
        *linear("blk.{i}.ffn_up", _opt + "fc1", "n_ff", "n_embd", bias="enable_bias"),
        *linear("blk.{i}.ffn_down", _opt + "fc2", "n_embd", "n_ff", bias="enable_bias"),
    ),
    prefixes=("model.decoder.", "decoder.", ""),
    tied=True,
    finish=_opt_finish,
    rebuild=_opt_rebuild,
    decoder={
        "positions": "learned",
        "position_offset": 2,
        "activation": "relu",
        "activation_key": "activation_function",
    },
    reads="do_layer_norm_before word_embed_proj_dim activation_function _remove_final_layer_norm",
    fixed={"layer_norm_elementwise_affine": True},
    loader=Loader(exists=False),
)

ARCHITECTURES = (OPT,)
