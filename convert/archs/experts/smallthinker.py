"""SmallThinker: the router reads what comes into a layer; every fourth layer sees everything and has no positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import COMMON, EMBEDDINGS, HEAD_DIM, NORMS, attention
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.loader import OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims, Stack
from llmconv.convert.tables.windows import PATTERN, usual_windows
from llmconv.errors import Unsupported

_moe = "{p}layers.{i}.block_sparse_moe."

_one = _moe + "experts.{e}."


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    n_layer = min(dims["n_layer"], 1 << 16)
    softmax = config.get("moe_primary_router_apply_softmax")
    own["expert_gating_func"] = np.uint32(1 if softmax else 2)
    windows = [bool(on) for on in config.get("sliding_window_layout") or [0] * n_layer][:n_layer]
    turning = [bool(on) for on in config.get("rope_layout") or windows][:n_layer]
    if not any(windows):
        own.pop("attention.sliding_window", None)
    elif windows != usual_windows(SMALLTHINKER.decoder, n_layer):
        own[PATTERN] = np.asarray(windows, np.bool_)
    if turning != (windows if any(windows) else [True] * n_layer):
        raise Unsupported("config.json: rope_layout is not that of the layers with windows, which no GGUF can say")


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["moe_primary_router_apply_softmax"] = bool(own.get("expert_gating_func") == 1)
    config["moe_ffn_hidden_size"] = dims["n_ff_exp"]
    windows = own.get(PATTERN, usual_windows(SMALLTHINKER.decoder, dims["n_layer"]))
    layout = [int(bool(on)) for on in windows] if dims["window"] else [0] * dims["n_layer"]
    config.update(sliding_window_layout=layout, rope_layout=layout if dims["window"] else [1] * dims["n_layer"])


SMALLTHINKER = Architecture(
    "smallthinker",
    (HfName("SmallThinkerForCausalLM", "smallthinker"),),
    keys=(
        *(k for k in COMMON if k.gguf != "feed_forward_length"),
        *HEAD_DIM,
        *keys("""
            feed_forward_length             u32   moe_ffn_hidden_size
            expert_feed_forward_length      u32   moe_ffn_hidden_size
            expert_count                    u32   moe_num_primary_experts
            expert_used_count               u32   moe_num_active_primary_experts
            attention.sliding_window        u32   sliding_window_size
        """),
    ),
    rows=(
        *EMBEDDINGS,
        *NORMS,
        *attention(),
        row("blk.{i}.ffn_gate_inp.weight", _moe + "primary_router.weight", "n_expert, n_embd"),
        row("blk.{i}.ffn_gate_exps.weight", _one + "gate.weight", "n_expert, n_ff_exp, n_embd", Stack()),
        row("blk.{i}.ffn_down_exps.weight", _one + "down.weight", "n_expert, n_embd, n_ff_exp", Stack()),
        row("blk.{i}.ffn_up_exps.weight", _one + "up.weight", "n_expert, n_ff_exp, n_embd", Stack()),
    ),
    finish=_finish,
    rebuild=_rebuild,
    decoder={
        "window_pattern": 4,
        "window_first": True,
        "rope_layers": "windowed if any",
        "activation": "relu",
        "activation_key": "",
        "normalize_experts": True,
        "router_first": True,
    },
    reads="sliding_window_layout rope_layout moe_primary_router_apply_softmax",
    inert="moe_layer_layout",
    fixed={"moe_enable_early_router": True, "norm_topk_prob": True, "moe_enable_secondary_experts": False},
    loader=Loader(unread=("attention.sliding_window_pattern",), refused=OUT_BIAS),
)

ARCHITECTURES = (SMALLTHINKER,)
