"""Nemotron: LayerNorm with 1 + w, squared ReLU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmconv.convert.archs.parts import (
    COMMON_BUT_EPSILON,
    LAYER_NORMS,
    attention,
    linear,
    norm,
    shifted,
)
from llmconv.convert.archs.rope import ROPE_FREQS, partial_rotary
from llmconv.convert.tables.architecture import Architecture, HfName, keys
from llmconv.convert.tables.loader import AS_WIDE, DIVISORS, HEAD, Loader
from llmconv.convert.tables.ops import Dims

_at = "{p}layers.{i}."

_nemotron_finish, _nemotron_rebuild = partial_rotary("partial_rotary_factor|rope_percent", 0.5)


def _no_scaling(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    _nemotron_finish(own, config, dims)
    own.setdefault("rope.scaling.type", "none")


NEMOTRON = Architecture(
    "nemotron",
    (HfName("NemotronForCausalLM", "nemotron"),),
    keys=(
        *COMMON_BUT_EPSILON,
        *keys("""
            attention.layer_norm_epsilon    f32   norm_eps|layer_norm_eps   1e-5
            attention.layer_norm_rms_epsilon  f32   norm_eps|rms_norm_eps     1e-5
            vocab_size                      u32   vocab_size
            attention.key_length            u32   head_dim
            attention.value_length          u32   head_dim
        """),
    ),
    rows=(
        *shifted((*LAYER_NORMS, *norm("blk.{i}.ffn_norm", _at + "post_attention_layernorm"))),
        *attention(),
        *linear("blk.{i}.ffn_up", _at + "mlp.up_proj", "n_ff", "n_embd", bias="mlp_bias"),
        *linear("blk.{i}.ffn_down", _at + "mlp.down_proj", "n_embd", "n_ff", bias="mlp_bias"),
    ),
    made=(ROPE_FREQS,),
    finish=_no_scaling,
    rebuild=_nemotron_rebuild,
    decoder={"norm": "layer", "activation": "relu2"},
    reads="partial_rotary_factor rope_percent",
    loader=Loader(refused=DIVISORS, needed=HEAD, wants=AS_WIDE),
)

ARCHITECTURES = (NEMOTRON,)
