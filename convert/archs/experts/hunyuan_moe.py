"""Hunyuan A13B and Hy3: their dense family's attention with experts and a shared one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.dense.hunyuan import HUNYUAN_DENSE, stretched
from llmconv.convert.archs.parts import (
    COMMON,
    EMBEDDINGS,
    HEAD_DIM,
    NEXTN,
    NORMS,
    QK_NORMS,
    attention,
    choice_bias,
    count_nextn,
    experts,
    gated_mlp,
    shared_experts,
    sigmoid_experts,
    uncount_nextn,
)
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.loader import MLP_BIASES, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims
from llmconv.errors import Unsupported

_at = "{p}layers.{i}."


def _same(config: Mapping[str, Any], name: str, default: int) -> int:
    """A setting that is a number, or a list with the same one for each layer."""
    value: Any = config.get(name)
    if isinstance(value, list) and value:
        if any(one != value[0] for one in value):
            raise Unsupported(f"config.json: {name} differs from layer to layer, for which GGUF has no place")
        value = value[0]
    return default if value is None else int(value)


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    stretched(own, config, dims)
    shared = _same(config, "num_shared_expert", 1)
    own["expert_used_count"] = np.uint32(_same(config, "moe_topk", 1))
    own["expert_feed_forward_length"] = np.uint32(_same(config, "moe_intermediate_size", dims["n_ff"]))
    own["expert_shared_count"] = np.uint32(shared)
    own["expert_shared_feed_forward_length"] = np.uint32(dims["n_ff"])


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    n_layer = dims["n_layer"]
    config["moe_topk"] = [dims["n_expert_used"]] * n_layer
    config["moe_intermediate_size"] = [dims["n_ff_exp"]] * n_layer
    config["num_shared_expert"] = [dims["n_expert_shared"] or 1] * n_layer


HUNYUAN_MOE = HUNYUAN_DENSE.variant(
    "hunyuan-moe",
    HfName("HunYuanMoEV1ForCausalLM", "hunyuan_v1_moe"),
    keys=keys("expert_count  u32  num_experts|num_local_experts"),
    drop=[r.gguf[0] for r in gated_mlp()],
    rows=(
        row("blk.{i}.ffn_gate_inp.weight", _at + "mlp.gate.wg.weight", "n_expert, n_embd"),
        *experts()[1:],
        *shared_experts("mlp.shared_mlp."),
    ),
    finish=_finish,
    rebuild=_rebuild,
    decoder={"normalize_experts": True, "rope_stretched": False},
    reads="moe_topk moe_intermediate_size num_shared_expert",
    inert="num_experts_per_tok num_local_experts sep_token_id moe_drop_tokens moe_layer_num_skipped org_vocab_size"
    " capacity_factor",
    fixed={"use_qk_norm": True, "use_mixed_mlp_moe": True, "use_cla": False, "norm_type": "rms"},
)


def _finish3(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    kinds = config.get("mlp_layer_types")
    dense = int(config.get("first_k_dense_replace", 1))
    if isinstance(kinds, list):
        dense = next((i for i, kind in enumerate(kinds) if kind != "dense"), len(kinds))
    shared = int(config.get("num_shared_experts") or 1)
    own["expert_shared_feed_forward_length"] = np.uint32(int(own["expert_feed_forward_length"]) * shared)
    if dense != 1:  # which GGUFs of the family leave out
        own["leading_dense_block_count"] = np.uint32(dense)
    count_nextn(own)


def _rebuild3(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    uncount_nextn(config, dims)
    kinds = ["dense" if i < dims["n_dense"] else "sparse" for i in range(config["num_hidden_layers"])]
    config["mlp_layer_types"] = kinds
    if dims["n_ff_exp"]:
        config["num_shared_experts"] = dims["n_ff_shexp"] // dims["n_ff_exp"]


_OWN = ("expert_shared_count", "expert_weights_scale", "expert_weights_norm")

_HY3_EXPERTS = sigmoid_experts(count="num_experts")

HY3 = Architecture(
    "hy_v3",
    (HfName("HYV3ForCausalLM", "hy_v3"),),
    keys=(
        *(k for k in COMMON if k.gguf != "rope.freq_base"),
        *HEAD_DIM,
        *(k for k in _HY3_EXPERTS if "group" not in k.gguf and k.gguf not in _OWN),
        *keys("""
            rope.freq_base                  f32   rope_theta                11158840
            expert_weights_scale            f32   router_scaling_factor     1
            expert_weights_norm             bool  route_norm                true
            nextn_predict_layers            u32   num_nextn_predict_layers
        """),
    ),
    rows=(
        *EMBEDDINGS,
        *NORMS,
        *attention(),
        *QK_NORMS,
        *gated_mlp(when="i < n_dense"),
        row("blk.{i}.ffn_gate_inp.weight", _at + "mlp.router.gate.weight", "n_expert, n_embd", when="i >= n_dense"),
        *experts()[1:],
        choice_bias("mlp.expert_bias", gguf="exp_probs_b"),
        *shared_experts("mlp.shared_mlp."),
        *NEXTN,
    ),
    dims={"n_dense": "1"},
    finish=_finish3,
    rebuild=_rebuild3,
    decoder={"gating": "sigmoid"},
    reads="mlp_layer_types first_k_dense_replace num_shared_experts",
    inert="num_local_experts enable_moe_fp32_combine",
    loader=Loader(refused=(*MLP_BIASES, *OUT_BIAS)),
)

ARCHITECTURES = (HUNYUAN_MOE, HY3)
