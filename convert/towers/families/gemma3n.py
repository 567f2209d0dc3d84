"""Gemma 3n's towers: a MobileNet that sees, a conformer that hears, and what brings both to the text model's width."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import Row, keys, row
from llmconv.convert.tables.ops import Dims, Reshape
from llmconv.convert.tables.tower import Side, Tower
from llmconv.convert.towers.parts import audio, linear, norm, vision

_NET = "model.vision_tower.timm_model."
_STEM = _NET + "conv_stem."
_PARTS = r"""
    conv_exp.weight|bn1.weight|conv_pwl.weight|bn2.weight
    |dw_(?:start|mid).(?:conv|bn).weight|pw_(?:exp|proj).(?:conv|bn).weight|layer_scale.gamma
    |attn.(?:query|key|value|output).proj.weight|attn.(?:key|value).(?:down_conv|norm).weight|norm.weight
""".replace(".", r"\.")
"""What a block may be made of: its edge residual, its inverted bottleneck, its attention."""
_BLOCK = re.compile(rf"(?:{re.escape(_NET)}blocks|v\.blk)\.(\d+)\.(\d+)\.({_PARTS})", re.VERBOSE)


def _blocks(metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Iterable[Row]:
    """A row for every tensor of a block there is: no key says how many stages a net has, and of what."""
    for name, shape in shapes.items():
        if found := _BLOCK.fullmatch(name):
            stage, block, part = found.groups()
            sizes = ", ".join(map(str, shape))
            yield row(f"v.blk.{stage}.{block}.{part}", f"{_NET}blocks.{stage}.{block}.{part}", sizes)


def _embedder(gguf: str, hf: str, size: str) -> tuple[Row, ...]:
    """Rows of what has vectors for the tokens of a kind, and brings them and the tower's to the text model's width."""
    return (
        row(f"{gguf}.embedding.weight", f"{hf}.embedding.weight", f"n_tokens, {size}"),
        *norm(f"{gguf}.hard_emb_norm", f"{hf}.hard_embedding_norm", size, bias=False),
        *norm(f"{gguf}.soft_emb_norm", f"{hf}.soft_embedding_norm", size, bias=False),
        row(f"{gguf}.input_projection.weight", f"{hf}.embedding_projection.weight", f"n_proj, {size}"),
    )


def _seen(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """A patch as llama.cpp's converter has it: a picture's size by how many vectors are made of it."""
    own["feed_forward_length"] = np.uint32(4 * int(config.get("intermediate_size", 2048)))
    own["patch_size"] = np.uint32(dims["image"] // max(1, int(config["processor"].get("image_seq_length", 256))))
    own["image_mean"], own["image_std"] = np.zeros(3, np.float32), np.ones(3, np.float32)


def _seen_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    said = config.setdefault("processor", {})
    said.pop("image_mean", None)
    said.pop("image_std", None)
    side = int(own.get("image_size", 768))
    said |= {"size": {"height": side, "width": side}}
    if tokens := side // max(1, dims["patch"]):
        said["image_seq_length"] = tokens
    for name in ("image_size", "patch_size", "num_hidden_layers", "num_attention_heads", "layer_norm_eps"):
        config.pop(name, None)
    config.update(model_type="gemma3n_vision", architecture="mobilenetv5_300m_enc", vocab_size=dims["n_tokens"])


_SEEN = vision(
    (
        row("v.conv_stem.conv.weight", _STEM + "conv.weight", "n_stem, 3, 3, 3"),
        row(
            "v.conv_stem.conv.bias",
            _STEM + "conv.bias",
            "1, n_stem, 1, 1",
            Reshape(hf=("n_stem",), gguf=(1, "n_stem", 1, 1)),
            optional=True,
        ),
        row("v.conv_stem.bn.weight", _STEM + "bn.weight", "n_stem"),
        row("v.msfa.ffn.pw_exp.conv.weight", _NET + "msfa.ffn.pw_exp.conv.weight", "n_wide, n_joined, 1, 1"),
        row("v.msfa.ffn.pw_exp.bn.weight", _NET + "msfa.ffn.pw_exp.bn.weight", "n_wide"),
        row("v.msfa.ffn.pw_proj.conv.weight", _NET + "msfa.ffn.pw_proj.conv.weight", "n_embd, n_wide, 1, 1"),
        row("v.msfa.ffn.pw_proj.bn.weight", _NET + "msfa.ffn.pw_proj.bn.weight", "n_embd"),
        row("v.msfa.norm.weight", _NET + "msfa.norm.weight", "n_embd"),
        *_embedder("mm", "model.embed_vision", "n_embd"),
    ),
    keys=keys("""
        image_size                      u32   processor.size.height   768
        patch_size                      u32   -
        embedding_length                u32   hidden_size             2048
        feed_forward_length             u32   -
        block_count                     u32   -                       128
        attention.head_count            u32   num_attention_heads     8
        image_mean                      f32s  -
        image_std                       f32s  -
    """),
    constants={"projector_type": "gemma3nv"},
    finish=_seen,
    rebuild=_seen_back,
)

_EAR = "model.audio_tower."
_SUB = _EAR + "subsample_conv_projection."
_PART = _EAR + "conformer.{i}."
_IN = "a.blk.{i}."
_ATTN = _PART + "attention.attn."


def _half(gguf: str, hf: str) -> tuple[Row, ...]:
    """Half a step of a conformer's layer."""
    return (
        *norm(f"{_IN}ffn_norm{gguf}", f"{_PART}{hf}.pre_layer_norm", bias=False),
        *linear(f"{_IN}ffn_up{gguf}", f"{_PART}{hf}.ffw_layer_1", "4 * n_embd", "n_embd", bias=False),
        *linear(f"{_IN}ffn_down{gguf}", f"{_PART}{hf}.ffw_layer_2", "n_embd", "4 * n_embd", bias=False),
        *norm(f"{_IN}ffn_post_norm{gguf}", f"{_PART}{hf}.post_layer_norm", bias=False),
    )


def _heard_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config.update(
        model_type="gemma3n_audio",
        vocab_size=dims["n_tokens"],
        conf_conv_kernel_size=dims["n_kernel"],
        sscp_conv_channel_size=[dims["n_conv"], dims["n_conv_2"]],
    )


_HEARD = audio(
    (
        row("a.conv1d.0.weight", _SUB + "conv_0.conv.weight", "n_conv, 1, 3, 3"),
        row("a.conv1d.0.norm.weight", _SUB + "conv_0.norm.weight", "n_conv", optional=True),
        row("a.conv1d.1.weight", _SUB + "conv_1.conv.weight", "n_conv_2, n_conv, 3, 3"),
        row("a.conv1d.1.norm.weight", _SUB + "conv_1.norm.weight", "n_conv_2", optional=True),
        row("a.pre_encode.out.weight", _SUB + "input_proj_linear.weight", "n_embd, n_flat"),
        *_half("", "ffw_layer_start"),
        *norm(_IN + "ln1", _PART + "attention.pre_attn_norm", bias=False),
        *linear(_IN + "attn_q", _ATTN + "q_proj", "n_embd", "n_embd", bias=False),
        *linear(_IN + "attn_k", _ATTN + "k_proj", "n_embd", "n_embd", bias=False),
        *linear(_IN + "attn_v", _ATTN + "v_proj", "n_embd", "n_embd", bias=False),
        row(_IN + "per_dim_scale", _ATTN + "per_dim_scale", "n_embd // n_head"),
        *linear(_IN + "linear_pos", _ATTN + "relative_position_embedding.pos_proj", "n_embd", "n_embd", bias=False),
        *linear(_IN + "attn_out", _PART + "attention.post", "n_embd", "n_embd", bias=False),
        *norm(_IN + "ln2", _PART + "attention.post_norm", bias=False),
        *norm(_IN + "conv_norm", _PART + "lconv1d.pre_layer_norm", bias=False),
        *linear(_IN + "conv_pw1", _PART + "lconv1d.linear_start", "2 * n_embd", "n_embd", bias=False),
        row(_IN + "conv_dw.weight", _PART + "lconv1d.depthwise_conv1d.weight", "n_embd, 1, n_kernel"),
        *norm(_IN + "norm_conv", _PART + "lconv1d.conv_norm", bias=False),
        *linear(_IN + "conv_pw2", _PART + "lconv1d.linear_end", "n_embd", "n_embd", bias=False),
        *_half("_1", "ffw_layer_end"),
        *norm(_IN + "layer_pre_norm", _PART + "norm", bias=False),
        *_embedder("mm.a", "model.embed_audio", "n_embd"),
    ),
    keys=keys("""
        embedding_length                u32   hidden_size                1536
        feed_forward_length             u32   intermediate_size          6144
        block_count                     u32   conf_num_hidden_layers     12
        attention.head_count            u32   conf_num_attention_heads   8
        num_mel_bins                    u32   input_feat_size            128
        attention.layer_norm_epsilon    f32   -                          1e-5
    """),
    constants={"projector_type": "gemma3na"},
    rebuild=_heard_back,
)

GEMMA3N = Tower(
    "gemma3nv",
    ("Gemma3nForConditionalGeneration",),
    "gemma3n",
    (
        Side(
            _SEEN,
            "vision_config",
            {
                "n_stem": ("v.conv_stem.conv.weight", 0),
                "n_wide": ("v.msfa.ffn.pw_exp.conv.weight", 0),
                "n_joined": ("v.msfa.ffn.pw_exp.conv.weight", 1),
                "n_tokens": ("mm.embedding.weight", 0),
            },
            more=_blocks,
        ),
        Side(
            _HEARD,
            "audio_config",
            {
                "n_conv": ("a.conv1d.0.weight", 0),
                "n_conv_2": ("a.conv1d.1.weight", 0),
                "n_flat": ("a.pre_encode.out.weight", 1),
                "n_kernel": ("a.blk.0.conv_dw.weight", -1),
                "n_tokens": ("mm.a.embedding.weight", 0),
            },
        ),
    ),
    starts=(_NET, _EAR, "model.embed_vision.", "model.embed_audio."),
    text=(("model.", "model.language_model."),),
    projectors=("gemma3na",),
)

TOWERS = (GEMMA3N,)
