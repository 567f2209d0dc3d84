"""GLM 4.5 to 4.7 with experts, and Solar Open: sigmoid scores, a bias on the choice, a shared expert."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmconv.convert.archs.parts import (
    COMMON,
    EMBEDDINGS,
    HEAD_DIM,
    NEXTN,
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
from llmconv.convert.archs.rope import partial_rotary, rope_sections, sections_back
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.loader import CHOICE, MLP_BIASES, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims

_at = "{p}layers.{i}."


_half, _half_back = partial_rotary("partial_rotary_factor", 0.5)


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    if config.get("model_type") == "solar_open":  # whose heads turn as a whole, and which has no dense layers
        config = {"partial_rotary_factor": 1.0, **config}
    _half(own, config, dims)
    rope_sections(own, config, dims)
    count_nextn(own)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    _half_back(config, own, dims)
    config["first_k_dense_replace"] = dims["n_dense"]  # which a Solar Open leaves out, and means none
    uncount_nextn(config, dims)
    if sections_back(config, own):
        config.update(architectures=["Glm4vMoeForConditionalGeneration"], model_type="glm4v_moe")


GLM4_MOE = Architecture(
    "glm4moe",
    (
        HfName("Glm4MoeForCausalLM", "glm4_moe"),
        HfName("SolarOpenForCausalLM", "solar_open"),
        HfName("Glm4vMoeForConditionalGeneration", "glm4v_moe"),
    ),
    keys=(
        *COMMON,
        *HEAD_DIM,
        *sigmoid_experts(),
        *keys("""
            leading_dense_block_count       u32   first_k_dense_replace
            nextn_predict_layers            u32   num_nextn_predict_layers|num_mtp_layers
        """),
    ),
    rows=(
        *EMBEDDINGS,
        row("blk.{i}.attn_norm.weight", _at + "input_layernorm.weight", "n_embd"),
        row("blk.{i}.post_attention_norm.weight", _at + "post_attention_layernorm.weight", "n_embd"),
        *attention(out_bias=True),
        row(QK_NORMS[0].gguf[0], _at + "self_attn.q_norm.weight", "head_dim", optional="use_qk_norm"),
        row(QK_NORMS[1].gguf[0], _at + "self_attn.k_norm.weight", "head_dim", optional="use_qk_norm"),
        *gated_mlp(when="i < n_dense"),
        *experts(),
        replace(choice_bias(), optional=False),
        *shared_experts(),
        *NEXTN,
    ),
    finish=_finish,
    rebuild=_rebuild,
    decoder={"mlp_norm": "post_attention_norm", "gating": "sigmoid", "normalize_experts": True},
    prefixes=("model.", "", "model.language_model.", "language_model.model."),
    reads="partial_rotary_factor model_type mrope_section",
    inert="num_local_experts num_mtp_layers",
    loader=Loader(refused=(*MLP_BIASES, *OUT_BIAS), needed=CHOICE, pieces={"normalize_experts": False}),
)

ARCHITECTURES = (GLM4_MOE,)
