"""Gemma 3n: several streams that layers update in turn (AltUp), learned residuals (Laurel), vectors for each layer,
feed-forwards of which only the largest inputs pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np

from llmconv.convert.archs.gemma.gemma4 import (
    FOUR_NORMS,
    PER_LAYER,
    PIECES,
    WORDS,
    lent_attention,
    table_of_layers,
    windows_of,
)
from llmconv.convert.archs.parts import EMBEDDINGS
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.loader import OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims, Padded, Stack
from llmconv.convert.tables.windows import PATTERN

_at = "{p}layers.{i}."
_streams = (
    row("altup_proj.weight", "{p}altup_projections.{a}.weight", "n_more, n_embd, n_embd", Stack()),
    row("altup_unembd_proj.weight", "{p}altup_unembed_projections.{a}.weight", "n_more, n_embd, n_embd", Stack()),
    row("blk.{i}.altup_router.weight", _at + "altup.modality_router.weight", "n_altup, n_embd"),
    row("blk.{i}.altup_router_norm.weight", _at + "altup.router_norm.weight", "n_embd"),
    row("blk.{i}.altup_predict_coef.weight", _at + "altup.prediction_coefs.weight", "n_altup * n_altup, n_altup"),
    row("blk.{i}.altup_correct_coef.weight", _at + "altup.correction_coefs.weight", "n_altup, n_altup"),
    row("blk.{i}.altup_correct_scale.weight", _at + "altup.correct_output_scale", "n_embd"),
    row("blk.{i}.laurel_l.weight", _at + "laurel.linear_left.weight", "n_laurel, n_embd"),
    row("blk.{i}.laurel_r.weight", _at + "laurel.linear_right.weight", "n_embd, n_laurel"),
    row("blk.{i}.laurel_post_norm.weight", _at + "laurel.post_laurel_norm.weight", "n_embd"),
)

_words = row(
    "per_layer_token_embd.weight",
    "{p}embed_tokens_per_layer.weight",
    "n_vocab, n_layer * n_ple",
    Padded(WORDS, "n_vocab"),  # pictures and sounds have places in the vocabulary, and no vectors
    when="n_ple",
)

_mlp = (
    row("blk.{i}.ffn_gate.weight", _at + "mlp.gate_proj.weight", "n_ff, n_embd"),
    row("blk.{i}.ffn_up.weight", _at + "mlp.up_proj.weight", "n_ff, n_embd"),
    row("blk.{i}.ffn_down.weight", _at + "mlp.down_proj.weight", "n_embd, n_ff"),
)


def _deviations(part: float) -> float:
    """By how many standard deviations the largest of a normal distribution stand out, all but this part of them."""
    return -math.inf if part <= 0 else NormalDist().inv_cdf(part)


def _of_each(value: Any, count: int) -> list[Any]:
    return list(value) if isinstance(value, list) else [value] * count


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    count = min(int(own["block_count"]), 1 << 16)
    own[PATTERN] = np.asarray(windows_of(config, count, 5), np.bool_)
    widths = [int(n) for n in _of_each(config.get("intermediate_size", 16384), count)]
    own["feed_forward_length"] = np.asarray(widths, np.int32)
    parts = config.get("activation_sparsity_pattern")
    usual = [0.95] * 10 + [0.0] * (count - 10) if count > 10 else [0.0] * count
    parts = usual if parts is None else _of_each(parts, count)
    own["activation_sparsity_scale"] = np.asarray([_deviations(float(p)) for p in parts], np.float32)
    if own.get("laurel_rank") == 64:  # all published
        del own["laurel_rank"]
    table_of_layers(own, config)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    count = dims["n_layer"]
    widths = np.broadcast_to(own.get("feed_forward_length", 16384), (count,))
    config["intermediate_size"] = [int(n) for n in widths]
    cut = np.broadcast_to(own.get("activation_sparsity_scale", -math.inf), (count,))
    config["activation_sparsity_pattern"] = [round(NormalDist().cdf(float(n)), 6) for n in cut]
    config["laurel_rank"] = dims["n_laurel"]
    config["vocab_size_per_layer_input"] = dims["n_ple_vocab"] or dims["n_vocab"]
    config["rope_parameters"] = {
        "full_attention": {"rope_type": "default", "rope_theta": float(config.pop("rope_theta", 1e6))},
        "sliding_attention": {"rope_type": "default", "rope_theta": float(config.pop("rope_local_base_freq", 1e4))},
    }
    if scaling := config.pop("rope_scaling", None):
        config["rope_parameters"]["full_attention"] |= scaling


GEMMA3N = Architecture(
    "gemma3n",
    (HfName("Gemma3nForCausalLM", "gemma3n_text"), HfName("Gemma3nForConditionalGeneration", "gemma3n")),
    keys=keys("""
        block_count                       u32   num_hidden_layers                  35
        context_length                    u32   max_position_embeddings            32768
        embedding_length                  u32   hidden_size                        2048
        attention.head_count              u32   num_attention_heads                8
        attention.head_count_kv           u32   num_key_value_heads                2
        rope.freq_base                    f32   rope_theta                         1000000
        rope.freq_base_swa                f32   rope_local_base_freq               10000
        attention.layer_norm_rms_epsilon  f32   rms_norm_eps                       1e-6
        attention.key_length              u32   head_dim                           256
        attention.value_length            u32   head_dim                           256
        attention.sliding_window          u32   sliding_window                     512
        attention.shared_kv_layers        u32   num_kv_shared_layers               15
        embedding_length_per_layer_input  u32   hidden_size_per_layer_input        256
        final_logit_softcapping           f32   final_logit_softcapping            30
        altup.active_idx                  u32   altup_active_idx                   0
        altup.num_inputs                  u32   altup_num_inputs                   4
        laurel_rank                       u32   laurel_rank                        64
        vocab_size_per_layer_input        u32   -
    """),
    rows=(*EMBEDDINGS, _words, *PER_LAYER[1:], *FOUR_NORMS, *lent_attention("head_dim"), *_mlp, *_streams),
    prefixes=("model.", "model.language_model.", "language_model.model.", ""),
    dims={"n_more": "n_altup - 1"},
    tied=True,
    finish=_finish,
    rebuild=_rebuild,
    decoder={**PIECES, "window_pattern": 5},
    reads="layer_types intermediate_size activation_sparsity_pattern vocab_size_per_layer_input",
    inert="altup_coef_clip",
    fixed={"altup_correct_scale": True},
    loader=Loader(
        pieces={"lends_last_two": True, "cut_layers": 10, "lends_from": 20},
        refused=OUT_BIAS,
        unread=("attention.shared_kv_layers", "laurel_rank", "activation_sparsity_scale", "altup.active_idx"),
        needed=tuple(f"blk.{{i}}.attn_{part}.weight" for part in ("k", "v", "k_norm")),
        wants={
            "n_altup == 4": "four streams",
            "n_laurel == 64": "learned residuals of rank 64",
            "n_ple == 256": "vectors of 256 numbers for each layer",
            "n_shared == n_layer - 20": "20 layers with keys and values of their own",
        },
    ),
)

ARCHITECTURES = (GEMMA3N,)
