"""GLM 5 Next: Kimi's delta rules, latent attention with an indexer of pooled keys, and several streams of residuals."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.experts.deepseek_sparse import INDEXER_KEYS, indexer, kinds_of_indexers
from llmconv.convert.archs.parts import (
    COMMON,
    EMBEDDINGS,
    NEXTN,
    NORMS,
    choice_bias,
    count_nextn,
    each_layer,
    experts,
    gated_mlp,
    shared_experts,
    sigmoid_experts,
    uncount_nextn,
)
from llmconv.convert.archs.recurrent.kimi_linear import KIMI_LINEAR, dense_layers
from llmconv.convert.tables.architecture import Architecture, HfName, Key, Row, keys, row
from llmconv.convert.tables.config import look_up
from llmconv.convert.tables.loader import OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims, NegativeExp
from llmconv.errors import Unsupported

_at = "{p}layers.{i}."

_delta, _full = "not n_head_kv", "n_head_kv"

_further = "i >= n_layer - n_nextn"

_indexed = f"n_head_kv and (index_full or {_further})"

_KINDS = {"linear_attention": 0, "full_attention": 1, "indexed_attention": 1}


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    count, further = min(dims["n_layer"], 1 << 16), int(own.get("nextn_predict_layers", 0))
    kinds = config.get("layer_types")
    kinds = [("linear_attention", "full_attention")[i % 4 == 3] for i in range(count)] if kinds is None else kinds
    if not isinstance(kinds, list) or len(kinds) < count or set(kinds) - set(_KINDS):
        raise Unsupported(f"config.json: layer_types is {kinds!r:.60}, expected one of {', '.join(_KINDS)} a layer")
    own["attention.head_count_kv"] = np.asarray([_KINDS[kind] for kind in kinds[:count]] + [1] * further, np.int32)
    own["attention.indexer.types"] = np.asarray(kinds_of_indexers(config, count), np.bool_)
    rope, rank = int(config.get("qk_rope_head_dim", 0)), int(config["kv_lora_rank"])
    if rope:
        raise Unsupported(f"config.json: qk_rope_head_dim is {rope}; a model of this family has no positions: 0")
    own["rope.dimension_count"] = np.uint32(rope)
    own["attention.key_length"] = np.uint32(rank + rope)
    own["attention.value_length"] = np.uint32(rank)
    own["attention.key_length_mla"] = np.uint32(int(config["qk_nope_head_dim"]) + rope)
    own["attention.value_length_mla"] = np.uint32(config["v_head_dim"])
    heads = look_up(config, ("linear_num_heads", "linear_attn_config.num_heads"))
    if heads not in (None, dims["n_head"]):
        raise Unsupported(f"config.json: linear_num_heads is {heads}, expected num_attention_heads, {dims['n_head']}")
    own["leading_dense_block_count"] = np.uint32(dense_layers({"first_k_dense_replace": 3, **config}))
    for name in ("swiglu_clamp_exp", "swiglu_clamp_shexp"):
        if config.get("swiglu_limit") is not None:
            own[name] = np.full(count + further, config["swiglu_limit"], np.float32)
    if not further:
        own.pop("nextn_predict_layers", None)
    count_nextn(own)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    uncount_nextn(config, dims)
    config.setdefault("num_nextn_predict_layers", 0)
    count = config["num_hidden_layers"]
    full = each_layer(own, "attention.head_count_kv")[:count]
    config["layer_types"] = ["full_attention" if n else "linear_attention" for n in full]
    types = np.broadcast_to(own.get("attention.indexer.types", True), (count,))
    config["indexer_types"] = ["full" if on else "shared" for on in types]
    config["mlp_layer_types"] = ["dense" if i < dims["n_dense"] else "sparse" for i in range(count)]
    config["first_k_dense_replace"] = dims["n_dense"]
    config["num_key_value_heads"] = dims["n_head"]
    config["linear_attn_config"]["num_heads"] = dims["n_head"]
    config["qk_rope_head_dim"], config["v_head_dim"] = 0, dims["v_mla"]
    config["qk_nope_head_dim"] = dims["nope"]
    config["mla_use_nope"] = True
    config.pop("rope_theta", None)
    if "swiglu_clamp_exp" in own:
        config["swiglu_limit"] = float(np.ravel(own["swiglu_clamp_exp"])[0])


def _streams(where: str) -> tuple[Row, ...]:
    """Rows of what mixes the streams before and behind a block; layers for further tokens have one stream."""
    start = f"blk.{{i}}.hc_{where}_"
    shapes = (("fn", "(2 + n_hc) * n_hc, n_hc * n_embd"), ("base", "(2 + n_hc) * n_hc"), ("scale", "3"))
    return tuple(
        row(f"{start}{part}.weight", _at + f"hc_{where}_{part}", shape, when=f"not ({_further})")
        for part, shape in shapes
    )


def _delta_rows() -> tuple[Row, ...]:
    """Kimi Linear's rows of attention, with rates in a vector."""
    for_attention = (r for r in KIMI_LINEAR.rows if r.gguf[0].startswith(("blk.{i}.ssm_", "blk.{i}.attn_")))
    rates = row("blk.{i}.ssm_a", _at + "self_attn.A_log", "n_head", NegativeExp(), when=_delta)
    own = (r for r in for_attention if r.gguf[0] != NORMS[0].gguf[0])
    return tuple(rates if r.gguf[0] == "blk.{i}.ssm_a" else r for r in own)


_POOL = tuple(
    row(
        f"blk.{{i}}.indexer_compressor_{ours}.weight",
        _at + f"self_attn.indexer.index_kpool_compress_{ours}",
        shape,
        when=_indexed,
    )
    for ours, shape in (("gate", "index_dim, n_embd"), ("ape", "n_kpool, index_dim"))
)

GLM5_NEXT = Architecture(
    "glm5-next",
    (HfName("Glm5NextForConditionalGeneration", "glm5_next"),),
    keys=(
        *(key for key in COMMON if key.gguf != "rope.freq_base"),
        *sigmoid_experts(),
        *INDEXER_KEYS,
        *keys("""
            rope.freq_base                       f32   rope_theta
            vocab_size                           u32   vocab_size
            attention.q_lora_rank                u32   q_lora_rank
            attention.kv_lora_rank               u32   kv_lora_rank
            attention.indexer.kpool              u32   index_kpool                      16
            attention.indexer.kpool_select_tail  bool  index_kpool_always_select_tail   true
            hyper_connection.count               u32   hc_mult                          4
            hyper_connection.sinkhorn_iterations u32   hc_sinkhorn_iters                20
            hyper_connection.epsilon             f32   hc_eps                           1e-6
            nextn_predict_layers                 u32   num_nextn_predict_layers
        """),
        Key("ssm.conv_kernel", ("linear_attn_config.short_conv_kernel_size", "linear_conv_kernel_dim"), "u32", 4),
        Key("kda.head_dim", ("linear_attn_config.head_dim", "linear_head_dim"), "u32", 128),
        Key("kda.gate_lower_bound", ("linear_attn_config.gate_lower_bound", "linear_lower_bound"), "f32", -5.0),
    ),
    rows=(
        *EMBEDDINGS,
        *NORMS,
        *_streams("attn"),
        *_streams("ffn"),
        *_delta_rows(),
        *indexer(_indexed),
        *_POOL,
        *(r for r in gated_mlp(when="i < n_dense") if r.gguf[0].endswith(".weight")),
        *experts(),
        dataclasses.replace(choice_bias(), optional=False),
        *shared_experts(),
        *NEXTN,
    ),
    prefixes=("model.language_model.", "model.", "language_model.model.", ""),
    constants={"attention.layer_norm_epsilon": np.float32(1e-6)},
    finish=_finish,
    rebuild=_rebuild,
    decoder={"positions": "none", "gating": "sigmoid", "clamp_first": True, "dense_clamped": True},
    inside="glm5_next_text",
    reads="layer_types mlp_layer_types first_k_dense_replace indexer_types index_topk_pattern index_topk_freq"
    " index_skip_topk_offset qk_rope_head_dim qk_nope_head_dim v_head_dim kv_lora_rank linear_num_heads swiglu_limit"
    " linear_attn_config.num_heads",
    inert="qk_head_dim head_dim num_experts num_key_value_heads linear_attn_config.kda_layers topk_method"
    " linear_attn_config.full_attn_layers linear_attn_config.safe_gate",
    fixed={"mla_use_nope": True, "mhc": True},
    loader=Loader(
        refused=(*OUT_BIAS, *(f"blk.{{i}}.attn_{part}" for part in ("q_a.bias", "kv_a_mqa.bias"))),
        needed=("output.weight",),
    ),
)

ARCHITECTURES = (GLM5_NEXT,)
