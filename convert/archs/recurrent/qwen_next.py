"""Qwen3-Next, Qwen 3.5 dense and with experts: gated delta rules in most layers, gated attention in the others.

The text models inside the multimodal classes too: a text's three-fold positions are plain ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from llmconv.convert.archs.llama.qwen import QWEN2_MOE
from llmconv.convert.archs.parts import COMMON, EMBEDDINGS, HEAD_DIM, QK_NORMS, attention, gated_mlp, shifted
from llmconv.convert.archs.recurrent.parts import only
from llmconv.convert.archs.rope import rope_sections
from llmconv.convert.tables.architecture import Architecture, HfName, Row, keys, row
from llmconv.convert.tables.loader import MLP_BIASES, OUT_BIAS, Loader
from llmconv.convert.tables.ops import (
    Concat,
    Dims,
    NegativeExp,
    Only,
    Reshape,
    Shift,
    Split,
    SwapColumns,
    SwapRows,
)
from llmconv.convert.tables.pieces import Pieces
from llmconv.errors import Unsupported

_at = "{p}layers.{i}."

_delta = _at + "linear_attn."

_LAYERS = 1 << 16  # as many as are looked at one by one

_KINDS = ("linear_attention", "full_attention")

_further = "i >= n_layer - n_nextn"

_first = "i == n_layer - n_nextn"

_linear = "recurrent == 1 or (recurrent < 0 and i < n_layer - n_nextn and (i + 1) % interval)"

_full = f"not ({_linear})"

_keys, _values = "2 * n_group * d_state", "d_inner"

_each, _wide = "dt_rank // n_group", "d_inner // dt_rank"  # heads that share a key; numbers of a head

KEYS = (
    *COMMON,
    *HEAD_DIM,
    *keys("""
        ssm.conv_kernel                   u32   linear_conv_kernel_dim     4
        ssm.state_size                    u32   linear_key_head_dim        128
        ssm.group_count                   u32   linear_num_key_heads       16
        ssm.time_step_rank                u32   linear_num_value_heads     32
        full_attention_interval           u32   full_attention_interval    4
        nextn_predict_layers              u32   mtp_num_hidden_layers
    """),
)


def _layers(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """Which layers have a state, and what is said of it; layers for further tokens are counted among the blocks."""
    n_layer, n_nextn = min(dims["n_layer"], _LAYERS), int(own.get("nextn_predict_layers", 0))
    kinds = config.get("layer_types")
    if isinstance(kinds, list):
        if unknown := [kind for kind in kinds if kind not in _KINDS]:
            raise Unsupported(f"config.json: layer_types has {unknown[0]!r:.60}; known: {', '.join(_KINDS)}")
        recurrent = [kind == "linear_attention" for kind in kinds[:n_layer]] + [False] * n_nextn
        own["attention.recurrent_layers"] = np.asarray(recurrent, np.bool_)
    own["ssm.inner_size"] = np.uint32(int(config.get("linear_value_head_dim", 128)) * dims["dt_rank"])
    part = (config.get("rope") or {}).get("partial_rotary_factor", 0.25)
    own["rope.dimension_count"] = np.uint32(int(dims["head_dim"] * part))
    if n_nextn:
        own["block_count"] = np.uint32(own["block_count"] + n_nextn)
    else:
        own.pop("nextn_predict_layers", None)


def _layers_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    """The way back of `_layers`."""
    count = dims["n_layer"] - dims["n_nextn"]
    config["num_hidden_layers"] = count
    recurrent = own.get("attention.recurrent_layers")
    if recurrent is None:
        recurrent = [(i + 1) % dims["interval"] != 0 for i in range(min(count, _LAYERS))]
    config["layer_types"] = [_KINDS[not on] for on in recurrent[:count]]
    config["linear_value_head_dim"] = dims["d_inner"] // dims["dt_rank"]
    config["partial_rotary_factor"] = dims["n_rot"] / dims["head_dim"]
    config.pop("full_attention_interval", None)
    if not dims["n_nextn"]:
        config.pop("mtp_num_hidden_layers", None)


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    _layers(own, config, dims)
    every, plain = config.get("decoder_sparse_step") or 1, config.get("mlp_only_layers") or []
    sparse = [int(i not in plain and (i + 1) % int(every) == 0) for i in range(min(dims["n_layer"], _LAYERS))]
    if not all(sparse):
        own["moe_layers"] = np.asarray(sparse + [1] * int(own.get("nextn_predict_layers", 0)), np.uint32)
    if config.get("norm_topk_prob") is False:
        own["expert_weights_norm"] = False


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    _layers_back(config, own, dims)
    config["norm_topk_prob"] = bool(own.get("expert_weights_norm", True))
    if (sparse := own.get("moe_layers")) is not None:
        config["mlp_only_layers"] = [i for i, on in enumerate(sparse) if not on]


def _queries(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Queries come with gates."""
    return tuple(
        replace(r, shapes=tuple(f"2 * {shape}" for shape in r.shapes)) if ".attn_q." in r.gguf[0] else r for r in rows
    )


def _predicting(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """The rows of a layer for further tokens, which lie beside the model, and what it has beside those of any layer."""
    own = tuple(replace(r, forms=tuple(_beside(form) for form in r.forms)) for r in rows if r.per_layer)
    at = "blk.{i}.nextn."
    return (
        *only(own, _further),
        row(at + "eh_proj.weight", "mtp.fc.weight", "n_embd, 2 * n_embd", when=_first),
        row(at + "enorm.weight", "mtp.pre_fc_norm_embedding.weight", "n_embd", Shift(), when=_first),
        row(at + "hnorm.weight", "mtp.pre_fc_norm_hidden.weight", "n_embd", Shift(), when=_first),
        row(at + "shared_head_norm.weight", "mtp.norm.weight", "n_embd", Shift(), when=_first),
    )


def _beside(form: Any) -> Any:
    return replace(form, patterns=tuple(p.replace(_at, "mtp.layers.{m}.") for p in form.patterns))


NORMS = shifted(
    (
        row("blk.{i}.attn_norm.weight", _at + "input_layernorm.weight", "n_embd"),
        row("blk.{i}.post_attention_norm.weight", _at + "post_attention_layernorm.weight", "n_embd"),
    )
)

_attention = (*_queries(attention()), *shifted(QK_NORMS))

_flat = Reshape((f"{_keys} + {_values}", 1, "d_conv"), (f"{_keys} + {_values}", "d_conv"))

_shares = ("n_group * d_state", "n_group * d_state", _values)

_grouped = (  # each key head's query, key, values and gates together
    row(
        ("blk.{i}.attn_qkv.weight", "blk.{i}.attn_gate.weight"),
        _delta + "in_proj_qkvz.weight",
        (f"{_keys} + {_values}, n_embd", f"{_values}, n_embd"),
        Split(("d_state", "d_state", f"({_each}) * ({_wide})", f"({_each}) * ({_wide})"), "n_group"),
        Only(0, Concat(_shares), 3),
        when=_linear,
    ),
    row("blk.{i}.ssm_ba.weight", _delta + "in_proj_ba.weight", "2 * dt_rank, n_embd", when=_linear),
    row(
        "blk.{i}.ssm_conv1d.weight",
        _delta + "conv1d.weight",
        f"{_keys} + {_values}, d_conv",
        _flat,
        when=_linear,
    ),
    row("blk.{i}.ssm_dt.bias", _delta + "dt_bias", "dt_rank", when=_linear),
    row("blk.{i}.ssm_a", _delta + "A_log", "dt_rank", NegativeExp(), when=_linear),
    row("blk.{i}.ssm_norm.weight", _delta + "norm.weight", _wide, when=_linear),
    row("blk.{i}.ssm_out.weight", _delta + "out_proj.weight", "n_embd, d_inner", when=_linear),
)

_heads, _in_heads = SwapRows("n_group", _each), SwapRows("n_group", _each, inner=_wide)

_of_values = (Split((_keys, _values)), Only(1, _in_heads), Concat((_keys, _values)))

_tiled = (  # heads that share a key lie apart
    row(
        "blk.{i}.attn_qkv.weight",
        _delta + "in_proj_qkv.weight",
        f"{_keys} + {_values}, n_embd",
        *_of_values,
        when=_linear,
    ),
    row("blk.{i}.attn_gate.weight", _delta + "in_proj_z.weight", f"{_values}, n_embd", _in_heads, when=_linear),
    row("blk.{i}.ssm_beta.weight", _delta + "in_proj_b.weight", "dt_rank, n_embd", _heads, when=_linear),
    row("blk.{i}.ssm_alpha.weight", _delta + "in_proj_a.weight", "dt_rank, n_embd", _heads, when=_linear),
    row(
        "blk.{i}.ssm_conv1d.weight",
        _delta + "conv1d.weight",
        f"{_keys} + {_values}, d_conv",
        _flat,
        *_of_values,
        when=_linear,
    ),
    row("blk.{i}.ssm_dt.bias", _delta + "dt_bias", "dt_rank", _heads, when=_linear),
    row("blk.{i}.ssm_a", _delta + "A_log", "dt_rank", NegativeExp(), _heads, when=_linear),
    row("blk.{i}.ssm_norm.weight", _delta + "norm.weight", _wide, when=_linear),
    row(
        "blk.{i}.ssm_out.weight",
        _delta + "out_proj.weight",
        "n_embd, d_inner",
        SwapColumns("n_group", _each, _wide),
        when=_linear,
    ),
)

_mixture = tuple(r for r in QWEN2_MOE.rows if r.gguf[0].startswith("blk.{i}.ffn_") and "ffn_norm" not in r.gguf[0])

_LOADER = Loader(
    unread=("expert_weights_norm",),
    refused=(*MLP_BIASES, *OUT_BIAS),
    wants={"d_inner == dt_rank * d_state": "values of as many numbers as keys in its delta rules"},
    pieces={"scan_norms_by_model": True},
)


def _family(
    gguf: str,
    *names: HfName,
    delta: tuple[Row, ...],
    mlp: tuple[Row, ...],
    pieces: Pieces | None = None,
    **changes: Any,
) -> Architecture:
    """A family's table, by its delta rules and what follows them."""
    shared = (*NORMS, *mlp)
    table = Architecture(
        gguf,
        names,
        rows=(*shifted(EMBEDDINGS), *shared, *only(_attention, _full), *delta),
        decoder={"mlp_norm": "post_attention_norm", "gated_queries": True, **(pieces or Pieces())},
        reads="layer_types linear_value_head_dim partial_rotary_factor mrope_section mrope_interleaved"
        " decoder_sparse_step mlp_only_layers norm_topk_prob",
        inert="mamba_ssm_dtype mtp_use_dedicated_embeddings",
        fixed={"attn_output_gate": True},
        loader=_LOADER,
        **changes,
    )
    here = only(tuple(r for r in table.rows if r.per_layer), f"not ({_further})")
    ends = tuple(r for r in table.rows if not r.per_layer)
    return replace(table, rows=(*ends, *here, *_predicting((*shared, *_attention))))


_EXPERT_KEYS = tuple(k for k in QWEN2_MOE.keys if k.gguf.startswith("expert_"))

QWEN3_NEXT = _family(
    "qwen3next",
    HfName("Qwen3NextForCausalLM", "qwen3_next"),
    keys=(*KEYS, *_EXPERT_KEYS),
    delta=_grouped,
    mlp=_mixture,
    pieces={"normalize_experts": True},
    finish=_finish,
    rebuild=_rebuild,
)


def _sections(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    _layers(own, config, dims)
    own["rope.dimension_sections"] = np.asarray([11, 11, 10, 0], np.int32)
    rope_sections(own, config, dims)


def _sections_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    _layers_back(config, own, dims)
    sections = own.get("rope.dimension_sections")
    if sections is not None:
        part = config.pop("partial_rotary_factor")
        config["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": config["rope_theta"],
            "partial_rotary_factor": part,
            "mrope_section": [int(n) for n in sections][:3],
            "mrope_interleaved": True,
        }


_PREFIXES = ("model.", "model.language_model.", "language_model.model.", "")

QWEN35 = _family(
    "qwen35",
    HfName("Qwen3_5ForCausalLM", "qwen3_5_text"),
    HfName("Qwen3_5ForConditionalGeneration", "qwen3_5"),
    HfName("MiniCPMV4_6ForConditionalGeneration", "minicpmv4_6"),
    keys=KEYS,
    delta=_tiled,
    mlp=gated_mlp(),
    finish=_sections,
    rebuild=_sections_back,
    prefixes=_PREFIXES,
)

QWEN35_MOE = _family(
    "qwen35moe",
    HfName("Qwen3_5MoeForCausalLM", "qwen3_5_moe_text"),
    HfName("Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe"),
    keys=(*KEYS, *_EXPERT_KEYS),
    delta=_tiled,
    mlp=tuple(r for r in _mixture if r.when != "not sparse"),
    pieces={"normalize_experts": True},
    finish=_sections,
    rebuild=_sections_back,
    prefixes=_PREFIXES,
)

ARCHITECTURES = (QWEN3_NEXT, QWEN35, QWEN35_MOE)
