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
    decoder={"qk_norm_after_rope": True, "rope_stretched": True},
    reads="alpha",
    inert="eod_token_id",
    loader=Loader(refused=(*MLP_BIASES, *OUT_BIAS)),
)


def _threefold(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """Of the vision model's "xdrope" GGUF keeps base and alpha apart; for a text its sections are all the same."""
    rope = config.get("rope") or {}
    sections = rope.get("xdrope_section") or rope.get("mrope_section")
    if sections is None:
        return
    own["rope.scaling.alpha"] = np.float32(rope.get("alpha", 1))
    own["rope.scaling.type"], own["rope.scaling.factor"] = "none", np.float32(rope.get("factor", 1))
    own["rope.scaling.original_context_length"] = own["context_length"]
    own["rope.dimension_sections"] = np.asarray(sections, np.int32)


def _threefold_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    if (sections := own.get("rope.dimension_sections")) is not None:
        alpha = float(own.get("rope.scaling.alpha", 1))
        scaling = {"type": "xdrope", "alpha": alpha, "factor": 1.0, "xdrope_section": [int(n) for n in sections]}
        config["rope_scaling"] = scaling


HUNYUAN_VL = HUNYUAN_DENSE.variant(
    "hunyuan_vl",
    HfName("HunYuanVLForConditionalGeneration", "hunyuan_vl"),
    tied=True,
    finish=_threefold,
    rebuild=_threefold_back,
    prefixes=("model.", "", "model.language_model.", "language_model.model."),
    reads="xdrope_section mrope_section",
    inert="image_start_token_id image_end_token_id image_token_id image_newline_token_id text_start_id text_end_id"
    " org_vocab_size eod_token_id pad_id sep_token_id im_start_id im_end_id im_newline_id attention_head_dim norm_type"
    " routed_scaling_factor use_cla cla_share_factor use_qk_norm mlp_bias mask_init_id num_experts",
)

ARCHITECTURES = (HUNYUAN_DENSE, HUNYUAN_VL)
