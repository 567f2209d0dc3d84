"""Command-R and Cohere2: attention and MLP in parallel, no biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import (
    COMMON,
    NEXTN,
    attention,
    count_nextn,
    experts,
    gated_mlp,
    shared_experts,
    uncount_nextn,
)
from llmconv.convert.tables.architecture import Architecture, HfName, Key, keys, row
from llmconv.convert.tables.loader import AS_WIDE, HEAD, MLP_BIASES, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims
from llmconv.errors import Unsupported

_at = "{p}layers.{i}."


def _no_scaling(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own.setdefault("rope.scaling.type", "none")


_NORMS = ("blk.{i}.attn_q_norm.weight", "blk.{i}.attn_k_norm.weight")
_NORMS_OF_THE_PLUS = tuple(f"{n} if n_layer >= 64" for n in _NORMS)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["logit_scale"] = float(own.get("logit_scale", 0)) or 1.0  # transformers takes another where none is stated


COMMAND_R = Architecture(
    "command-r",
    (HfName("CohereForCausalLM", "cohere"),),
    rebuild=_rebuild,
    keys=(
        *(k for k in COMMON if "epsilon" not in k.gguf),
        *keys("""
            attention.layer_norm_epsilon    f32   layer_norm_eps        1e-5
            logit_scale                     f32   logit_scale           0.0625
            attention.key_length            u32   head_dim
            attention.value_length          u32   head_dim
        """),
    ),
    rows=(
        row("token_embd.weight", "{p}embed_tokens.weight", "n_vocab, n_embd"),
        row("output_norm.weight", "{p}norm.weight", "n_embd"),
        row("output.weight", "lm_head.weight", "n_vocab, n_embd", optional="!tie_word_embeddings"),
        row("blk.{i}.attn_norm.weight", _at + "input_layernorm.weight", "n_embd"),
        *attention(),
        row("blk.{i}.attn_q_norm.weight", _at + "self_attn.q_norm.weight", "n_head, head_dim", optional="use_qk_norm"),
        row(
            "blk.{i}.attn_k_norm.weight", _at + "self_attn.k_norm.weight", "n_head_kv, head_dim", optional="use_qk_norm"
        ),
        *gated_mlp(),
    ),
    tied=True,
    finish=_no_scaling,
    decoder={"rope": "pairs", "parallel": True},
    loader=Loader(
        refused=(*MLP_BIASES, *OUT_BIAS, *HEAD, *(f"{n} if n_layer < 64" for n in _NORMS)),
        needed=_NORMS_OF_THE_PLUS,
        wants=AS_WIDE,
    ),
)


def _cohere2_finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    fraction = config.get("rotary_pct", 1.0)
    own["rope.dimension_count"] = np.uint32(int(fraction * dims["head_dim"]))
    own.setdefault("rope.scaling.type", "none")


COHERE2 = COMMAND_R.variant(
    "cohere2",
    HfName("Cohere2ForCausalLM", "cohere2"),
    keys=keys("""
        attention.sliding_window        u32   sliding_window        4096
        vocab_size                      u32   vocab_size
    """),
    drop=_NORMS,
    finish=_cohere2_finish,
    decoder={"window_pattern": 4, "rope_layers": "windowed"},
    reads="rotary_pct layer_types sliding_window_pattern",
    loader=Loader(unread=("attention.sliding_window_pattern",), without=_NORMS_OF_THE_PLUS),
)


def _windows(config: Mapping[str, Any], n_layer: int) -> list[bool]:
    """Which layers have a window; where no list says so, the dense ones in front are counted by themselves."""
    if isinstance(layers := config.get("layer_types"), list):
        return [kind == "sliding_attention" for kind in layers]
    n_layer = min(n_layer, 1 << 16)
    dense = min(int(config.get("first_k_dense_replace") or 0), n_layer)
    first, every = (
        int(config.get(f"{of}sliding_window_pattern") or usual) for of, usual in (("prefix_dense_", 1), ("", 4))
    )
    counted = [(i, first) for i in range(dense)] + [(i, every) for i in range(n_layer - dense)]
    return [(i + 1) % pattern != 0 for i, pattern in counted]


def _experts_finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    kinds, dense = config.get("mlp_layer_types"), config.get("first_k_dense_replace") or 0
    if isinstance(kinds, list):
        dense = next((i for i, kind in enumerate(kinds) if kind != "dense"), len(kinds))
    own["leading_dense_block_count"] = np.uint32(dense)
    width, shared = int(config.get("intermediate_size", dims["n_ff"])), int(own.get("expert_shared_count", 0))
    own["expert_feed_forward_length"] = np.uint32(width)
    if shared:
        own["expert_shared_feed_forward_length"] = np.uint32(width * shared)
    if own.get("expert_gating_func") == 1:  # a softmax over the chosen: over all, and made to sum to one
        own["expert_weights_norm"] = True
    if own.setdefault("rope.scaling.type", "none") != "none" and not config.get("rope_parameters"):
        raise Unsupported(
            "config.json: rope_scaling is not read in a cohere2_moe model; call it rope_parameters, or remove it"
        )
    windows = _windows(config, dims["n_layer"])
    own["attention.sliding_window_pattern"] = np.asarray(windows, np.bool_)
    if config.get("prefix_dense_sliding_window_pattern", 1) != 1 and not all(windows[:dense]):
        raise Unsupported(
            "config.json: prefix_dense_sliding_window_pattern is not 1, and a dense layer attends to everything "
            "without positions, for which GGUF has no place"
        )
    count_nextn(own)


def _experts_rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["prefix_dense_intermediate_size"], config["intermediate_size"] = dims["n_ff"], dims["n_ff_exp"]
    uncount_nextn(config, dims)
    kinds = ["dense" if i < dims["n_dense"] else "sparse" for i in range(config["num_hidden_layers"])]
    config["mlp_layer_types"] = kinds
    config.setdefault("expert_selection_fn", "sigmoid")
    config.setdefault("norm_topk_prob", False)
    if scaling := config.pop("rope_scaling", None):  # which transformers does not read in this family
        config["rope_parameters"] = {"rope_theta": config["rope_theta"], **scaling}


COHERE2_MOE = COHERE2.variant(
    "cohere2moe",
    HfName("Cohere2MoeForCausalLM", "cohere2_moe"),
    keys=(
        *keys("""
            feed_forward_length             u32   prefix_dense_intermediate_size|intermediate_size
            expert_count                    u32   num_experts
            expert_used_count               u32   num_experts_per_tok
            expert_shared_count             u32   num_shared_experts        0
            expert_weights_norm             bool  norm_topk_prob            false
            rope.dimension_count            u32   head_dim
            attention.layer_norm_rms_epsilon f32  rms_norm_eps
            nextn_predict_layers            u32   num_nextn_predict_layers
        """),
        Key("expert_gating_func", ("expert_selection_fn",), "u32", "softmax", {"softmax": 1, "sigmoid": 2}),
    ),
    rows=(*gated_mlp(when="i < n_dense"), *experts(), *shared_experts(), *NEXTN),
    finish=_experts_finish,
    rebuild=_experts_rebuild,
    decoder={
        "shared_average": True,
        "rope_layers": "windowed or dense",
        "gating": "sigmoid",
        "window_first": True,
    },
    reads="mlp_layer_types first_k_dense_replace intermediate_size prefix_dense_sliding_window_pattern rope_scaling",
    fixed={"shared_expert_combination_strategy": "average"},
    loader=Loader(without=(*AS_WIDE, *HEAD, "attention.sliding_window_pattern"), always_windows=True),
)

ARCHITECTURES = (COMMAND_R, COHERE2, COHERE2_MOE)
