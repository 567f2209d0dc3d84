"""MiMo V2: windows with sinks and more key heads than full attention has, narrow values, DeepSeek V3's experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import (
    COMMON,
    EMBEDDINGS,
    NORMS,
    attention,
    choice_bias,
    experts,
    gated_mlp,
    uncount_nextn,
)
from llmconv.convert.tables.architecture import Architecture, Form, HfName, Key, Row, keys, row
from llmconv.convert.tables.loader import HEAD, OUT_BIAS, QKV_BIASES, Loader
from llmconv.convert.tables.ops import Dims
from llmconv.errors import Unsupported

_at, _mtp = "{p}layers.{i}.", "{p}mtp.layers.{m}."

_LAYERS = 1 << 16  # as many as are looked at one by one

_main, _further = "i < n_layer - n_nextn", "i >= n_layer - n_nextn"


def _per_layer(config: Mapping[str, Any], kinds: str, flags: str, on: str, usual: list[bool]) -> list[bool]:
    """Which layers are of a kind, by a list of kinds or of flags."""
    if isinstance(named := config.get(kinds), list):
        return [kind == on for kind in named]
    listed = config.get(flags)
    return [bool(flag) for flag in listed] if isinstance(listed, list) else usual


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    count = min(dims["n_layer"], _LAYERS)
    usual = [i > 0 and (i + 1) % 6 != 0 for i in range(count)]
    windowed = _per_layer(config, "layer_types", "hybrid_layer_pattern", "sliding_attention", usual)[:count]
    sparse = _per_layer(config, "mlp_layer_types", "moe_layer_freq", "sparse", [i > 0 for i in range(count)])[:count]
    further = int(config.get("mtp_num_hidden_layers") or 0)
    windowed, sparse = windowed + [True] * further, sparse + [False] * further
    narrow = config.get("swa_num_key_value_heads", 2 * dims["n_head_kv"])
    own["attention.head_count_kv"] = np.asarray([narrow if on else dims["n_head_kv"] for on in windowed], np.int32)
    own["attention.sliding_window_pattern"] = np.asarray(windowed, np.bool_)
    own["moe_layers"] = np.asarray(sparse, np.uint32)
    stretched = str((config.get("rope") or {}).get("rope_type") or "default") != "default"
    part = config.get("partial_rotary_factor") or 0.334  # as transformers takes it, but for stretched positions
    if stretched and not config.get("partial_rotary_factor"):
        raise Unsupported(
            "config.json: stretched positions turn whole heads, and those of windows a part of each; state a "
            "partial_rotary_factor for both"
        )
    own["rope.dimension_count"] = np.uint32(dims["head_dim"] * float(part))
    if (before := config.get("sliding_window_size")) is not None:  # which counts the tokens before
        own["attention.sliding_window"] = np.uint32(before + 1)
    own["block_count"] = np.uint32(dims["n_layer"] + further)
    if further:
        own["nextn_predict_layers"] = np.uint32(further)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    uncount_nextn(config, dims)
    config.pop("num_nextn_predict_layers", None)
    count = config["num_hidden_layers"]
    windowed = [bool(on) for on in np.atleast_1d(own.get("attention.sliding_window_pattern", []))][:count]
    heads = [int(n) for n in np.atleast_1d(own.get("attention.head_count_kv", 1))]
    config["num_key_value_heads"] = next((n for n, on in zip(heads, windowed, strict=False) if not on), heads[0] // 2)
    config["layer_types"] = ["sliding_attention" if on else "full_attention" for on in windowed]
    sparse = [bool(on) for on in np.atleast_1d(own.get("moe_layers", []))][:count]
    config["mlp_layer_types"] = ["sparse" if on else "dense" for on in sparse]
    config.setdefault("attention_value_scale", None)
    part = dims["n_rot"] / dims["head_dim"] + 1e-6  # it is rounded down
    bases = {"full": config.pop("rope_theta"), "sliding": float(own.get("rope.freq_base_swa", 10000.0))}
    config["rope_parameters"] = {
        f"{kind}_attention": {"rope_type": "default", "rope_theta": base, "partial_rotary_factor": part}
        for kind, base in bases.items()
    }
    if scaling := config.pop("rope_scaling", None):
        config["rope_parameters"]["full_attention"] |= scaling


def _told(tensors: Mapping[str, Any], dims: Dims) -> dict[str, Any]:
    """Which layers have experts, by their routers."""
    layers = range(min(dims["n_layer"], len(tensors)))
    return {"moe_layers": np.asarray([f"blk.{i}.ffn_gate_inp.weight" in tensors for i in layers], np.uint32)}


def _only(rows: Iterable[Row], when: str) -> tuple[Row, ...]:
    return tuple(dataclasses.replace(r, when=f"({when}) and ({r.when})" if r.when else when) for r in rows)


def _beyond(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The rows as the layers for further tokens have them."""
    out = []
    for each in _only(rows, _further):
        forms = tuple(
            dataclasses.replace(f, patterns=tuple(p.replace(_at, _mtp) for p in f.patterns)) for f in each.forms
        )
        out.append(dataclasses.replace(each, forms=forms))
    return tuple(out)


_attention = tuple(
    row("blk.{i}.attn_output.weight", _at + "self_attn.o_proj.weight", "n_embd, n_head * head_dim_v")
    if r.gguf[0] == "blk.{i}.attn_output.weight"
    else r
    for r in attention(out_bias=True)
    if r.gguf[0] != "blk.{i}.attn_output.bias"
)

_sinks = row("blk.{i}.attn_sinks.weight", _at + "self_attn.attention_sink_bias", "n_head", optional=True)

_NAMES = (
    ("nextn.eh_proj", "eh_proj", "n_embd, 2 * n_embd"),
    ("nextn.enorm", "enorm", "n_embd"),
    ("nextn.hnorm", "hnorm", "n_embd"),
    ("layer_output_norm", "final_layernorm", "n_embd"),
    ("attn_norm", "input_layernorm", "n_embd"),
)

_nextn = (
    *(row(f"blk.{{i}}.{gguf}.weight", _at + f"{hf}.weight", shape) for gguf, hf, shape in _NAMES),
    row(
        "blk.{i}.ffn_norm.weight",
        _at + "pre_mlp_layernorm.weight",
        "n_embd",
        alt=(Form((_at + "post_attention_layernorm.weight",)),),
    ),
)

MIMO2 = Architecture(
    "mimo2",
    (HfName("MiMoV2FlashForCausalLM", "mimo_v2_flash"), HfName("MiMoV2ForCausalLM", "mimo_v2")),
    keys=(
        *(key for key in COMMON if not key.gguf.endswith("epsilon")),
        *keys("""
            attention.layer_norm_rms_epsilon  f32   rms_norm_eps|layernorm_epsilon  1e-5
            attention.key_length              u32   head_dim                        192
            attention.value_length            u32   v_head_dim                      128
            attention.value_scale             f32   attention_value_scale
            attention.sliding_window          u32   sliding_window                  129
            rope.freq_base_swa                f32   rope_local_base_freq
            expert_count                      u32   n_routed_experts|num_local_experts
            expert_used_count                 u32   num_experts_per_tok
            expert_feed_forward_length        u32   moe_intermediate_size
            expert_group_count                u32   n_group
            expert_group_used_count           u32   topk_group
            expert_weights_norm               bool  norm_topk_prob                  true
            expert_weights_scale              f32   routed_scaling_factor
        """),
        Key("expert_gating_func", ("scoring_func",), "u32", "sigmoid", {"softmax": 1, "sigmoid": 2}),
    ),
    rows=(
        *EMBEDDINGS,
        *_only((*NORMS, *_attention, _sinks), _main),
        *_only(gated_mlp(when="not sparse"), _main),
        *experts(where="sparse"),
        choice_bias(where="sparse"),
        *_beyond((*_nextn, *_attention, _sinks, *gated_mlp())),
    ),
    dropped=(r".*\.rotary_emb\.inv_freq", r"(visual|audio_encoder|audio_tokenizer|speech_embeddings)\..*"),
    finish=_finish,
    rebuild=_rebuild,
    told=_told,
    decoder={"gating": "sigmoid", "normalize_experts": True, "window_rope_scaled": False, "window_rope_base": 10000.0},
    reads="layer_types hybrid_layer_pattern mlp_layer_types moe_layer_freq swa_num_key_value_heads"
    " partial_rotary_factor sliding_window_size mtp_num_hidden_layers swa_rope_theta",
    inert="first_k_dense_replace n_shared_experts add_swa_attention_sink_bias add_full_attention_sink_bias"
    " attention_chunk_size attention_projection_layout hybrid_block_size",
    fixed={"topk_method": "noaux_tc"},
    loader=Loader(
        unread=("expert_weights_norm", "expert_weights_scale"),
        untold=("moe_layers",),
        refused=OUT_BIAS,
        ignored=QKV_BIASES,
        needed=HEAD,
    ),
)

ARCHITECTURES = (MIMO2,)
