"""Granite 4's hybrids and Bamba: Mamba 2 in most layers, attention in some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.llama.granite import GRANITE_MOE
from llmconv.convert.archs.parts import attention, each_layer
from llmconv.convert.archs.recurrent.parts import NO_LIMIT, dual_scan, only
from llmconv.convert.tables.architecture import HfName, keys, row
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Dims, Split
from llmconv.errors import Unsupported

_at = "{p}layers.{i}."

_LAYERS = 1 << 16  # as many as are looked at one by one

_KINDS = {"mamba": False, "linear_attention": False, "attention": True, "full_attention": True}

_scan, _full = "not n_head_kv", "n_head_kv"


def _attending(config: Mapping[str, Any], n_layer: int) -> list[bool]:
    """Which layers have attention."""
    kinds = config.get("layer_types", config.get("layers_block_type"))
    if isinstance(kinds, list):
        if unknown := [kind for kind in kinds if kind not in _KINDS]:
            raise Unsupported(f"config.json: layer_types has {unknown[0]!r:.60}; known: {', '.join(_KINDS)}")
        return [_KINDS[kind] for kind in kinds[:n_layer]]
    listed = config.get("attn_layer_indices") or []
    return [i in listed for i in range(n_layer)]


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    full = _attending(config, min(dims["n_layer"], _LAYERS))
    own["attention.head_count_kv"] = np.asarray([dims["n_head_kv"] * on for on in full], np.int32)
    own["ssm.inner_size"] = np.uint32(config.get("mamba_expand", 2) * dims["n_embd"])
    turns = config.get("position_embedding_type") == "rope"
    own["rope.scaling.finetuned"] = turns  # which llama.cpp reads as: there are positions
    if not turns:
        own["context_length"] = np.uint32(1 << 20)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    heads = each_layer(own, "attention.head_count_kv")
    config["num_key_value_heads"] = max(heads)
    config["layer_types"] = ["full_attention" if n else "linear_attention" for n in heads]
    config["mamba_expand"] = dims["d_inner"] // dims["n_embd"]
    config["mamba_d_head"] = dims["d_inner"] // dims["dt_rank"]
    config["position_embedding_type"] = "rope" if own.get("rope.scaling.finetuned", True) else None
    config.setdefault("shared_intermediate_size", dims["n_ff"])


_shared = _at + "shared_mlp."

_mixture = tuple(r for r in GRANITE_MOE.rows if "_exps." in r.gguf[0] or "gate_inp" in r.gguf[0])

_halves = Split(("n_ff_shexp", "n_ff_shexp"))

GRANITE_HYBRID = GRANITE_MOE.variant(
    "granitehybrid",
    HfName("GraniteMoeHybridForCausalLM", "granitemoehybrid"),
    keys=keys("""
        ssm.conv_kernel                   u32   mamba_d_conv                4
        ssm.state_size                    u32   mamba_d_state               256
        ssm.group_count                   u32   mamba_n_groups              1
        ssm.time_step_rank                u32   mamba_n_heads               128
    """),
    rows=(
        *only(attention(permuted=True), _full),
        *dual_scan(_at + "mamba.", _scan, "mamba_proj_bias", "mamba_conv_bias=true"),
        *only(_mixture[1:], "n_expert"),
        row(
            ("blk.{i}.ffn_gate_shexp.weight", "blk.{i}.ffn_up_shexp.weight"),
            _shared + "input_linear.weight",
            ("n_ff_shexp, n_embd", "n_ff_shexp, n_embd"),
            _halves,
            when="n_expert",
        ),
        row("blk.{i}.ffn_down_shexp.weight", _shared + "output_linear.weight", "n_embd, n_ff_shexp", when="n_expert"),
        row(
            ("blk.{i}.ffn_gate.weight", "blk.{i}.ffn_up.weight"),
            _shared + "input_linear.weight",
            ("n_ff_shexp, n_embd", "n_ff_shexp, n_embd"),
            _halves,
            when="not n_expert",
        ),
        row("blk.{i}.ffn_down.weight", _shared + "output_linear.weight", "n_embd, n_ff_shexp", when="not n_expert"),
    ),
    dims={"n_ff_shexp": "n_ff"},
    finish=_finish,
    rebuild=_rebuild,
    decoder={"positions_when": "rope.scaling.finetuned"},
    reads="layer_types layers_block_type attn_layer_indices position_embedding_type mamba_expand mamba_d_head",
    inert="mamba_chunk_size init_method normalization_function",
    fixed={"time_step_limit": NO_LIMIT},
    loader=Loader(
        refused=("blk.{i}.ssm_in.bias", "blk.{i}.ssm_out.bias"),
        wants={
            "d_inner == 2 * n_embd": "twice as many numbers in a scan as in a token's vector",
            "n_expert or n_ff_shexp == n_ff": "feed-forwards as wide as intermediate_size",
        },
    ),
)

ARCHITECTURES = (GRANITE_HYBRID,)
