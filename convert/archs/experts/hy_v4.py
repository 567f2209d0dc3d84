"""HY V4: DeepSeek V3's latent attention with gates, sinks and indexers that layers share; streams of residuals."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.experts.deepseek import DEEPSEEK2
from llmconv.convert.archs.experts.deepseek_sparse import INDEXER_KEYS, LATENT_QUERIES, indexer
from llmconv.convert.tables.architecture import Form, HfName, Row, keys, row
from llmconv.convert.tables.loader import HEAD, Loader
from llmconv.convert.tables.ops import Dims
from llmconv.errors import Unsupported

_at = "{p}layers.{i}."

_SPARSE = {"sparse_attention", "deepseek_sparse_attention"}


def _full(config: Mapping[str, Any], count: int) -> list[bool]:
    """Which layers have an indexer of their own: as listed, as older configurations say, or every fourth."""
    kinds, layers = config.get("indexer_types"), config.get("layer_types")
    if kinds is None and isinstance(layers, list) and set(layers) & _SPARSE:
        return [kind in _SPARSE for kind in layers[:count]]
    if kinds is None:
        return [i == 0 or (i - 1) % 4 == 0 for i in range(count)]
    if len(kinds) < count or not set(kinds) <= {"full", "shared"} or kinds[:1] == ["shared"]:
        raise Unsupported(f"config.json: indexer_types is {kinds!r:.60}, expected full, then full or shared a layer")
    return [kind == "full" for kind in kinds[:count]]


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    count = min(dims["n_layer"], 1 << 16)
    assert DEEPSEEK2.finish is not None
    DEEPSEEK2.finish(own, config, dims)
    if own.get("expert_group_count", 1) == 1:
        for name in ("expert_group_count", "expert_group_used_count"):
            own.pop(name, None)
    own["attention.indexer.types"] = np.asarray(_full(config, count), np.bool_)
    if (limit := float(config.get("swiglu_limit") or 0.0)) > 0:
        own["swiglu_clamp_exp"] = np.full(count, limit, np.float32)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    assert DEEPSEEK2.rebuild is not None
    DEEPSEEK2.rebuild(config, own, dims)
    config.update(architectures=["HYV4ForCausalLM"], model_type="hy_v4")
    types = np.broadcast_to(own.get("attention.indexer.types", True), (dims["n_layer"],))
    config["indexer_types"] = ["full" if on else "shared" for on in types]
    dense = config.pop("first_k_dense_replace")
    config["mlp_layer_types"] = ["dense" if i < dense else "sparse" for i in range(dims["n_layer"])]
    config["swiglu_limit"] = float(np.ravel(own.get("swiglu_clamp_exp", 0.0))[0])


def _streams(gguf: str, names: tuple[str, str], mixed: str, scales: str) -> tuple[Row, ...]:
    """Rows of what makes one of the streams, or says how a block's result goes into them; names: published, and as
    transformers writes them."""
    shapes = (("fn", f"{mixed}, n_hc * n_embd"), ("base", mixed), ("scale", scales))
    published, again = names
    return tuple(
        row(f"{gguf}_{part}.weight", f"{published}_{part}", shape, alt=(Form((f"{again}_{part}",)),))
        for part, shape in shapes
    )


def _of_layer(block: str) -> tuple[str, str]:
    return _at + f"hc_{block}_layer.hc_pre.hc", _at + f"hc_pre.hc_{block}_layer.hc"


def _as_published(each: Row) -> Row:
    """Experts are stacked; transformers writes the gates of all blocks as those of attention are called."""
    own = each.forms[0].patterns
    if ".experts." in own[0]:
        apart, stacked, *others = each.forms
        return dataclasses.replace(each, forms=(stacked, apart, *others))
    if len(own) > 1 or ".gate_proj." not in own[0]:
        return each
    return dataclasses.replace(each, forms=(*each.forms, Form((own[0].replace(".gate_proj.", ".linear_gate."),))))


_TABLE = DEEPSEEK2.variant(
    "hy_v4",
    HfName("HYV4ForCausalLM", "hy_v4"),
    keys=(
        *INDEXER_KEYS,
        *keys("""
            hyper_connection.count       u32   hc_mult        4
            hyper_connection.epsilon     f32   hc_eps         1e-6
            hyper_connection.magnitude   f32   hc_magnitude   2
        """),
    ),
    rows=(
        *indexer("index_heads and index_full"),
        row("blk.{i}.attn_gate.weight", _at + "self_attn.linear_gate.weight", "n_head * v_mla, n_embd"),
        row("blk.{i}.attn_sinks.weight", _at + "self_attn.learnable_sink_param", "n_head"),
        *_streams("output_hc", ("{p}hc_head.hc_head", "{p}hc_pre.hc_head.hc_head"), "n_hc", "1"),
        *_streams("blk.{i}.hc_attn", _of_layer("attn"), "2 * n_hc", "2"),
        *_streams("blk.{i}.hc_ffn", _of_layer("mlp"), "2 * n_hc", "2"),
    ),
    drop=("nextn_predict_layers", *(r.gguf[0] for r in DEEPSEEK2.rows if ".nextn." in r.gguf[0])),
    unplaced=(r"(model\.)?mtp_layers\..*",),
    finish=_finish,
    rebuild=_rebuild,
    decoder={"rope": "halves", "indexer_rope_at_end": True, "indexer_eps_by_model": True, "clamp_first": True},
    reads="indexer_types layer_types swiglu_limit",
    fixed={"hidden_act": "silu"},  # clamped before and behind
    loader=LATENT_QUERIES.more(Loader(needed=HEAD, pieces={"rope": "pairs", "indexer_rope": "pairs"})),
    inert="num_nextn_predict_layers learnable_sink_init enable_lm_head_fp32",
)

HY_V4 = dataclasses.replace(_TABLE, rows=tuple(_as_published(each) for each in _TABLE.rows))

ARCHITECTURES = (HY_V4,)
