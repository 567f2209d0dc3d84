"""Gemma 1, 2 and 3.  Their norms multiply by 1 + w, and GGUF stores that sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import COMMON, EMBEDDINGS, NORMS, QK_NORMS, attention, gated_mlp, shifted
from llmconv.convert.archs.rope import Finish
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.loader import HEAD, MLP_BIASES, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims
from llmconv.convert.tables.pieces import activation
from llmconv.errors import BadFile, Unsupported

_at = "{p}layers.{i}."

_common = tuple(k for k in COMMON if k.gguf != "rope.freq_base")


def _rope_base(own: dict[str, Any], config: Mapping[str, Any]) -> None:
    """The key is written only for another base than every published Gemma 1 and 2 has."""
    base = config.get("rope_theta")
    if base is not None and base != 10000:
        own["rope.freq_base"] = np.float32(base)


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """The first releases say "gelu" for an activation that was the approximation by tanh all along."""
    _rope_base(own, config)
    stated = config.get("hidden_activation") or config.get("hidden_act")
    if isinstance(stated, str) and activation(stated) not in ("gelu", "gelu_tanh"):
        own["hidden_activation"] = stated


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["hidden_act"] = str(own.get("hidden_activation", "gelu_pytorch_tanh"))
    config["rope_theta"] = float(own["rope.freq_base"])


GEMMA = Architecture(
    "gemma",
    (HfName("GemmaForCausalLM", "gemma"),),
    keys=(
        *_common,
        *keys("""
            attention.key_length              u32   head_dim                    256
            attention.value_length            u32   head_dim                    256
        """),
    ),
    rows=(*shifted((*EMBEDDINGS, *NORMS)), *attention(), *gated_mlp()),
    tied=True,
    finish=_finish,
    rebuild=_rebuild,
    decoder={"embed_scale": "sqrt", "activation": "gelu_tanh", "activation_key": "", "passes_float16": True},
    reads="hidden_act hidden_activation rope_theta",
    fixed={"use_bidirectional_attention": False},
    loader=Loader(refused=(*MLP_BIASES, *OUT_BIAS, *HEAD)),
)

_four_norms = shifted(
    (
        row("blk.{i}.attn_norm.weight", _at + "input_layernorm.weight", "n_embd"),
        row("blk.{i}.post_attention_norm.weight", _at + "post_attention_layernorm.weight", "n_embd"),
        row("blk.{i}.ffn_norm.weight", _at + "pre_feedforward_layernorm.weight", "n_embd"),
        row("blk.{i}.post_ffw_norm.weight", _at + "post_feedforward_layernorm.weight", "n_embd"),
    )
)

_LARGEST = {"gemma2": 46, "gemma3": 62}  # layers of the 27B models, whose queries are scaled by another width


def _usual_scalar(arch: str, dims: Dims) -> int:
    """What llama.cpp divides the queries by (the square of it), as no key says."""
    return (
        dims["n_embd"] // dims["n_head"] if dims["n_layer"] == _LARGEST[arch] and dims["n_head"] else dims["head_dim"]
    )


def _scale(arch: str) -> tuple[Finish, Finish]:
    def finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
        scalar = config.get("query_pre_attn_scalar", 256)
        if not isinstance(scalar, int | float) or scalar <= 0:
            raise BadFile(f"config.json: query_pre_attn_scalar is {scalar!r}, expected a number above 0")
        if scalar != _usual_scalar(arch, dims):
            own["attention.scale"] = np.float32(scalar**-0.5)

    def rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
        scale = float(own.get("attention.scale", 0.0))
        scalar = round(scale**-2, 3) if scale else _usual_scalar(arch, dims)
        config["query_pre_attn_scalar"] = int(scalar) if scalar == int(scalar) else scalar

    return finish, rebuild


_finish_scale2, _rebuild_scale2 = _scale("gemma2")


def _finish2(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    _rope_base(own, config)
    _finish_scale2(own, config, dims)


def _rebuild2(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["rope_theta"] = float(own["rope.freq_base"])
    _rebuild_scale2(config, own, dims)


_finish3, _rebuild3 = _scale("gemma3")

GEMMA2 = GEMMA.variant(
    "gemma2",
    HfName("Gemma2ForCausalLM", "gemma2"),
    keys=keys("""
        attn_logit_softcapping            f32   attn_logit_softcapping      50
        final_logit_softcapping           f32   final_logit_softcapping     30
        attention.sliding_window          u32   sliding_window              4096
    """),
    rows=_four_norms,
    finish=_finish2,
    rebuild=_rebuild2,
    decoder={
        "window": 4096,
        "window_pattern": 2,
        "scale_by_model": 46,
        "activation_key": "hidden_activation",
        "attention_softcap": 50.0,
        "final_softcap": 30.0,
    },
    reads="query_pre_attn_scalar layer_types",
    inert="hidden_act",
    loader=Loader(unread=("attention.scale", "attention.sliding_window_pattern")),
)


def _finish_third(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    _finish3(own, config, dims)
    if config.get("use_bidirectional_attention"):
        own["attention.causal"] = False  # the window of the configuration counts both sides
        own["attention.sliding_window"] = np.uint32(int(config.get("sliding_window", 4096)) // 2 + 1)


def _rebuild_third(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    _rebuild3(config, own, dims)
    if not own.get("attention.causal", True):
        config.update(use_bidirectional_attention=True, sliding_window=(dims["window"] - 1) * 2)


GEMMA3 = GEMMA.variant(
    "gemma3",
    HfName("Gemma3ForCausalLM", "gemma3_text"),
    HfName("Gemma3ForConditionalGeneration", "gemma3"),
    keys=keys("""
        context_length                    u32   max_position_embeddings     131072
        attention.head_count              u32   num_attention_heads         8
        attention.head_count_kv           u32   num_key_value_heads         4
        rope.freq_base                    f32   rope_theta                  1000000
        rope.freq_base_swa                f32   rope_local_base_freq        10000
        final_logit_softcapping           f32   final_logit_softcapping
        attention.sliding_window          u32   sliding_window              4096
    """),
    rows=(*_four_norms, *shifted(QK_NORMS)),
    finish=_finish_third,
    rebuild=_rebuild_third,
    prefixes=("model.", "language_model.model.", "model.language_model.", ""),
    decoder={
        "window_pattern": 6,
        "window_rope_base": 10000.0,
        "window_rope_scaled": False,
        "scale_by_model": 62,
        "activation_key": "hidden_activation",
    },
    reads="query_pre_attn_scalar layer_types sliding_window_pattern _sliding_window_pattern"
    " use_bidirectional_attention",
    inert="hidden_act cache_implementation mm_tokens_per_image",
    fixed={"attn_logit_softcapping": None, "use_bidirectional_attention": (True, False)},
    loader=Loader(unread=("attention.scale", "attention.sliding_window_pattern"), without=HEAD),
)


def _finish_embedding(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    _finish3(own, config, dims)
    if not config.get("use_bidirectional_attention", False):
        raise Unsupported(
            "config.json: a Gemma 3 that looks back alone, and has no head; name its class Gemma3ForCausalLM to convert"
        )


def _rebuild_embedding(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    _rebuild3(config, own, dims)
    config["use_bidirectional_attention"] = True


GEMMA_EMBEDDING = GEMMA3.variant(
    "gemma-embedding",
    HfName("Gemma3TextModel", "gemma3_text"),
    finish=_finish_embedding,
    rebuild=_rebuild_embedding,
    prefixes=("", "model."),
    decoder={"causal": False, "window_both_sides": True},
    drop=("output.weight",),
    dense={
        "dense_2": ("2_Dense", "dense_2_feat_in", "dense_2_feat_out"),
        "dense_3": ("3_Dense", "dense_3_feat_in", "dense_3_feat_out"),
    },
)

ARCHITECTURES = (GEMMA, GEMMA2, GEMMA3, GEMMA_EMBEDDING)
