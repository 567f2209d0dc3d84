"""gpt-oss: experts in MXFP4 (or plain), attention sinks, alternating windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmconv.convert.archs.parts import COMMON, EMBEDDINGS, EXPERTS, attention
from llmconv.convert.tables.architecture import Architecture, Form, HfName, Key, keys, row
from llmconv.convert.tables.loader import HEAD, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims, PackMxfp4, Reshape, Split, SwapRows, Transpose

_at = "{p}layers.{i}."

_experts = _at + "mlp.experts."

_halves = Split(("n_ff_exp", "n_ff_exp"), "n_expert", hf_stacked=True, gguf_stacked=True)

_apart = SwapRows("n_ff_exp", 2, outer="n_expert")  # gate and up rows alternate


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    if "rope_scaling" not in config:  # whose absence transformers takes for the published YaRN
        config["rope_scaling"] = {"rope_type": "default", "rope_theta": float(own["rope.freq_base"])}
    else:
        config["rope_scaling"].setdefault("truncate", False)  # as in every published gpt-oss


GPT_OSS = Architecture(
    "gpt-oss",
    (HfName("GptOssForCausalLM", "gpt_oss"),),
    keys=(
        *(k for k in COMMON if k.gguf != "rope.freq_base"),
        *EXPERTS,
        *keys("""
            rope.freq_base                  f32   rope_theta            150000
            attention.key_length            u32   head_dim              64
            attention.value_length          u32   head_dim              64
            attention.sliding_window        u32   sliding_window        128
        """),
        Key("expert_feed_forward_length", ("intermediate_size",)),
    ),
    rows=(
        *EMBEDDINGS,
        row("blk.{i}.attn_norm.weight", _at + "input_layernorm.weight", "n_embd"),
        row("blk.{i}.post_attention_norm.weight", _at + "post_attention_layernorm.weight", "n_embd"),
        *attention(),
        row("blk.{i}.attn_sinks.weight", _at + "self_attn.sinks", "n_head"),
        row("blk.{i}.ffn_gate_inp.weight", _at + "mlp.router.weight", "n_expert, n_embd"),
        row("blk.{i}.ffn_gate_inp.bias", _at + "mlp.router.bias", "n_expert"),
        row(
            ("blk.{i}.ffn_gate_exps.weight", "blk.{i}.ffn_up_exps.weight"),
            (_experts + "gate_up_proj_blocks", _experts + "gate_up_proj_scales"),
            ("n_expert, n_ff_exp, n_embd", "n_expert, n_ff_exp, n_embd"),
            PackMxfp4(),
            _apart,
            _halves,
            alt=(Form((_experts + "gate_up_proj",), (Transpose(), _apart, _halves)),),
        ),
        row(
            "blk.{i}.ffn_down_exps.weight",
            (_experts + "down_proj_blocks", _experts + "down_proj_scales"),
            "n_expert, n_embd, n_ff_exp",
            PackMxfp4(),
            alt=(Form((_experts + "down_proj",), (Transpose(),)),),
        ),
        row(
            ("blk.{i}.ffn_gate_exps.bias", "blk.{i}.ffn_up_exps.bias"),
            _experts + "gate_up_proj_bias",
            ("n_expert, n_ff_exp", "n_expert, n_ff_exp"),
            Reshape(("n_expert", "2 * n_ff_exp"), ("n_expert * 2 * n_ff_exp", 1)),
            SwapRows("n_ff_exp", 2, outer="n_expert"),
            Split(("n_ff_exp", "n_ff_exp"), "n_expert"),
            Reshape(("n_expert * n_ff_exp", 1), ("n_expert", "n_ff_exp")),
        ),
        row("blk.{i}.ffn_down_exps.bias", _experts + "down_proj_bias", "n_expert, n_embd"),
    ),
    rebuild=_rebuild,
    decoder={
        "window_pattern": 2,
        "activation": "swiglu_oai",
        "gating": "softmax_weight",
        "mlp_norm": "post_attention_norm",
        "yarn_truncate": False,
        "activation_key": "",
    },
    reads="layer_types",
    inert="hidden_act experts_per_token initial_context_length swiglu_fused",
    fixed={"swiglu_alpha": 1.702, "swiglu_limit": 7.0},
    loader=Loader(
        unread=("attention.sliding_window_pattern",), needed=(*HEAD, *OUT_BIAS), pieces={"yarn_truncate": True}
    ),
)

ARCHITECTURES = (GPT_OSS,)
