"""Orion: Llama with LayerNorms, and Xverse, Pangu Embedded, MiniCPM 1 and 2: Llama but for a few settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.llama.llama import LLAMA, NOT_DENSE
from llmconv.convert.archs.parts import COMMON, EMBEDDINGS, HEAD_DIM, NORMS, attention, gated_mlp, norm
from llmconv.convert.tables.architecture import Architecture, HfName, keys
from llmconv.convert.tables.loader import HEAD, MLP_BIASES, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims

_at = "{p}layers.{i}."

_META = {"tensor_data_layout": "Meta AI original pth"}

ORION = Architecture(
    "orion",
    (HfName("OrionForCausalLM", "orion"),),
    keys=(
        *(k for k in COMMON if k.gguf not in ("attention.layer_norm_rms_epsilon", "context_length")),
        *keys("""
            context_length                  u32   max_sequence_length|max_position_embeddings|model_max_length
            attention.layer_norm_epsilon    f32   rms_norm_eps      1e-5    # which its code gives to LayerNorms
        """),
    ),
    rows=(
        EMBEDDINGS[0],
        *norm("output_norm", "{p}norm"),
        EMBEDDINGS[2],
        *norm("blk.{i}.attn_norm", _at + "input_layernorm"),
        *norm("blk.{i}.ffn_norm", _at + "post_attention_layernorm"),
        *(r for r in attention() if r.gguf[0].endswith(".weight")),
        *(r for r in gated_mlp() if r.gguf[0].endswith(".weight")),
    ),
    constants=_META,
    decoder={"norm": "layer"},
    reads="max_position_embeddings model_max_length",
    loader=Loader(unread=("rope.freq_base",), needed=HEAD),
)

XVERSE = LLAMA.variant(
    "xverse",
    HfName("XverseForCausalLM", "xverse"),
    drop=(*NOT_DENSE, "vocab_size"),
    keys=(),
    constants=_META,
    inert="max_tokenizer_truncation",
    loader=Loader(refused=(*MLP_BIASES, *OUT_BIAS), needed=HEAD),
)

PANGU = Architecture(
    "pangu-embedded",
    (HfName("PanguEmbeddedForCausalLM", "PanguEmbedded"),),
    keys=(
        *COMMON,
        *HEAD_DIM,
        *keys("""
            vocab_size                      u32   vocab_size
            rope.dimension_count            u32   head_dim          = n_embd // n_head
        """),
    ),
    rows=(*EMBEDDINGS, *NORMS, *attention(bias="bias"), *gated_mlp()),
    loader=Loader(refused=MLP_BIASES, needed=OUT_BIAS),
)


def _scales(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["embedding_scale"] = np.float32(config.get("scale_emb", 1.0))
    own["residual_scale"] = np.float32(config.get("scale_depth", 1.0) / math.sqrt(dims["n_layer"]))
    own["logit_scale"] = np.float32(dims["n_embd"] / config.get("dim_model_base", dims["n_embd"]))


def _scales_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["scale_emb"] = float(own.get("embedding_scale", 12.0))
    config["scale_depth"] = float(own.get("residual_scale", 1.4 / math.sqrt(dims["n_layer"]))) * dims["n_layer"] ** 0.5
    config["dim_model_base"] = dims["n_embd"] / float(own.get("logit_scale", dims["n_embd"] / 256))


MINICPM = LLAMA.variant(
    "minicpm",
    HfName("MiniCPMForCausalLM", "minicpm"),
    drop=(*NOT_DENSE, "vocab_size", "rope.dimension_count"),
    keys=(),
    tied=True,
    finish=_scales,
    rebuild=_scales_back,
    decoder={"logit_scale_divides": True},
    reads="scale_emb scale_depth dim_model_base",
    inert="rope_type max_length",
    fixed={"num_experts": 0},
)

ARCHITECTURES = (ORION, XVERSE, PANGU, MINICPM)
