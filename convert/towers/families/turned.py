"""Towers whose positions turn queries and keys, in another order in llama.cpp: MiniMax M3's, Muse Glimmer's; and that
of DeepSeek V4 Flash Vision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import Form, Row, keys, row
from llmconv.convert.tables.ops import ByAxis, Dims, Reshape, Slabs, Split, rope_halves
from llmconv.convert.tables.tower import Side, Tower
from llmconv.convert.towers.families.siglip import GELU
from llmconv.convert.towers.parts import CONV3D, linear, norm, vision
from llmconv.errors import Unsupported
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain
from llmconv.quant.block import Bytes

_AT = "v.blk.{i}."
_HALF = (0.5, 0.5, 0.5)

_FLASH = "vision.blocks.{i}."


def _flash(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    scale = int(own["projector.scale_factor"])
    own["image_size"] = np.uint32(dims["patch"] * scale * 16)
    for name, only in (("vision_max_n_token", 384), ("vision_max_wh_ratio", 8)):
        if config.get(name, only) != only:
            raise Unsupported(f"config.json: {name} is {config[name]!r:.40}, llama.cpp computes with {only} alone")
    for name in ("image_mean", "image_std"):
        own.setdefault(name, np.array(_HALF, np.float32))


def _flash_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    for name in ("image_size", "layer_norm_eps"):
        config.pop(name, None)
    config.update(vision_max_n_token=384, vision_max_wh_ratio=8, vision_rope_theta=10000.0)


DEEPSEEK4 = Tower(
    "deepseek4v",
    ("DeepseekV4ForCausalLM",),
    "deepseek_v4",
    (
        Side(
            vision(
                (
                    row(
                        "v.patch_embd.weight",
                        "vision.patch_embed.proj.weight",
                        "n_embd, 3, patch, patch",
                        Reshape(hf=("n_embd", "3 * patch * patch"), gguf=("n_embd", 3, "patch", "patch")),
                    ),
                    row("v.patch_embd.bias", "vision.patch_embed.proj.bias", "n_embd", optional=True),
                    *norm(_AT + "ln1", _FLASH + "norm1", bias=False),
                    *linear(_AT + "attn_qkv", _FLASH + "attn.wqkv", "3 * n_embd", "n_embd", bias="?"),
                    *linear(_AT + "attn_out", _FLASH + "attn.wo", "n_embd", "n_embd", bias="?"),
                    *norm(_AT + "ln2", _FLASH + "norm2", bias=False),
                    row(
                        (_AT + "ffn_gate.weight", _AT + "ffn_up.weight"),
                        _FLASH + "mlp.w1.weight",
                        ("n_ff, n_embd", "n_ff, n_embd"),
                        Split(("n_ff", "n_ff")),
                    ),
                    row(
                        (_AT + "ffn_gate.bias", _AT + "ffn_up.bias"),
                        _FLASH + "mlp.w1.bias",
                        ("n_ff", "n_ff"),
                        Split(("n_ff", "n_ff")),
                        optional=True,
                    ),
                    *linear(_AT + "ffn_down", _FLASH + "mlp.w2", "n_embd", "n_ff", bias="?"),
                    *norm("v.post_ln", "vision.norm", bias=False),
                    *linear("mm.1", "aligner.w1", "n_mid", "scale * scale * n_embd", bias="?"),
                    *linear("mm.2", "aligner.w2", "n_proj", "n_mid", bias="?"),
                    row("v.token_embd.img_start", "image_start", "n_proj"),
                    row("v.token_embd.img_end", "image_end", "n_proj"),
                    row("v.token_embd.img_pad", "image_pad", "n_proj"),
                    row("v.image_newline", "image_newline", "n_proj"),
                ),
                keys=keys("""
                    image_size                u32   -
                    patch_size                u32   vision_patch_size         14
                    embedding_length          u32   vision_dim
                    feed_forward_length       u32   vision_inter_dim
                    block_count               u32   vision_n_layers
                    attention.head_count      u32   vision_n_heads
                    attention.layer_norm_epsilon  f32  -                      1e-6
                    projector.scale_factor    u32   vision_downsample_ratio   3
                    image_min_pixels          u32   vision_min_pixels
                """),
                constants={"/clip.projector_type": "deepseek4v", "/clip.use_silu": True},
                finish=_flash,
                rebuild=_flash_back,
            ),
            "",
            {"n_mid": ("mm.1.weight", 0)},
        ),
    ),
    starts=("vision.", "aligner.", "image_"),
    text=(),
    flat=True,
    fits=lambda config: bool(config.get("vision_n_layers")),
)

_VIT = "vision_tower.vision_model."
_LAYER = _VIT + "encoder.layers.{i}."


def _minimax_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config.update(model_type="minimax_m3_vl_vision", spatial_merge_size=dims["merge"])
    config["outer"] = {"projector_hidden_size": dims["n_mid"]}


_AXES = ByAxis("n_head")
MINIMAX_M3 = Tower(
    "minimax_m3",
    ("MiniMaxM3SparseForConditionalGeneration", "MiniMaxM3VLForConditionalGeneration"),
    "minimax_m3_vl",
    (
        Side(
            vision(
                (
                    row(CONV3D.gguf, _VIT + "embeddings.patch_embedding.weight", CONV3D.shapes, *CONV3D.forms[0].ops),
                    *norm("v.pre_ln", _VIT + "pre_layrnorm"),
                    *norm(_AT + "ln1", _LAYER + "layer_norm1"),
                    row(_AT + "attn_q.weight", _LAYER + "self_attn.q_proj.weight", "n_embd, n_embd", _AXES),
                    row(_AT + "attn_q.bias", _LAYER + "self_attn.q_proj.bias", "n_embd", _AXES),
                    row(_AT + "attn_k.weight", _LAYER + "self_attn.k_proj.weight", "n_embd, n_embd", _AXES),
                    row(_AT + "attn_k.bias", _LAYER + "self_attn.k_proj.bias", "n_embd", _AXES),
                    *linear(_AT + "attn_v", _LAYER + "self_attn.v_proj", "n_embd", "n_embd"),
                    *linear(_AT + "attn_out", _LAYER + "self_attn.out_proj", "n_embd", "n_embd"),
                    *norm(_AT + "ln2", _LAYER + "layer_norm2"),
                    *linear(_AT + "ffn_up", _LAYER + "mlp.fc1", "n_ff", "n_embd"),
                    *linear(_AT + "ffn_down", _LAYER + "mlp.fc2", "n_embd", "n_ff"),
                    *linear("mm.1", "multi_modal_projector.linear_1", "n_mid", "n_embd"),
                    *linear("mm.2", "multi_modal_projector.linear_2", "n_proj", "n_mid"),
                    *linear("mm.merger.fc1", "patch_merge_mlp.linear_1", "n_mid", "n_merged"),
                    *linear("mm.merger.fc2", "patch_merge_mlp.linear_2", "n_proj", "n_mid"),
                ),
                keys=keys("""
                    image_size                      u32   image_size             2016
                    patch_size                      u32   patch_size             14
                    embedding_length                u32   hidden_size            1280
                    feed_forward_length             u32   intermediate_size      5120
                    block_count                     u32   num_hidden_layers      32
                    attention.head_count            u32   num_attention_heads    16
                    attention.layer_norm_epsilon    f32   layer_norm_eps         1e-5
                    spatial_merge_size   u32   img_token_compression_config.spatial_merge_size|spatial_merge_size   2
                """),
                constants=GELU | {"/clip.projector_type": "minimax_m3"},
                rebuild=_minimax_back,
            ),
            "vision_config",
            {"n_mid": ("mm.1.weight", 0), "n_merged": ("mm.merger.fc1.weight", 1)},
        ),
    ),
    starts=("vision_tower.", "multi_modal_projector.", "patch_merge_mlp."),
)

_GLIMMER = "model.vision_tower."
_EYE = _GLIMMER + "layers.{i}."
_PATCHES = _GLIMMER + "patch_embedder.patch_embedding.weight"
_TURNED = rope_halves("n_head", "n_embd // n_head")


_ONE_PICTURE = Row(
    ("v.patch_embd.weight",),
    (
        Form(
            (_PATCHES,),
            (Slabs(2), Reshape(hf=("n_embd", "3 * patch * patch"), gguf=("n_embd", 3, "patch", "patch"))),
            backward=True,
        ),
    ),
    ("n_embd, 3, patch, patch",),
    optional=True,
)
"""The way back of what `_summed` makes, where the folder's own matrix is not kept."""


def _summed(folder: Checkpoint, settings: Mapping[str, Any]) -> Iterable[Tensor]:
    """The matrix for a patch of one picture: the sum of those for the pictures of a film."""
    whole = folder.tensors.get(_PATCHES)
    slabs, patch = int(settings.get("patch_temporal", 2)), int(settings.get("patch_size", 14))
    if whole is None or len(whole.shape) != 2 or whole.row_len != slabs * 3 * patch * patch:
        return ()
    shape, kind = (whole.shape[0], 3 * patch * patch), plain.F16 if whole.type is plain.F16 else plain.F32

    def read(start: int, stop: int) -> Bytes:
        values = whole.rows(start, stop).astype(np.float32).reshape(stop - start, slabs, shape[1])
        return kind.encode(values.sum(axis=1, dtype=np.float32))

    made = Tensor("v.patch_embd.weight", shape, kind, read)
    return (made.reshaped((shape[0], 3, patch, patch)),)


def _glimmer(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["image_size"] = np.uint32(int(config.get("pos_emb_height", 32)) * dims["patch"] * dims["merge"])


def _glimmer_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config.pop("image_size", None)
    side = dims["image"] // max(1, dims["patch"] * dims["merge"])
    config.update(
        model_type="muse_glimmer_vision",
        pos_emb_height=side,
        pos_emb_width=dims["n_places"] // max(1, side),
        patch_temporal=2,
        max_position_embeddings=dims["n_places"],
    )
    config["outer"] = {"projector_hidden_size": dims["n_mid"], "out_hidden_size": dims["n_joined"]}


MUSE_GLIMMER = Tower(
    "muse-glimmer",
    ("MuseGlimmerForConditionalGeneration",),
    "muse_glimmer",
    (
        Side(
            vision(
                (
                    _ONE_PICTURE,
                    row(
                        "v.position_embd.weight",
                        _GLIMMER + "patch_embedder.position_embedding_table.weight",
                        "n_places, n_embd",
                    ),
                    *norm("v.pre_ln", _GLIMMER + "ln_pre"),
                    *norm(_AT + "ln1", _EYE + "norm1"),
                    row(_AT + "attn_q.weight", _EYE + "attn.q_proj.weight", "n_embd, n_embd", _TURNED),
                    row(_AT + "attn_q.bias", _EYE + "attn.q_proj.bias", "n_embd", _TURNED),
                    row(_AT + "attn_k.weight", _EYE + "attn.k_proj.weight", "n_embd, n_embd", _TURNED),
                    row(_AT + "attn_k.bias", _EYE + "attn.k_proj.bias", "n_embd", _TURNED),
                    *linear(_AT + "attn_v", _EYE + "attn.v_proj", "n_embd", "n_embd"),
                    *linear(_AT + "attn_out", _EYE + "attn.proj", "n_embd", "n_embd"),
                    *norm(_AT + "ln2", _EYE + "norm2"),
                    *linear(_AT + "ffn_up", _EYE + "mlp.fc1", "n_ff", "n_embd"),
                    *linear(_AT + "ffn_down", _EYE + "mlp.fc2", "n_embd", "n_ff"),
                    *norm("v.post_ln", _GLIMMER + "ln_post"),
                    row("mm.0.weight", "model.vision_adapter.fc1.weight", "n_mid, n_joined"),
                    row("mm.1.weight", "model.vision_adapter.fc2.weight", "n_mid, n_mid"),
                    row("mm.2.weight", "model.vision_projection.weight", "n_proj, n_mid"),
                ),
                keys=keys("""
                    image_size                      u32   -
                    patch_size                      u32   patch_size             14
                    embedding_length                u32   hidden_size            1536
                    feed_forward_length             u32   intermediate_size      8960
                    block_count                     u32   num_hidden_layers      50
                    attention.head_count            u32   num_attention_heads    16
                    attention.layer_norm_epsilon    f32   layer_norm_eps         1e-5
                    spatial_merge_size              u32   merge_size             2
                """),
                constants={"/clip.projector_type": "muse-glimmer"},
                finish=_glimmer,
                rebuild=_glimmer_back,
            ),
            "vision_config",
            {
                "n_places": ("v.position_embd.weight", 0),
                "n_mid": ("mm.0.weight", 0),
                "n_joined": ("mm.0.weight", 1),
            },
            made=_summed,
        ),
    ),
    starts=(_GLIMMER, "model.vision_adapter.", "model.vision_projection."),
    kept=(_PATCHES.replace(".", r"\."),),
    text=(),
)

TOWERS = (DEEPSEEK4, MINIMAX_M3, MUSE_GLIMMER)
