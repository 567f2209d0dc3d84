"""MiniCPM 3 and PLM: latent attention whose up-projection GGUF keeps whole; no experts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.gpt.phi import LONG_FACTORS, long_magnitude
from llmconv.convert.archs.parts import COMMON, EMBEDDINGS, NORMS, gated_mlp
from llmconv.convert.archs.rope import magnitudes_back, yarn_magnitudes
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.loader import MLP_BIASES, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims

_attn = "{p}layers.{i}.self_attn."

_LATENT = (
    row("blk.{i}.attn_q.weight", _attn + "q_proj.weight", "n_head * head_dim, n_embd", when="not q_lora"),
    row("blk.{i}.attn_q_a.weight", _attn + "q_a_proj.weight", "q_lora, n_embd", when="q_lora"),
    row("blk.{i}.attn_q_a_norm.weight", _attn + "q_a_layernorm.weight", "q_lora", when="q_lora"),
    row("blk.{i}.attn_q_b.weight", _attn + "q_b_proj.weight", "n_head * head_dim, q_lora", when="q_lora"),
    row("blk.{i}.attn_kv_a_mqa.weight", _attn + "kv_a_proj_with_mqa.weight", "kv_lora + n_rot, n_embd"),
    row("blk.{i}.attn_kv_a_norm.weight", _attn + "kv_a_layernorm.weight", "kv_lora"),
    row("blk.{i}.attn_kv_b.weight", _attn + "kv_b_proj.weight", "n_head * (head_dim - n_rot + head_dim_v), kv_lora"),
    row("blk.{i}.attn_output.weight", _attn + "o_proj.weight", "n_embd, n_head * head_dim_v"),
)

_KEYS = keys("""
    vocab_size                      u32   vocab_size
    attention.q_lora_rank           u32   q_lora_rank
    attention.kv_lora_rank          u32   kv_lora_rank        256
    rope.dimension_count            u32   qk_rope_head_dim
""")

_USUAL = (12.0, 1.4, 256)
"""scale_emb, scale_depth and dim_model_base, as llama.cpp takes them whatever a file says."""


def _lengths(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["attention.key_length"] = np.uint32(config["qk_nope_head_dim"] + config["qk_rope_head_dim"])
    own["attention.value_length"] = np.uint32(config.get("v_head_dim") or dims["n_embd"] // dims["n_head"])


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    _lengths(own, config, dims)
    rope, depth = config.get("rope") or {}, math.sqrt(dims["n_layer"])
    if rope.get("long_factor") and own.pop("rope.scaling.type", None):
        original = rope.get("original_max_position_embeddings") or dims["n_ctx"]
        if original != dims["n_ctx"]:
            own["rope.scaling.original_context_length"] = np.uint32(original)
            own["rope.scaling.attn_factor"] = np.float32(long_magnitude(rope, dims["n_ctx"], original))
    yarn_magnitudes(own, rope, 0.1)
    named = zip(("scale_emb", "scale_depth", "dim_model_base"), _USUAL, strict=True)
    embed, deep, base = (config.get(name, usual) for name, usual in named)
    scales = (embed, deep or depth, base or dims["n_embd"])
    if scales != _USUAL:
        own["embedding_scale"] = np.float32(scales[0])
        own["residual_scale"] = np.float32(scales[1] / depth)
        own["logit_scale"] = np.float32(dims["n_embd"] / scales[2])


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["qk_nope_head_dim"] = dims["head_dim"] - dims["n_rot"]
    config["v_head_dim"] = dims["head_dim_v"]
    if not dims["q_lora"]:
        config["q_lora_rank"] = None
    if "rope_scaling" in config and "rope.scaling.original_context_length" in own:
        config["rope_scaling"]["original_max_position_embeddings"] = int(own["rope.scaling.original_context_length"])
    magnitudes_back(config, own)
    if "residual_scale" in own:
        config["scale_emb"] = float(own["embedding_scale"])
        config["scale_depth"] = float(own["residual_scale"]) * math.sqrt(dims["n_layer"])
        config["dim_model_base"] = round(dims["n_embd"] / float(own["logit_scale"]))


MINICPM3 = Architecture(
    "minicpm3",
    (HfName("MiniCPM3ForCausalLM", "minicpm3"),),
    keys=(*COMMON, *_KEYS),
    rows=(*EMBEDDINGS, *NORMS, *_LATENT[1:], *gated_mlp()),
    made=LONG_FACTORS,
    tied=True,
    finish=_finish,
    rebuild=_rebuild,
    decoder={
        "embed_scale": 12.0,
        "residual_depth": 1.4,
        "logit_base": 256,
        "logit_scale_divides": True,
        "yarn_magnitudes_cancel": True,
        "latent_eps": 1e-6,
    },
    reads="qk_nope_head_dim v_head_dim scale_emb scale_depth dim_model_base original_max_position_embeddings",
    inert="head_dim qk_head_dim",
    fixed={"attention_bias": False, "mlp_bias": False},
    loader=Loader(
        unread=("embedding_scale", "residual_scale", "logit_scale", "rope.scaling.yarn_log_multiplier"),
        refused=(*MLP_BIASES, *OUT_BIAS),
        pieces={"latent_eps": 0.0},
    ),
)


PLM = Architecture(
    "plm",
    (HfName("PLMForCausalLM", "plm"),),
    keys=(*COMMON, *_KEYS),
    rows=(*EMBEDDINGS, *NORMS, *_LATENT[:1], *_LATENT[4:], *gated_mlp()[1:3]),
    tied=True,
    finish=_lengths,
    rebuild=_rebuild,
    decoder={"rope": "pairs", "activation": "relu2"},
    reads="qk_nope_head_dim v_head_dim",
    inert="head_dim qk_head_dim",
    fixed={"attention_bias": False, "mlp_bias": False, "q_lora_rank": None},
    loader=Loader(refused=("output.weight",)),
)

ARCHITECTURES = (MINICPM3, PLM)
