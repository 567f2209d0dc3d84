"""Granite 4's hybrids and Bamba: Mamba 2 in most layers, attention in some.

Bamba is the one whose heads turn in part: of a GGUF alone that is how to tell them apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.llama.granite import GRANITE_MOE, scale_back
from llmconv.convert.archs.parts import attention, each_layer
from llmconv.convert.archs.recurrent.parts import NO_LIMIT, dual_scan, only
from llmconv.convert.tables.architecture import Form, HfName, keys, row
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Dims, PartHalves, Split
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
    if config.get("model_type") == "bamba":
        turns = True
        part = config.get("partial_rotary_factor", 0.5)
        own["rope.dimension_count"] = np.uint32(config.get("attn_rotary_emb") or int(dims["head_dim"] * part))
    own["rope.scaling.finetuned"] = turns  # which llama.cpp reads as: there are positions
    if not turns:
        own["context_length"] = np.uint32(1 << 20)


_NOT_BAMBA = (
    *("layer_types", "position_embedding_type", "shared_intermediate_size", "head_dim"),
    *("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"),
)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    heads = each_layer(own, "attention.head_count_kv")
    config["num_key_value_heads"] = max(heads)
    config["layer_types"] = ["full_attention" if n else "linear_attention" for n in heads]
    config["mamba_expand"] = dims["d_inner"] // dims["n_embd"]
    config["mamba_d_head"] = dims["d_inner"] // dims["dt_rank"]
    config["position_embedding_type"] = "rope" if own.get("rope.scaling.finetuned", True) else None
    config.setdefault("shared_intermediate_size", dims["n_ff"])
    scale_back(config, own, dims)
    if dims["n_rot"] < dims["head_dim"]:
        config |= {"architectures": ["BambaForCausalLM"], "model_type": "bamba"}
        config["attn_layer_indices"] = [i for i, n in enumerate(heads) if n]
        for name in _NOT_BAMBA:
            config.pop(name, None)


_shared, _ff = _at + "shared_mlp.", _at + "feed_forward."


def _bamba(*patterns: str) -> Form:
    """The names of a row in Bamba."""
    return Form(patterns, where="n_rot < head_dim")


def _attention() -> Any:
    """Attention's rows, rotary pairs side by side where heads turn."""
    turned = {f"blk.{{i}}.attn_{part}": PartHalves(heads) for part, heads in (("q", "n_head"), ("k", "n_head_kv"))}
    for each in attention():
        op = turned.get(each.gguf[0].rpartition(".")[0])
        forms = tuple(dataclasses.replace(form, ops=(op,) if op else ()) for form in each.forms)
        yield dataclasses.replace(each, forms=forms)


_mixture = tuple(r for r in GRANITE_MOE.rows if "_exps." in r.gguf[0] or "gate_inp" in r.gguf[0])

_halves = Split(("n_ff_shexp", "n_ff_shexp"))

GRANITE_HYBRID = GRANITE_MOE.variant(
    "granitehybrid",
    HfName("GraniteMoeHybridForCausalLM", "granitemoehybrid"),
    HfName("BambaForCausalLM", "bamba"),
    keys=keys("""
        ssm.conv_kernel                   u32   mamba_d_conv                4
        ssm.state_size                    u32   mamba_d_state               256
        ssm.group_count                   u32   mamba_n_groups              1
        ssm.time_step_rank                u32   mamba_n_heads               128
    """),
    rows=(
        row("output_norm.weight", "{p}norm.weight", "n_embd", alt=(_bamba("{p}final_layernorm.weight"),)),
        row(
            "blk.{i}.ffn_norm.weight",
            _at + "post_attention_layernorm.weight",
            "n_embd",
            alt=(_bamba(_at + "pre_ff_layernorm.weight"),),
        ),
        *only(tuple(_attention()), _full),
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
            alt=(_bamba(_ff + "gate_proj.weight", _ff + "up_proj.weight"),),
        ),
        row(
            "blk.{i}.ffn_down.weight",
            _shared + "output_linear.weight",
            "n_embd, n_ff_shexp",
            when="not n_expert",
            alt=(_bamba(_ff + "down_proj.weight"),),
        ),
        *(
            row(f"blk.{{i}}.ffn_{name}.bias", f"{_ff}{name}_proj.bias", size, when="not n_expert", optional="mlp_bias")
            for name, size in (("gate", "n_ff_shexp"), ("up", "n_ff_shexp"), ("down", "n_embd"))
        ),
    ),
    dims={"n_ff_shexp": "n_ff"},
    finish=_finish,
    rebuild=_rebuild,
    decoder={"positions_when": "rope.scaling.finetuned"},
    reads="layer_types layers_block_type attn_layer_indices position_embedding_type mamba_expand mamba_d_head"
    " partial_rotary_factor attn_rotary_emb",
    inert="mamba_chunk_size init_method normalization_function z_loss_coefficient num_logits_to_keep",
    fixed={"time_step_limit": NO_LIMIT},
    loader=Loader(
        refused=("blk.{i}.ssm_in.bias", "blk.{i}.ssm_out.bias"),
        needed=(f"blk.{{i}}.ssm_conv1d.bias if {_scan}",),
        wants={
            "d_inner == 2 * n_embd": "twice as many numbers in a scan as in a token's vector",
            "n_expert or n_ff_shexp == n_ff": "feed-forwards as wide as intermediate_size",
        },
    ),
)

ARCHITECTURES = (GRANITE_HYBRID,)
