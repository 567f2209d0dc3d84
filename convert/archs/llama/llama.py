"""Llama and what shares its GGUF name: Llama 1 to 3.3, Mistral, Mixtral."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmconv.convert.archs.parts import (
    COMMON,
    EMBEDDINGS,
    EXPERTS,
    HEAD_DIM,
    NORMS,
    attention,
    check_text_model,
    gated_mlp,
)
from llmconv.convert.archs.rope import ROPE_FREQS
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.config import has_class, text_config
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Dims, Stack
from llmconv.convert.tables.rows import Form

_experts = "{p}layers.{i}.block_sparse_moe."

_TEXT_PREFIXES = ("model.", "", "language_model.model.", "model.language_model.")

_AROUND = ("llava", "voxtral", "janus", "sarashina2_vision", "vllama3", "ultravox")
"""Model types of multimodal classes, whose text model is a Llama, or may be another that is not known here."""
_TEXTS = ("llama", "mistral", "mixtral")
_WINDOWLESS = ("llama", "internlm3", *_AROUND)
"""Model types whose classes read no `sliding_window`."""


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    if config.get("model_type") in _AROUND:
        check_text_model(config, (*_AROUND, *_TEXTS))
    if _kind(config) in (*_WINDOWLESS, "iquestcoder"):  # the last has windows by further settings, not known here
        own.pop("attention.sliding_window", None)


def _kind(config: Mapping[str, Any]) -> Any:
    """The model type of the text model, by which transformers takes a class for it."""
    usual = "mistral" if has_class(config, "MistralForCausalLM") else "llama"
    return text_config(config).get("model_type", usual)


def _ignored(config: Mapping[str, Any]) -> list[str]:
    return ["sliding_window"] if config.get("sliding_window") and _kind(config) in _WINDOWLESS else []


LLAMA = Architecture(
    "llama",
    (
        HfName("LlamaForCausalLM", "llama"),
        HfName("MixtralForCausalLM", "mixtral", when="n_expert"),
        HfName("MistralForCausalLM", "mistral", when="window"),
        HfName("LLaMAForCausalLM", "llama"),
        HfName("LlamaModel", "llama"),
        HfName("InternLM3ForCausalLM", "internlm3"),
        HfName("IQuestCoderForCausalLM", "iquestcoder"),
        HfName("LlavaForConditionalGeneration", "llava"),
        HfName("VoxtralForConditionalGeneration", "voxtral"),
        HfName("JanusForConditionalGeneration", "janus"),
        HfName("Sarashina2VisionForCausalLM", "sarashina2_vision"),
        HfName("VLlama3ForCausalLM", "vllama3"),
        HfName("UltravoxModel", "ultravox"),
    ),
    keys=(
        *COMMON,
        *keys("""
            vocab_size                        u32   vocab_size
            rope.dimension_count              u32   head_dim                    = n_embd // n_head
            attention.sliding_window          u32   sliding_window
        """),
        *HEAD_DIM,
        *EXPERTS,
    ),
    rows=(
        *EMBEDDINGS,
        *NORMS,
        *attention(permuted=True),
        *gated_mlp(when="not n_expert"),
        row("blk.{i}.ffn_gate_inp.weight", _experts + "gate.weight", "n_expert, n_embd", when="n_expert"),
        row(
            "blk.{i}.ffn_gate_exps.weight",
            _experts + "experts.{e}.w1.weight",
            "n_expert, n_ff, n_embd",
            Stack(),
            when="n_expert",
            alt=(Form((_experts + "switch_mlp.gate_proj.weight",)),),
        ),
        row(
            "blk.{i}.ffn_down_exps.weight",
            _experts + "experts.{e}.w2.weight",
            "n_expert, n_embd, n_ff",
            Stack(),
            when="n_expert",
            alt=(Form((_experts + "switch_mlp.down_proj.weight",)),),
        ),
        row(
            "blk.{i}.ffn_up_exps.weight",
            _experts + "experts.{e}.w3.weight",
            "n_expert, n_ff, n_embd",
            Stack(),
            when="n_expert",
            alt=(Form((_experts + "switch_mlp.up_proj.weight",)),),
        ),
    ),
    made=(ROPE_FREQS,),
    finish=_finish,
    ignored=_ignored,
    decoder={"rope": "pairs", "window_pattern": 0, "normalize_experts": True},
    prefixes=(*_TEXT_PREFIXES, "llm.model.", "model.text_model."),
    reads="qkv_bias bias",
    loader=Loader(unread=("attention.sliding_window",)),
)

NOT_DENSE = (
    *("expert_count", "expert_used_count", "attention.sliding_window"),
    *(key.gguf for key in HEAD_DIM),
    *(r.gguf[0] for r in LLAMA.rows if "exps" in r.gguf[0] or "gate_inp" in r.gguf[0]),
)
"""What a dense variant drops: keys and rows of experts, and the keys that its family does not write."""

ARCHITECTURES = (LLAMA,)
