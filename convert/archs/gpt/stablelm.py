"""StableLM: Llama's layout with LayerNorm and partial rotary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmconv.convert.archs.parts import COMMON_BUT_EPSILON, LAYER_NORMS, attention, gated_mlp, norm
from llmconv.convert.archs.rope import partial_rotary
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.loader import HEAD, MLP_BIASES, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Stack

_at = "{p}layers.{i}."

_finish, _rebuild = partial_rotary("partial_rotary_factor|rope_pct", 0.25)


def _norm_between(config: Mapping[str, Any]) -> bool:
    return not config.get("use_parallel_residual", False)


STABLELM = Architecture(
    "stablelm",
    (
        HfName("StableLmForCausalLM", "stablelm"),
        HfName("StableLMEpochForCausalLM", "stablelm_epoch"),
        HfName("LlavaStableLMEpochForCausalLM", "llava_stablelm_epoch"),
    ),
    keys=(
        *COMMON_BUT_EPSILON,
        *keys("""
            attention.layer_norm_epsilon    f32   layer_norm_eps|norm_eps     1e-5
            use_parallel_residual           bool  use_parallel_residual       false
        """),
    ),
    rows=(
        *LAYER_NORMS,
        *norm("blk.{i}.ffn_norm", _at + "post_attention_layernorm", optional=_norm_between),
        *attention(bias="use_qkv_bias", out_bias=True),
        row(
            "blk.{i}.attn_q_norm.weight",
            _at + "self_attn.q_layernorm.norms.{q}.weight",
            "n_head, head_dim",
            Stack(),
            optional="qk_layernorm",
        ),
        row(
            "blk.{i}.attn_k_norm.weight",
            _at + "self_attn.k_layernorm.norms.{k}.weight",
            "n_head_kv, head_dim",
            Stack(),
            optional="qk_layernorm",
        ),
        *gated_mlp(),
    ),
    finish=_finish,
    rebuild=_rebuild,
    reads="partial_rotary_factor rope_pct",
    inert="rotary_scaling_factor norm_bias head_dim",
    loader=Loader(refused=(*MLP_BIASES, *OUT_BIAS), needed=HEAD, untold=("use_parallel_residual",)),
)

ARCHITECTURES = (STABLELM,)
