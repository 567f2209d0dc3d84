"""Granite and Granite-MoE: Llama with multipliers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.llama.llama import LLAMA, NOT_DENSE
from llmconv.convert.archs.parts import EXPERTS, check_text_model, gated_mlp
from llmconv.convert.tables.architecture import HfName, keys, row
from llmconv.convert.tables.ops import Dims, Split
from llmconv.errors import Unsupported

_at = "{p}layers.{i}."

_dense = [r.gguf[0] for r in gated_mlp()]

_AROUND = ("granite_speech", "granite_speech_plus")


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """Around it: a tower that hears, or one that sees, some of whose projectors' results deeper layers take."""
    if config.get("model_type") in _AROUND:
        check_text_model(config, (*_AROUND, "granite"))
    n = dims["n_layer"]
    deep = [int(layer) for _, layer in config.get("deepstack_layer_map") or ()]
    deep += [int(layer) for layer in config.get("spatial_target_layers") or ()]
    layers = sorted(layer + n if layer < 0 else layer for layer in deep)
    if layers:
        taken = np.full(n, -1, np.int32)
        for number, layer in list(enumerate(layers))[1:]:  # what the first gives is the picture's place in the text
            if not 0 <= layer < n:
                raise Unsupported(f"config.json: a projector's results are for layer {layer}, and there are {n}")
            taken[layer] = number
        own["deepstack_mapping"] = taken
    elif isinstance(said := config.get("deepstack_mapping"), list):  # of a text model's half alone
        own["deepstack_mapping"] = np.array([int(number) for number in said], np.int32)


def scale_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    """What scores are multiplied by in llama.cpp where a file does not say; transformers takes 1."""
    if "attention.scale" not in own:
        config["attention_multiplier"] = 1 / math.sqrt(dims["head_dim"])


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    scale_back(config, own, dims)
    if "deepstack_mapping" in own:
        config["deepstack_mapping"] = [int(n) for n in own["deepstack_mapping"]]


GRANITE = LLAMA.variant(
    "granite",
    HfName("GraniteForCausalLM", "granite"),
    HfName("GraniteSpeechForConditionalGeneration", "granite_speech"),
    HfName("GraniteSpeechPlusForConditionalGeneration", "granite_speech_plus"),
    HfName("Granite4VisionForConditionalGeneration", "granite4_vision"),
    drop=NOT_DENSE,
    keys=keys("""
        attention.scale     f32   attention_multiplier
        embedding_scale     f32   embedding_multiplier
        residual_scale      f32   residual_multiplier
        logit_scale         f32   logits_scaling
    """),
    finish=_finish,
    rebuild=_rebuild,
    reads="deepstack_layer_map spatial_target_layers deepstack_mapping",
    decoder={"logit_scale_divides": True},
    inert="logits_to_keep",
)

_experts = _at + "block_sparse_moe."

GRANITE_MOE = GRANITE.variant(
    "granitemoe",
    HfName("GraniteMoeForCausalLM", "granitemoe"),
    HfName("GraniteMoeSharedForCausalLM", "granitemoeshared", when="n_ff_shexp"),
    keys=(*EXPERTS, *keys("expert_shared_feed_forward_length  u32  shared_intermediate_size")),
    rows=(
        row("blk.{i}.ffn_gate_inp.weight", _experts + "router.layer.weight", "n_expert, n_embd", when="n_expert"),
        row(
            ("blk.{i}.ffn_gate_exps.weight", "blk.{i}.ffn_up_exps.weight"),
            _experts + "input_linear.weight",
            ("n_expert, n_ff, n_embd", "n_expert, n_ff, n_embd"),
            Split(("n_ff", "n_ff"), "n_expert", hf_stacked=True, gguf_stacked=True),
            when="n_expert",
        ),
        row("blk.{i}.ffn_down_exps.weight", _experts + "output_linear.weight", "n_expert, n_embd, n_ff"),
        row(
            ("blk.{i}.ffn_gate_shexp.weight", "blk.{i}.ffn_up_shexp.weight"),
            _at + "shared_mlp.input_linear.weight",
            ("n_ff_shexp, n_embd", "n_ff_shexp, n_embd"),
            Split(("n_ff_shexp", "n_ff_shexp")),
            when="n_ff_shexp",
        ),
        row(
            "blk.{i}.ffn_down_shexp.weight",
            _at + "shared_mlp.output_linear.weight",
            "n_embd, n_ff_shexp",
            when="n_ff_shexp",
        ),
    ),
    drop=_dense,
    decoder={"normalize_experts": True},
)

ARCHITECTURES = (GRANITE, GRANITE_MOE)
