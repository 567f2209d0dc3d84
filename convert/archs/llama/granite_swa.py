"""Granite with windows and sinks, dense and with experts; some layers may have no rotary positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.llama.granite import GRANITE, scale_back
from llmconv.convert.archs.parts import EXPERTS, HEAD_DIM, gated_mlp
from llmconv.convert.tables.architecture import Form, HfName, keys, row
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Dims
from llmconv.errors import Unsupported

_at = "{p}layers.{i}."

_moe = _at + "block_sparse_moe."


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    n_layer = min(dims["n_layer"], 1 << 16)
    kinds, bases = config.get("layer_types"), config.get("layer_rope_theta")
    windowed = [k == "sliding_attention" for k in kinds] if isinstance(kinds, list) else [i % 4 for i in range(n_layer)]
    own["attention.sliding_window_pattern"] = np.asarray(windowed[:n_layer], np.bool_)
    turning = config.get("no_rope_layers")  # which says which layers do have rotary positions
    if isinstance(bases, list):
        if len(stated := {base for base in bases if base}) > 1:
            raise Unsupported(f"config.json: layer_rope_theta has {sorted(stated)!r:.60}, expected one number or 0")
        own["rope.freq_base"] = np.float32(max(stated, default=own["rope.freq_base"]))
        turning = bases if not turning and 0 in bases else turning
    if turning:
        own["attention.rope_pattern"] = np.asarray(turning[:n_layer], np.bool_)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    scale_back(config, own, dims)
    if (turning := own.get("attention.rope_pattern")) is not None:
        config["layer_rope_theta"] = [float(own["rope.freq_base"]) if on else 0 for on in turning]


GRANITE_SWA = GRANITE.variant(
    "granite_swa",
    HfName("GraniteSWAForCausalLM", "granite_swa"),
    HfName("GraniteMoeSWAForCausalLM", "granitemoe_swa", when="n_expert"),
    keys=(
        *EXPERTS,
        *HEAD_DIM,
        *keys("""
            attention.sliding_window            u32   sliding_window              128
            expert_shared_feed_forward_length   u32   shared_intermediate_size
        """),
    ),
    rows=(
        row("blk.{i}.attn_sinks.weight", _at + "self_attn.sinks", "n_head"),
        *gated_mlp(when="not n_expert"),
        row("blk.{i}.ffn_gate_inp.weight", _moe + "router.weight", "n_expert, n_embd", when="n_expert"),
        row(
            "blk.{i}.ffn_gate_up_exps.weight",
            _moe + "experts.gate_up_proj",
            "n_expert, 2 * n_ff, n_embd",
            when="n_expert",
            alt=(Form((_moe + "input_linear.weight",)),),
        ),
        row(
            "blk.{i}.ffn_down_exps.weight",
            _moe + "experts.down_proj",
            "n_expert, n_embd, n_ff",
            when="n_expert",
            alt=(Form((_moe + "output_linear.weight",)),),
        ),
        row(
            "blk.{i}.ffn_up_shexp.weight",
            _at + "shared_mlp.input_linear.weight",
            "2 * n_ff_shexp, n_embd",
            when="n_ff_shexp and n_expert",
        ),
        row(
            "blk.{i}.ffn_down_shexp.weight",
            _at + "shared_mlp.output_linear.weight",
            "n_embd, n_ff_shexp",
            when="n_ff_shexp and n_expert",
        ),
    ),
    finish=_finish,
    rebuild=_rebuild,
    decoder={"window_pattern": 4, "window_first": True, "normalize_experts": True},
    reads="layer_types layer_rope_theta no_rope_layers",
    loader=Loader(without=("attention.sliding_window",), always_windows=True),
)

ARCHITECTURES = (GRANITE_SWA,)
