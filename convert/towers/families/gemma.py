"""Gemma 4's towers: a transformer that sees, a conformer that hears; matrices whose inputs and outputs are clipped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import Row, keys, row
from llmconv.convert.tables.ops import Dims, Reshape, Softplus, SwapColumns
from llmconv.convert.tables.tower import Side, Tower
from llmconv.convert.towers.parts import audio, linear, norm, vision

_BOUNDS = ("input_min", "input_max", "output_min", "output_max")
_NUMBER = Reshape(hf=(), gguf=(1,))


def _clipped(gguf: str, hf: str, n_out: str, n_in: str) -> tuple[Row, ...]:
    """Rows of a matrix and, where a model has them, of the bounds between which its inputs and outputs are held."""
    return (
        row(f"{gguf}.weight", f"{hf}.linear.weight", f"{n_out}, {n_in}"),
        *(row(f"{gguf}.{bound}", f"{hf}.{bound}", "1", _NUMBER, optional=True) for bound in _BOUNDS),
    )


_VIT = "model.vision_tower."
_LAYER = _VIT + "encoder.layers.{i}."
_AT = "v.blk.{i}."

_SEEN = vision(
    (
        row(
            "v.patch_embd.weight",
            _VIT + "patch_embedder.input_proj.weight",
            "n_embd, 3, patch, patch",
            SwapColumns("patch * patch", 3, 1),
            Reshape(hf=("n_embd", "3 * patch * patch"), gguf=("n_embd", 3, "patch", "patch")),
        ),
        row("v.position_embd.weight", _VIT + "patch_embedder.position_embedding_table", "2, n_places, n_embd"),
        *norm(_AT + "ln1", _LAYER + "input_layernorm", bias=False),
        *_clipped(_AT + "attn_q", _LAYER + "self_attn.q_proj", "n_queries", "n_embd"),
        *_clipped(_AT + "attn_k", _LAYER + "self_attn.k_proj", "n_keys", "n_embd"),
        *_clipped(_AT + "attn_v", _LAYER + "self_attn.v_proj", "n_keys", "n_embd"),
        *norm(_AT + "attn_q_norm", _LAYER + "self_attn.q_norm", "n_each", bias=False),
        *norm(_AT + "attn_k_norm", _LAYER + "self_attn.k_norm", "n_each", bias=False),
        *_clipped(_AT + "attn_out", _LAYER + "self_attn.o_proj", "n_embd", "n_queries"),
        *norm(_AT + "attn_post_norm", _LAYER + "post_attention_layernorm", bias=False),
        *norm(_AT + "ln2", _LAYER + "pre_feedforward_layernorm", bias=False),
        *_clipped(_AT + "ffn_gate", _LAYER + "mlp.gate_proj", "n_ff", "n_embd"),
        *_clipped(_AT + "ffn_up", _LAYER + "mlp.up_proj", "n_ff", "n_embd"),
        *_clipped(_AT + "ffn_down", _LAYER + "mlp.down_proj", "n_embd", "n_ff"),
        *norm(_AT + "ffn_post_norm", _LAYER + "post_feedforward_layernorm", bias=False),
        row(_AT + "out_scale.weight", _LAYER + "layer_scalar", "1", optional=True),
        row("v.std_bias", _VIT + "std_bias", "n_embd", optional=True),
        row("v.std_scale", _VIT + "std_scale", "n_embd", optional=True),
        row("mm.input_projection.weight", "model.embed_vision.embedding_projection.weight", "n_proj, n_embd"),
    ),
    keys=keys("""
        image_size                      u32   -                     224
        patch_size                      u32   patch_size            16
        embedding_length                u32   hidden_size           768
        feed_forward_length             u32   intermediate_size     3072
        block_count                     u32   num_hidden_layers     16
        attention.head_count            u32   num_attention_heads   12
        attention.layer_norm_epsilon    f32   layer_norm_eps        1e-6
    """),
    constants={"projector_type": "gemma4v"},
    rebuild=lambda config, own, dims: _seen_back(config, dims),
)


def _seen_back(config: dict[str, Any], dims: Dims) -> None:
    config.pop("image_size", None)
    config.update(
        model_type="gemma4_vision",
        head_dim=dims["n_each"],
        num_key_value_heads=dims["n_keys"] // max(1, dims["n_each"]),
        position_embedding_size=dims["n_places"],
    )


_EAR = "model.audio_tower."
_PART = _EAR + "layers.{i}."
_IN = "a.blk.{i}."


def _mlp(gguf: str, hf: str) -> tuple[Row, ...]:
    """Half a step of a conformer's layer."""
    return (
        *norm(f"{_IN}ffn_norm{gguf}", f"{_PART}{hf}.pre_layer_norm", bias=False),
        *_clipped(f"{_IN}ffn_up{gguf}", f"{_PART}{hf}.ffw_layer_1", "n_ff", "n_embd"),
        *_clipped(f"{_IN}ffn_down{gguf}", f"{_PART}{hf}.ffw_layer_2", "n_embd", "n_ff"),
        *norm(f"{_IN}ffn_post_norm{gguf}", f"{_PART}{hf}.post_layer_norm", bias=False),
    )


def _four_times(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["feed_forward_length"] = np.uint32(4 * dims["n_embd"])


_HEARD = audio(
    (
        row("a.conv1d.0.weight", _EAR + "subsample_conv_projection.layer0.conv.weight", "n_conv, 1, 3, 3"),
        row("a.conv1d.0.norm.weight", _EAR + "subsample_conv_projection.layer0.norm.weight", "n_conv"),
        row("a.conv1d.1.weight", _EAR + "subsample_conv_projection.layer1.conv.weight", "n_conv_2, n_conv, 3, 3"),
        row("a.conv1d.1.norm.weight", _EAR + "subsample_conv_projection.layer1.norm.weight", "n_conv_2"),
        row("a.input_projection.weight", _EAR + "subsample_conv_projection.input_proj_linear.weight", "n_embd, n_flat"),
        *_mlp("", "feed_forward1"),
        *norm(_IN + "attn_pre_norm", _PART + "norm_pre_attn", bias=False),
        *_clipped(_IN + "attn_q", _PART + "self_attn.q_proj", "n_embd", "n_embd"),
        *_clipped(_IN + "attn_k", _PART + "self_attn.k_proj", "n_embd", "n_embd"),
        *_clipped(_IN + "attn_v", _PART + "self_attn.v_proj", "n_embd", "n_embd"),
        *linear(_IN + "attn_k_rel", _PART + "self_attn.relative_k_proj", "n_embd", "n_embd", bias=False),
        row(_IN + "per_dim_scale.weight", _PART + "self_attn.per_dim_scale", "n_embd // n_head", Softplus()),
        *_clipped(_IN + "attn_out", _PART + "self_attn.post", "n_embd", "n_embd"),
        *norm(_IN + "attn_post_norm", _PART + "norm_post_attn", bias=False),
        *norm(_IN + "conv_norm", _PART + "lconv1d.pre_layer_norm", bias=False),
        *_clipped(_IN + "conv_pw1", _PART + "lconv1d.linear_start", "2 * n_embd", "n_embd"),
        row(
            _IN + "conv_dw.weight",
            _PART + "lconv1d.depthwise_conv1d.weight",
            "n_embd, n_kernel",
            Reshape(hf=("n_embd", 1, "n_kernel"), gguf=("n_embd", "n_kernel")),
        ),
        *norm(_IN + "norm_conv", _PART + "lconv1d.conv_norm", bias=False),
        *_clipped(_IN + "conv_pw2", _PART + "lconv1d.linear_end", "n_embd", "n_embd"),
        *_mlp("_1", "feed_forward2"),
        *norm(_IN + "ln2", _PART + "norm_out", bias=False),
        *linear("a.pre_encode.out", _EAR + "output_proj", "n_out", "n_embd"),
        row("mm.a.input_projection.weight", "model.embed_audio.embedding_projection.weight", "n_proj, n_out"),
    ),
    keys=keys("""
        feed_forward_length             u32   -
        embedding_length                u32   hidden_size            1024
        block_count                     u32   num_hidden_layers      12
        attention.head_count            u32   num_attention_heads    8
        num_mel_bins                    u32   input_feat_size        128
        attention.layer_norm_epsilon    f32   layer_norm_eps         1e-6
    """),
    constants={"projector_type": "gemma4a"},
    finish=_four_times,
    rebuild=lambda config, own, dims: config.update(
        model_type="gemma4_audio",
        output_proj_dims=dims["n_out"],
        conv_kernel_size=dims["n_kernel"],
        subsampling_conv_channels=[dims["n_conv"], dims["n_conv_2"]],
    ),
)

GEMMA4 = Tower(
    "gemma4v",
    ("Gemma4ForConditionalGeneration",),
    "gemma4",
    (
        Side(
            _SEEN,
            "vision_config",
            {
                "n_places": ("v.position_embd.weight", 1),
                "n_queries": ("v.blk.0.attn_q.weight", 0),
                "n_keys": ("v.blk.0.attn_k.weight", 0),
                "n_each": ("v.blk.0.attn_q_norm.weight", 0),
            },
        ),
        Side(
            _HEARD,
            "audio_config",
            {
                "n_conv": ("a.conv1d.0.weight", 0),
                "n_conv_2": ("a.conv1d.1.weight", 0),
                "n_flat": ("a.input_projection.weight", 1),
                "n_kernel": ("a.blk.0.conv_dw.weight", -1),
                "n_out": ("a.pre_encode.out.weight", 0),
            },
            optional=True,
        ),
    ),
    starts=(_VIT, _EAR, "model.embed_vision.", "model.embed_audio."),
    text=(("model.", "model.language_model."),),
    projectors=("gemma4a",),
)

TOWERS = (GEMMA4,)
