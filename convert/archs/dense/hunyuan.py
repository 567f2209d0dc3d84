"""Hunyuan, dense: norms of queries and keys behind the rotation; a rotary base stretched by a fixed factor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import COMMON, EMBEDDINGS, HEAD_DIM, NORMS, attention, gated_mlp
from llmconv.convert.tables.architecture import Architecture, HfName, row
from llmconv.convert.tables.loader import MLP_BIASES, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims

_attn = "{p}layers.{i}.self_attn."

_WINDOW = 256 * 1024
"""The context that the stretched base is for; the configurations of its models say less."""


def stretched(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """The base of "dynamic" scaling with an alpha: base · alpha^(d / (d - 2)), whatever a text's length."""
    rope = config.get("rope") or {}
    alpha, base = rope.get("alpha"), rope.get("rope_theta", 10000.0)
    if str(rope.get("rope_type")).lower() != "dynamic" or not alpha:
        return
    dim = dims["head_dim"]
    own["rope.freq_base"] = np.float32(base * alpha ** (dim / (dim - 2)))
    own["rope.scaling.type"], own["rope.scaling.factor"] = "none", np.float32(1)
    own["rope.scaling.original_context_length"] = own["context_length"] = np.uint32(_WINDOW)


HUNYUAN_DENSE = Architecture(
    "hunyuan-dense",
    (HfName("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense"),),
    keys=(*COMMON, *HEAD_DIM),
    rows=(
        *EMBEDDINGS,
        *NORMS,
        *attention(),
        row("blk.{i}.attn_q_norm.weight", _attn + "query_layernorm.weight", "head_dim"),
        row("blk.{i}.attn_k_norm.weight", _attn + "key_layernorm.weight", "head_dim"),
        *gated_mlp(),
    ),
    finish=stretched,
    decoder={"qk_norm_after_rope": True},
    reads="alpha",
    inert="eod_token_id",
    loader=Loader(refused=(*MLP_BIASES, *OUT_BIAS)),
)

ARCHITECTURES = (HUNYUAN_DENSE,)
