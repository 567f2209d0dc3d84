"""Step 3.5 and 3.7: a gate on each head, other heads in layers with windows, experts clamped in some layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import (
    COMMON,
    EMBEDDINGS,
    HEAD_DIM,
    NEXTN,
    NORMS,
    QK_NORMS,
    attention,
    count_nextn,
    gated_mlp,
    shifted,
    uncount_nextn,
)
from llmconv.convert.archs.rope import ROPE_FREQS, llama3_divisors
from llmconv.convert.tables.architecture import Architecture, Form, HfName, Key, Made, Row, keys, row
from llmconv.convert.tables.loader import HEAD, MLP_BIASES, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims
from llmconv.convert.tables.windows import PATTERN
from llmconv.errors import Unsupported

_at = "{p}layers.{i}."

_sparse = "i >= n_dense and i < n_layer - n_nextn"

_PART = 0.5  # of a head turns, in layers without a window


def _per_layer(config: Mapping[str, Any], name: str, count: int, missing: Any) -> list[Any]:
    """A setting of each layer, those for further tokens too, which some configurations leave out."""
    found = config.get(name) or []
    return [*found, *[missing] * (count - len(found))][:count]


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    count_nextn(own)
    count = min(int(own["block_count"]), 1 << 16)
    kinds = _per_layer(config, "layer_types", count, "full_attention")
    parts = _per_layer(config, "partial_rotary_factors", count, _PART)
    windowed = [kind == "sliding_attention" for kind in kinds]
    if config.get("partial_rotary_factors") and parts != [1.0 if on else _PART for on in windowed]:
        raise Unsupported("config.json: partial_rotary_factors are not 1 with a window and 0.5 without")
    other = config.get("attention_other_setting") or {}
    full = (dims["n_head"], dims["n_head_kv"])
    swa = (other.get("num_attention_heads", full[0]), other.get("num_attention_groups", full[1]))
    for key, which in (("attention.head_count", 0), ("attention.head_count_kv", 1)):
        own[key] = np.asarray([(swa if on else full)[which] for on in windowed], np.int32)
    own[PATTERN] = np.asarray(windowed, np.bool_)
    text = str(config.get("moe_layers_enum") or "")
    sparse = sorted(int(n) for n in text.split(",")) if text.strip() else []
    if sparse and sparse != list(range(sparse[0], sparse[0] + len(sparse))):
        raise Unsupported("config.json: moe_layers_enum leaves layers out, which no GGUF can say")
    own["leading_dense_block_count"] = np.uint32(sparse[0] if sparse else 0)
    for name, key in (("swiglu_limits", "swiglu_clamp_exp"), ("swiglu_limits_shared", "swiglu_clamp_shexp")):
        if config.get(name) is not None:
            own[key] = np.asarray([float(v or 0) for v in _per_layer(config, name, count, 0)], np.float32)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    windowed = [bool(on) for on in np.broadcast_to(own.get(PATTERN, False), (dims["n_layer"],))]
    config["partial_rotary_factors"] = [1.0 if on else _PART for on in windowed]
    base = float(own["rope.freq_base"])
    config["rope_theta"] = [float(own.get("rope.freq_base_swa", base)) if on else base for on in windowed]
    heads, groups = (np.broadcast_to(own[f"attention.head_count{s}"], (dims["n_layer"],)) for s in ("", "_kv"))
    pairs = {on: (int(h), int(g)) for on, h, g in zip(windowed, heads, groups, strict=True)}
    full, swa = pairs.get(False, pairs.get(True, (0, 0))), pairs.get(True)
    config["num_attention_heads"], config["num_attention_groups"] = full
    if swa is not None:
        config["attention_other_setting"] = {"num_attention_heads": swa[0], "num_attention_groups": swa[1]}
    sparse = range(dims["n_dense"], dims["n_layer"] - dims["n_nextn"])
    config["moe_layers_enum"] = ",".join(map(str, sparse))
    for name, key in (("swiglu_limits", "swiglu_clamp_exp"), ("swiglu_limits_shared", "swiglu_clamp_shexp")):
        if key in own:
            config[name] = [float(v) for v in own[key]]
    uncount_nextn(config, dims)


def _make_divisors(config: Mapping[str, Any], dims: Dims) -> Any:
    """Llama 3's, for the part that turns without a window; ones fill up a head's half."""
    found = llama3_divisors(config, int(dims["head_dim"] * _PART), float)
    if found is None:
        return None
    return np.concatenate([found, np.ones(dims["head_dim"] // 2 - len(found), np.float32)])


def _read_divisors(values: Any, config: dict[str, Any]) -> None:
    """The way back, from those of the part that turns."""
    bases = dict(zip(config["partial_rotary_factors"], config["rope_theta"], strict=True))
    found = {"rope_theta": bases.get(_PART, 10000.0)}
    ROPE_FREQS.read(values.reshape(-1)[: values.size // 2], found)
    config["rope_scaling"] = found["rope_scaling"]


def _experts(kind: str, shape: str) -> Row:
    return row(f"blk.{{i}}.ffn_{kind}_exps.weight", f"{_at}moe.{kind}_proj.weight", shape, when=_sparse)


_shared = _at + "share_expert."

_dense = "i < n_dense or i >= n_layer - n_nextn"


def _nextn() -> tuple[Row, ...]:
    """Under the names of its own code: shared_head lies one deeper, and its matrix is called output."""
    rows = []
    for r in shifted(NEXTN):
        name = r.forms[0].patterns[0].replace("shared_head.head", "shared_head.output")
        name = name.replace(".shared_head", ".transformer.shared_head")
        by = shifted(NORMS)[0].forms[0].ops if r.gguf[0].endswith("norm.weight") else ()
        rows.append(Row(r.gguf, (Form((name,), by),), r.shapes, r.when, r.optional))
    return tuple(rows)


STEP = Architecture(
    "step35",
    (
        HfName("Step3p5ForCausalLM", "step3p5"),
        HfName("Step3p7ForConditionalGeneration", "step3p7"),
        HfName("StepVLForConditionalGeneration", "step3_vl"),
    ),
    keys=(
        *(k for k in COMMON if k.gguf != "attention.head_count_kv"),
        *HEAD_DIM,
        *keys("""
            attention.head_count_kv             u32   num_attention_groups      = n_head
            attention.sliding_window            u32   sliding_window
            rope.freq_base_swa                  f32   rope_local_base_freq
            expert_count                        u32   moe_num_experts
            expert_used_count                   u32   moe_top_k
            expert_feed_forward_length          u32   moe_intermediate_size
            expert_shared_feed_forward_length   u32   share_expert_dim
            expert_weights_scale                f32   moe_router_scaling_factor
            expert_weights_norm                 bool  norm_expert_weight
            moe_every_n_layers                  u32   moe_every_n_layer         1
            nextn_predict_layers                u32   num_nextn_predict_layers
        """),
        Key("expert_gating_func", ("moe_router_activation",), "u32", None, {"softmax": 1, "sigmoid": 2}),
    ),
    rows=(
        *shifted(EMBEDDINGS),
        *shifted(NORMS),
        *attention(),
        *shifted(QK_NORMS),
        row("blk.{i}.attn_gate.weight", _at + "self_attn.g_proj.weight", "n_head, n_embd"),
        *gated_mlp(when=_dense),
        row("blk.{i}.ffn_gate_inp.weight", _at + "moe.gate.weight", "n_expert, n_embd", when=_sparse),
        row("blk.{i}.exp_probs_b.bias", _at + "moe.router_bias", "n_expert", when=_sparse, optional=True),
        _experts("gate", "n_expert, n_ff_exp, n_embd"),
        _experts("up", "n_expert, n_ff_exp, n_embd"),
        _experts("down", "n_expert, n_embd, n_ff_exp"),
        row("blk.{i}.ffn_gate_shexp.weight", _shared + "gate_proj.weight", "n_ff_shexp, n_embd", when=_sparse),
        row("blk.{i}.ffn_up_shexp.weight", _shared + "up_proj.weight", "n_ff_shexp, n_embd", when=_sparse),
        row("blk.{i}.ffn_down_shexp.weight", _shared + "down_proj.weight", "n_embd, n_ff_shexp", when=_sparse),
        *_nextn(),
    ),
    made=(Made("rope_freqs.weight", _make_divisors, _read_divisors),),
    finish=_finish,
    rebuild=_rebuild,
    prefixes=("model.", "", "model.language_model.", "language_model.model."),
    decoder={
        "window_pattern": 0,
        "window_rope_scaled": False,
        "full_turn_part": _PART,
        "gating": "sigmoid",
    },
    reads="layer_types partial_rotary_factors attention_other_setting moe_layers_enum swiglu_limits"
    " swiglu_limits_shared",
    inert="yarn_only_types use_moe use_moe_router_bias need_fp32_gate moe_layer_offset use_qk_norm share_q_dim"
    " use_mtp max_seq_len sink query_pre_attn_scalar",
    fixed={
        "use_head_wise_attn_gate": True,
        "zero_centered": True,
        "moe_every_n_layer": 1,
        "att_impl_type": "GQA",
    },
    loader=Loader(refused=(*MLP_BIASES, *OUT_BIAS), needed=HEAD),
)

ARCHITECTURES = (STEP,)
