"""Phi-3.5-MoE: Phi 3's long contexts, LayerNorms, two experts a token, each weighed against its near rivals alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.gpt.phi import PHI3
from llmconv.convert.archs.parts import EXPERTS, attention, norm
from llmconv.convert.tables.architecture import HfName, keys, row
from llmconv.convert.tables.loader import HEAD, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims, Stack
from llmconv.errors import Unsupported

_at = "{p}layers.{i}."

_experts = _at + "block_sparse_moe."

_FACTOR = "rope.scaling.attn_factor"


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """Phi 3's keys; but what multiplies cos and sin is stated, for short texts and for long ones."""
    if config.get("partial_rotary_factor") not in (None, 1):
        raise Unsupported(
            "config.json: partial_rotary_factor is not 1, which no phimoe model has: heads turn as a whole"
        )
    if own.get("expert_used_count", 2) != 2:
        raise Unsupported(
            f"config.json: num_experts_per_tok is {own['expert_used_count']}, but a phimoe model's router chooses two"
        )
    assert PHI3.finish is not None
    PHI3.finish(own, config, dims)
    rope = config.get("rope") or {}
    short, long = rope.get("short_mscale"), rope.get("long_mscale")
    if _FACTOR not in own or short is None:
        return
    if short != long:
        raise Unsupported(
            f"config.json: short_mscale {short:g} is not long_mscale {long:g}, for which GGUF has no place"
        )
    own[_FACTOR] = np.float32(short)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    assert PHI3.rebuild is not None
    PHI3.rebuild(config, own, dims)
    if _FACTOR in own:
        both = dict.fromkeys(("short_mscale", "long_mscale"), float(own[_FACTOR]))
        config["rope_scaling"] = {"type": "longrope", **both}


PHIMOE = PHI3.variant(
    "phimoe",
    HfName("PhimoeForCausalLM", "phimoe"),
    HfName("PhiMoEForCausalLM", "phimoe"),
    keys=(*EXPERTS, *keys("attention.layer_norm_rms_epsilon  f32  rms_norm_eps  1e-5")),
    drop=("blk.{i}.attn_qkv.weight", "blk.{i}.ffn_up.weight", "blk.{i}.ffn_down.weight"),
    rows=(
        *norm("output_norm", "{p}norm"),
        row("output.bias", "lm_head.bias", "n_vocab", optional="lm_head_bias"),
        *norm("blk.{i}.attn_norm", _at + "input_layernorm"),
        *norm("blk.{i}.ffn_norm", _at + "post_attention_layernorm"),
        *attention(),
        row("blk.{i}.ffn_gate_inp.weight", _experts + "gate.weight", "n_expert, n_embd"),
        row("blk.{i}.ffn_gate_exps.weight", _experts + "experts.{e}.w1.weight", "n_expert, n_ff, n_embd", Stack()),
        row("blk.{i}.ffn_down_exps.weight", _experts + "experts.{e}.w2.weight", "n_expert, n_embd, n_ff", Stack()),
        row("blk.{i}.ffn_up_exps.weight", _experts + "experts.{e}.w3.weight", "n_expert, n_ff, n_embd", Stack()),
    ),
    finish=_finish,
    rebuild=_rebuild,
    decoder={"norm": "layer", "gating": "sparsemixer"},
    reads="router_jitter_noise short_mscale long_mscale",
    inert="input_jitter_noise",
    loader=Loader(needed=(*HEAD, "output.bias", *OUT_BIAS), pieces={"gating": "softmax", "normalize_experts": True}),
)

ARCHITECTURES = (PHIMOE,)
