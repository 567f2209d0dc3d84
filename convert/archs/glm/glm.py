"""GLM-4: ChatGLM's block under two sets of names, and GLM-4-0414's with norms behind the sublayers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import (
    COMMON,
    EMBEDDINGS,
    HEAD_DIM,
    NEXTN,
    attention,
    count_nextn,
    uncount_nextn,
)
from llmconv.convert.archs.rope import partial_rotary, rope_sections, sections_back
from llmconv.convert.tables.architecture import Architecture, Form, HfName, Row, keys, row
from llmconv.convert.tables.loader import AS_WIDE, MLP_BIASES, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Concat, Dims, Unpaired

_at = "{p}layers.{i}."

MLP = (
    row("blk.{i}.ffn_up.weight", _at + "mlp.gate_up_proj.weight", "2 * n_ff, n_embd"),
    row("blk.{i}.ffn_down.weight", _at + "mlp.down_proj.weight", "n_embd, n_ff"),
)
"""Gate and up in one matrix, as GGUF keeps them too."""

_finish, _rebuild = partial_rotary("partial_rotary_factor", 0.5)


def _finish4(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    _finish(own, config, dims)
    rope_sections(own, config, dims)
    count_nextn(own)


def _rebuild4(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    _rebuild(config, own, dims)
    if dims["n_nextn"]:
        uncount_nextn(config, dims)
    if sections_back(config, own):
        config.update(architectures=["Glm4vForConditionalGeneration"], model_type="glm4v")


_attention = tuple(
    replace(r, forms=(replace(r.forms[0], ops=(Unpaired("n_head" if "_q" in r.gguf[0] else "n_head_kv"),)),))
    if r.gguf[0].startswith(("blk.{i}.attn_q.", "blk.{i}.attn_k."))
    else r
    for r in attention(bias="attention_bias=true", out_bias=True)
)

GLM4 = Architecture(
    "glm4",
    (
        HfName("Glm4ForCausalLM", "glm4"),
        HfName("Glm4vForConditionalGeneration", "glm4v"),
        HfName("GlmOcrForConditionalGeneration", "glm_ocr"),
    ),
    keys=(*COMMON, *HEAD_DIM, *keys("nextn_predict_layers  u32  num_nextn_predict_layers")),
    rows=(
        *EMBEDDINGS,
        row("blk.{i}.attn_norm.weight", _at + "input_layernorm.weight", "n_embd"),
        *_attention,
        row("blk.{i}.post_attention_norm.weight", _at + "post_self_attn_layernorm.weight", "n_embd"),
        row("blk.{i}.ffn_norm.weight", _at + "post_attention_layernorm.weight", "n_embd"),
        *MLP,
        row("blk.{i}.post_ffw_norm.weight", _at + "post_mlp_layernorm.weight", "n_embd"),
        *NEXTN,
    ),
    finish=_finish4,
    rebuild=_rebuild4,
    decoder={"rope": "pairs", "folded_halves": True},
    prefixes=("model.", "", "model.language_model.", "language_model.model."),
    reads="partial_rotary_factor mrope_section",
    loader=Loader(refused=(*MLP_BIASES, *OUT_BIAS)),
)


def _of_its_own_code(config: Mapping[str, Any]) -> bool:
    """Whether the model is one of ChatGLM's own code, not of transformers'."""
    return "padded_vocab_size" in config or "multi_query_group_num" in config


def _of_transformers(config: Mapping[str, Any]) -> bool:
    return not _of_its_own_code(config)


def _biased(config: Mapping[str, Any]) -> bool:
    return _of_transformers(config) and bool(config.get("attention_bias", True))


def _biased_of_its_own_code(config: Mapping[str, Any]) -> bool:
    return _of_its_own_code(config) and bool(config.get("add_qkv_bias"))


_own = "transformer.encoder."

_q, _kv = "n_head * head_dim", "n_head_kv * head_dim"


def _named(gguf: str, hf: str, own: str, shape: str, **options: Any) -> Row:
    """A row under both sets of names."""
    return row(gguf, hf, shape, alt=(Form((own,)),), **options)


def _qkv(part: str, shapes: tuple[str, str, str]) -> tuple[Row, ...]:
    """q, k and v, which GGUF keeps apart where the model did; what somebody else fused is taken apart."""
    apart = tuple(_at + f"self_attn.{n}_proj.{part}" for n in "qkv")
    fused = _own + f"layers.{{i}}.self_attention.query_key_value.{part}"
    joined = Form(apart, (Concat((_q, _kv, _kv)),), backward=True)
    rows = (f"{_q} + 2 * {_kv}" + (", n_embd" if part == "weight" else ""),)
    of_both = (_of_transformers, _of_its_own_code) if part == "weight" else (_biased, _biased_of_its_own_code)
    return (
        row(tuple(f"blk.{{i}}.attn_{n}.{part}" for n in "qkv"), apart, shapes, optional=of_both[0]),
        Row((f"blk.{{i}}.attn_qkv.{part}",), (joined, Form((fused,))), rows, optional=of_both[1]),
    )


def _finish_own(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    _finish(own, config, dims)
    if config.get("rope_ratio"):
        own["rope.freq_base"] = np.float32(10000.0 * config["rope_ratio"])


CHATGLM = Architecture(
    "chatglm",
    (
        HfName("GlmForCausalLM", "glm"),
        HfName("ChatGLMModel", "chatglm"),
        HfName("ChatGLMForConditionalGeneration", "chatglm"),
    ),
    keys=keys("""
        block_count                       u32   num_hidden_layers|num_layers
        context_length                    u32   max_position_embeddings|seq_length
        embedding_length                  u32   hidden_size
        feed_forward_length               u32   intermediate_size|ffn_hidden_size
        attention.head_count              u32   num_attention_heads
        attention.head_count_kv           u32   num_key_value_heads|multi_query_group_num   = n_head
        rope.freq_base                    f32   rope_theta                          10000
        attention.layer_norm_rms_epsilon  f32   rms_norm_eps|layernorm_epsilon      1e-5
        attention.key_length              u32   head_dim|kv_channels                = n_embd // n_head
        attention.value_length            u32   head_dim|kv_channels                = n_embd // n_head
    """),
    rows=(
        _named(
            "token_embd.weight",
            "{p}embed_tokens.weight",
            "transformer.embedding.word_embeddings.weight",
            "n_vocab, n_embd",
        ),
        _named("output_norm.weight", "{p}norm.weight", _own + "final_layernorm.weight", "n_embd"),
        _named(
            "output.weight",
            "lm_head.weight",
            "transformer.output_layer.weight",
            "n_vocab, n_embd",
            optional="!tie_word_embeddings",
        ),
        _named(
            "blk.{i}.attn_norm.weight",
            _at + "input_layernorm.weight",
            _own + "layers.{i}.input_layernorm.weight",
            "n_embd",
        ),
        *_qkv("weight", (f"{_q}, n_embd", f"{_kv}, n_embd", f"{_kv}, n_embd")),
        *_qkv("bias", (_q, _kv, _kv)),
        _named(
            "blk.{i}.attn_output.weight",
            _at + "self_attn.o_proj.weight",
            _own + "layers.{i}.self_attention.dense.weight",
            f"n_embd, {_q}",
        ),
        _named(
            "blk.{i}.ffn_norm.weight",
            _at + "post_attention_layernorm.weight",
            _own + "layers.{i}.post_attention_layernorm.weight",
            "n_embd",
        ),
        _named(
            "blk.{i}.ffn_up.weight",
            _at + "mlp.gate_up_proj.weight",
            _own + "layers.{i}.mlp.dense_h_to_4h.weight",
            "2 * n_ff, n_embd",
        ),
        _named(
            "blk.{i}.ffn_down.weight",
            _at + "mlp.down_proj.weight",
            _own + "layers.{i}.mlp.dense_4h_to_h.weight",
            "n_embd, n_ff",
        ),
    ),
    prefixes=("model.", ""),
    dropped=(r".*\.rotary_emb\.inv_freq", r".*rotary_pos_emb\.inv_freq"),
    finish=_finish_own,
    rebuild=_rebuild,
    decoder={"rope": "pairs"},
    reads="partial_rotary_factor rope_ratio padded_vocab_size multi_query_attention attention_bias add_qkv_bias"
    " rope_theta",
    inert="attention_softmax_in_fp32 bias_dropout_fusion fp32_residual_connection quantization_bit pre_seq_len"
    " prefix_projection interleaved_qkv",
    fixed={
        "add_bias_linear": False,
        "apply_residual_connection_post_layernorm": False,
        "apply_query_key_layer_scaling": (True, False),
        "rmsnorm": True,
        "post_layer_norm": True,
        "original_rope": True,
    },
    loader=Loader(refused=(*MLP_BIASES, *OUT_BIAS), wants=AS_WIDE),
)

ARCHITECTURES = (GLM4, CHATGLM)
