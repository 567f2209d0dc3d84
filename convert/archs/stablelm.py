"""StableLM, StarCoder2, OLMo 1 and 2, OLMoE, Nemotron: Llama's layout with other norms and blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.gemma import shifted
from llmconv.convert.archs.gpt2 import linear, norm
from llmconv.convert.archs.llama import COMMON, EMBEDDINGS, EXPERTS, NORMS, ROPE_FREQS, attention, gated_mlp
from llmconv.convert.archs.partial import partial_rotary
from llmconv.convert.archs.qwen import experts
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.ops import Dims, Stack

_at = "{p}layers.{i}."
_common = tuple(k for k in COMMON if k.gguf != "attention.layer_norm_rms_epsilon")
_head = EMBEDDINGS[2]
_layer_norms = (
    EMBEDDINGS[0],
    *norm("output_norm", "{p}norm"),
    _head,
    *norm("blk.{i}.attn_norm", _at + "input_layernorm"),
)

_finish, _rebuild = partial_rotary("partial_rotary_factor|rope_pct", 0.25)


def _norm_between(config: Mapping[str, Any]) -> bool:
    return not config.get("use_parallel_residual", False)


STABLELM = Architecture(
    "stablelm",
    (HfName("StableLmForCausalLM", "stablelm"), HfName("StableLMEpochForCausalLM", "stablelm_epoch")),
    keys=(
        *_common,
        *keys("""
            attention.layer_norm_epsilon    f32   layer_norm_eps|norm_eps     1e-5
            use_parallel_residual           bool  use_parallel_residual       true
        """),
    ),
    rows=(
        *_layer_norms,
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
)

STARCODER2 = Architecture(
    "starcoder2",
    (HfName("Starcoder2ForCausalLM", "starcoder2"),),
    keys=(
        *_common,
        *keys("""
            attention.layer_norm_epsilon    f32   norm_epsilon              1e-5
            attention.sliding_window        u32   sliding_window
        """),
    ),
    rows=(
        *_layer_norms,
        *norm("blk.{i}.ffn_norm", _at + "post_attention_layernorm"),
        *attention(bias="use_bias"),
        *linear("blk.{i}.ffn_up", _at + "mlp.c_fc", "n_ff", "n_embd", bias="use_bias"),
        *linear("blk.{i}.ffn_down", _at + "mlp.c_proj", "n_embd", "n_ff", bias="use_bias"),
    ),
    tied=True,
    decoder={"activation": "gelu_tanh", "window_pattern": 0},
)

OLMO = Architecture(
    "olmo",
    (HfName("OlmoForCausalLM", "olmo"), HfName("OLMoForCausalLM", "hf_olmo")),
    keys=(
        *_common,
        *keys("""
            attention.layer_norm_epsilon    f32   -             1e-5
            attention.clamp_kqv             f32   clip_qkv
        """),
    ),
    rows=(EMBEDDINGS[0], _head, *attention(permuted=True), *gated_mlp()),
    decoder={"rope": "pairs", "weightless": True},
)


def _olmo2_finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    window, kinds = config.get("sliding_window"), config.get("layer_types")
    if window is None:
        return
    own["attention.sliding_window"] = np.uint32(window)
    if isinstance(kinds, list):
        pattern = [kind == "sliding_attention" for kind in kinds]
    else:
        pattern = [(i + 1) % 4 != 0 for i in range(min(dims["n_layer"], 1 << 16))]
    own["attention.sliding_window_pattern"] = np.asarray(pattern, np.bool_)


def _olmo2_rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    pattern = own.get("attention.sliding_window_pattern")
    if pattern is not None and dims["window"]:
        config.update(architectures=["Olmo3ForCausalLM"], model_type="olmo3", sliding_window=dims["window"])
        config["layer_types"] = ["sliding_attention" if on else "full_attention" for on in pattern]


OLMO2 = Architecture(
    "olmo2",
    (HfName("Olmo2ForCausalLM", "olmo2"), HfName("Olmo3ForCausalLM", "olmo3")),
    keys=(*COMMON, *keys("rope.freq_base_swa  f32  rope_local_base_freq")),
    rows=(
        *EMBEDDINGS,
        *attention(),
        row("blk.{i}.attn_q_norm.weight", _at + "self_attn.q_norm.weight", "n_head * head_dim"),
        row("blk.{i}.attn_k_norm.weight", _at + "self_attn.k_norm.weight", "n_head_kv * head_dim"),
        row("blk.{i}.post_attention_norm.weight", _at + "post_attention_layernorm.weight", "n_embd"),
        row("blk.{i}.post_ffw_norm.weight", _at + "post_feedforward_layernorm.weight", "n_embd"),
        *gated_mlp(),
    ),
    finish=_olmo2_finish,
    rebuild=_olmo2_rebuild,
    decoder={"window_pattern": 4, "window_rope_scaled": False},
)

OLMOE = Architecture(
    "olmoe",
    (HfName("OlmoeForCausalLM", "olmoe"),),
    keys=(*COMMON, *EXPERTS, *keys("attention.clamp_kqv  f32  clip_qkv")),
    rows=(
        *EMBEDDINGS,
        *NORMS,
        *attention(),
        row("blk.{i}.attn_q_norm.weight", _at + "self_attn.q_norm.weight", "n_head * head_dim"),
        row("blk.{i}.attn_k_norm.weight", _at + "self_attn.k_norm.weight", "n_head_kv * head_dim"),
        *experts(),
    ),
)

_nemotron_finish, _nemotron_rebuild = partial_rotary("partial_rotary_factor|rope_percent", 0.5)


def _no_scaling(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    _nemotron_finish(own, config, dims)
    own.setdefault("rope.scaling.type", "none")


NEMOTRON = Architecture(
    "nemotron",
    (HfName("NemotronForCausalLM", "nemotron"),),
    keys=(
        *_common,
        *keys("""
            attention.layer_norm_epsilon    f32   norm_eps|layer_norm_eps   1e-5
            attention.layer_norm_rms_epsilon  f32   norm_eps|rms_norm_eps     1e-5
            vocab_size                      u32   vocab_size
            attention.key_length            u32   head_dim
            attention.value_length          u32   head_dim
        """),
    ),
    rows=(
        *shifted((*_layer_norms, *norm("blk.{i}.ffn_norm", _at + "post_attention_layernorm"))),
        *attention(),
        *linear("blk.{i}.ffn_up", _at + "mlp.up_proj", "n_ff", "n_embd", bias="mlp_bias"),
        *linear("blk.{i}.ffn_down", _at + "mlp.down_proj", "n_embd", "n_ff", bias="mlp_bias"),
    ),
    made=(ROPE_FREQS,),
    finish=_no_scaling,
    rebuild=_nemotron_rebuild,
    decoder={"norm": "layer", "activation": "relu2"},
)

ARCHITECTURES = (STABLELM, STARCODER2, OLMO, OLMO2, OLMOE, NEMOTRON)
