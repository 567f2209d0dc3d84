"""Qwen 2 and 3, dense and with experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import COMMON, EMBEDDINGS, HEAD_DIM, NORMS, QK_NORMS, attention, experts, gated_mlp
from llmconv.convert.archs.rope import ROPE_FREQS
from llmconv.convert.tables.architecture import Architecture, Form, HfName, keys, row
from llmconv.convert.tables.config import has_class
from llmconv.convert.tables.loader import DIVISORS, HEAD, MLP_BIASES, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims
from llmconv.convert.tables.windows import PATTERN

_at = "{p}layers.{i}."

_LAYERS = 1 << 16  # as many as are looked at one by one


def _windows(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """Windows, which are there in most configurations and switched on in few."""
    window = config.get("sliding_window")
    if not config.get("use_sliding_window") or window is None:
        return
    first = config.get("max_window_layers", 28)
    own["attention.sliding_window"] = np.uint32(window)
    own["attention.sliding_window_pattern"] = np.arange(min(dims["n_layer"], _LAYERS)) >= int(first)


def _windows_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    if dims["window"] and PATTERN in own:  # a window without a pattern is none's
        config.update(use_sliding_window=True, sliding_window=dims["window"], max_window_layers=0)


QWEN2 = Architecture(
    "qwen2",
    (
        HfName("Qwen2ForCausalLM", "qwen2"),
        HfName("Qwen2Model", "qwen2"),
        HfName("KORMoForCausalLM", "kormo"),
        HfName("Qwen2AudioForConditionalGeneration", "qwen2_audio"),
        HfName("AudioFlamingo3ForConditionalGeneration", "audioflamingo3"),
        HfName("DotsOCRForCausalLM", "dots_ocr"),
    ),
    keys=COMMON,
    rows=(
        *EMBEDDINGS,
        row(
            NORMS[0].gguf[0],
            _at + "input_layernorm.weight",
            "n_embd",
            alt=(Form((_at + "pre_attention_layernorm.weight",)),),
        ),
        row(
            NORMS[1].gguf[0],
            _at + "post_attention_layernorm.weight",
            "n_embd",
            alt=(Form((_at + "pre_mlp_layernorm.weight",)),),
        ),
        *attention(bias="attention_bias=true", out_bias=True),
        *gated_mlp(),
    ),
    made=(ROPE_FREQS,),
    finish=_windows,
    rebuild=_windows_back,
    reads="use_sliding_window sliding_window max_window_layers layer_types",
    loader=Loader(unread=("attention.sliding_window",), refused=(*MLP_BIASES, *OUT_BIAS, *DIVISORS)),
)


def _is_qwen3(config: Mapping[str, Any]) -> bool:
    """Whether a Jina Embeddings 5 is the larger one; the other is a EuroBERT."""
    return not has_class(config, "JinaEmbeddingsV5Model") or "use_sliding_window" in config


QWEN3 = QWEN2.variant(
    "qwen3",
    HfName("Qwen3ForCausalLM", "qwen3"),
    HfName("Qwen3Model", "qwen3"),
    HfName("JinaEmbeddingsV5Model", "jina_embeddings_v5"),
    keys=HEAD_DIM,
    fits=_is_qwen3,
    rows=(*attention(), *QK_NORMS),
)

_EXPERT_KEYS = (
    *keys("""
        expert_count                        u32   num_experts|num_local_experts
        expert_used_count                   u32   num_experts_per_tok
        expert_feed_forward_length          u32   moe_intermediate_size
        expert_shared_feed_forward_length   u32   shared_expert_intermediate_size
    """),
)


def _sparse(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """`moe_layers`, where some layers have a plain feed-forward instead of experts."""
    every, plain = config.get("decoder_sparse_step") or 1, config.get("mlp_only_layers") or []
    layers = range(min(dims["n_layer"], _LAYERS))
    sparse = [int(i not in plain and (i + 1) % int(every) == 0) for i in layers]
    if not all(sparse):
        own["moe_layers"] = np.asarray(sparse, np.uint32)
    _windows(own, config, dims)


def _sparse_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    if (sparse := own.get("moe_layers")) is not None:
        config["mlp_only_layers"] = [i for i, on in enumerate(sparse) if not on]
    _windows_back(config, own, dims)


def _finish2(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    if config.get("norm_topk_prob"):
        own["expert_weights_norm"] = True
    _sparse(own, config, dims)


def _rebuild2(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["norm_topk_prob"] = bool(own.get("expert_weights_norm", False))
    _sparse_back(config, own, dims)


_shared = _at + "mlp.shared_expert."

QWEN2_MOE = QWEN2.variant(
    "qwen2moe",
    HfName("Qwen2MoeForCausalLM", "qwen2_moe"),
    keys=_EXPERT_KEYS,
    rows=(
        *attention(bias="qkv_bias=true", out_bias=True),
        *gated_mlp(when="not sparse"),
        *experts(where="sparse"),
        row("blk.{i}.ffn_gate_inp_shexp.weight", _at + "mlp.shared_expert_gate.weight", "1, n_embd", when="sparse"),
        row("blk.{i}.ffn_gate_shexp.weight", _shared + "gate_proj.weight", "n_ff_shexp, n_embd", when="sparse"),
        row("blk.{i}.ffn_up_shexp.weight", _shared + "up_proj.weight", "n_ff_shexp, n_embd", when="sparse"),
        row("blk.{i}.ffn_down_shexp.weight", _shared + "down_proj.weight", "n_embd, n_ff_shexp", when="sparse"),
    ),
    finish=_finish2,
    rebuild=_rebuild2,
    reads="decoder_sparse_step mlp_only_layers norm_topk_prob",
    loader=Loader(unread=("expert_weights_norm",), needed=HEAD),
)


def _normed(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """llama.cpp always makes the weights of Qwen 3's chosen experts sum to one; only the other case needs a key."""
    if not config.get("norm_topk_prob", False):
        own["expert_weights_norm"] = False
    _sparse(own, config, dims)
    if own.get("attention.sliding_window"):  # whatever max_window_layers says
        own["attention.sliding_window_pattern"] = np.ones(min(dims["n_layer"], _LAYERS), np.bool_)


def _renormed(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["norm_topk_prob"] = bool(own.get("expert_weights_norm", True))
    _sparse_back(config, own, dims)


QWEN3_MOE = QWEN3.variant(
    "qwen3moe",
    HfName("Qwen3MoeForCausalLM", "qwen3_moe"),
    keys=_EXPERT_KEYS,
    rows=(*gated_mlp(when="not sparse"), *experts(where="sparse")),
    drop=["expert_shared_feed_forward_length"],
    finish=_normed,
    rebuild=_renormed,
    decoder={"normalize_experts": True},
    reads="decoder_sparse_step mlp_only_layers norm_topk_prob",
    loader=Loader(unread=("expert_weights_norm",)),
)

ARCHITECTURES = (QWEN2, QWEN3, QWEN2_MOE, QWEN3_MOE)
