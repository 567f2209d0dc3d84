"""Command-R and Cohere2: attention and MLP in parallel, no biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import COMMON, attention, gated_mlp
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.loader import AS_WIDE, HEAD, MLP_BIASES, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims

_at = "{p}layers.{i}."


def _no_scaling(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own.setdefault("rope.scaling.type", "none")


_NORMS = ("blk.{i}.attn_q_norm.weight", "blk.{i}.attn_k_norm.weight")
_NORMS_OF_THE_PLUS = tuple(f"{n} if n_layer >= 64" for n in _NORMS)

COMMAND_R = Architecture(
    "command-r",
    (HfName("CohereForCausalLM", "cohere"),),
    keys=(
        *(k for k in COMMON if "epsilon" not in k.gguf),
        *keys("""
            attention.layer_norm_epsilon    f32   layer_norm_eps        1e-5
            logit_scale                     f32   logit_scale           0.0625
            attention.key_length            u32   head_dim
            attention.value_length          u32   head_dim
        """),
    ),
    rows=(
        row("token_embd.weight", "{p}embed_tokens.weight", "n_vocab, n_embd"),
        row("output_norm.weight", "{p}norm.weight", "n_embd"),
        row("output.weight", "lm_head.weight", "n_vocab, n_embd", optional="!tie_word_embeddings"),
        row("blk.{i}.attn_norm.weight", _at + "input_layernorm.weight", "n_embd"),
        *attention(),
        row("blk.{i}.attn_q_norm.weight", _at + "self_attn.q_norm.weight", "n_head, head_dim", optional="use_qk_norm"),
        row(
            "blk.{i}.attn_k_norm.weight", _at + "self_attn.k_norm.weight", "n_head_kv, head_dim", optional="use_qk_norm"
        ),
        *gated_mlp(),
    ),
    tied=True,
    finish=_no_scaling,
    decoder={"rope": "pairs", "parallel": True},
    loader=Loader(
        refused=(*MLP_BIASES, *OUT_BIAS, *HEAD, *(f"{n} if n_layer < 64" for n in _NORMS)),
        needed=_NORMS_OF_THE_PLUS,
        wants=AS_WIDE,
    ),
)


def _cohere2_finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    fraction = config.get("rotary_pct", 1.0)
    own["rope.dimension_count"] = np.uint32(int(fraction * dims["head_dim"]))
    own.setdefault("rope.scaling.type", "none")


COHERE2 = COMMAND_R.variant(
    "cohere2",
    HfName("Cohere2ForCausalLM", "cohere2"),
    keys=keys("""
        attention.sliding_window        u32   sliding_window        4096
        vocab_size                      u32   vocab_size
    """),
    drop=_NORMS,
    finish=_cohere2_finish,
    decoder={"window_pattern": 4, "rope_layers": "windowed"},
    reads="rotary_pct layer_types sliding_window_pattern",
    loader=Loader(unread=("attention.sliding_window_pattern",), without=_NORMS_OF_THE_PLUS),
)

ARCHITECTURES = (COMMAND_R, COHERE2)
