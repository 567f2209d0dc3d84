"""MoonViT, the tower of Kimi-VL, Kimi K2.5 and GLM-5.2-Vision: pictures of any size, four patches a vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import keys, row
from llmconv.convert.tables.ops import Concat, Dims, Only, Op, Reshape, Split, SwapRows
from llmconv.convert.tables.tower import Side, Tower
from llmconv.convert.towers.parts import linear, norm, split_qkv, vision

_LAYER = "vision_tower.encoder.blocks.{i}."
_AT = "v.blk.{i}."
_PROJECTOR = (
    *norm("mm.input_norm", "multi_modal_projector.pre_norm"),
    *linear("mm.1", "multi_modal_projector.linear_1", "n_four", "n_four"),
    *linear("mm.2", "multi_modal_projector.linear_2", "n_proj", "n_four"),
)
_MEASURED = {"n_four": ("mm.1.weight", 1)}
_PATCHES = (
    row("v.patch_embd.weight", "vision_tower.patch_embed.proj.weight", "n_embd, 3, patch, patch"),
    row("v.patch_embd.bias", "vision_tower.patch_embed.proj.bias", "n_embd"),
)
_REST = (
    *norm(_AT + "ln1", _LAYER + "norm0"),
    *linear(_AT + "attn_out", _LAYER + "wo", "n_embd", "n_embd"),
    *norm(_AT + "ln2", _LAYER + "norm1"),
    *linear(_AT + "ffn_up", _LAYER + "mlp.fc0", "n_ff", "n_embd"),
    *linear(_AT + "ffn_down", _LAYER + "mlp.fc1", "n_embd", "n_ff"),
    *norm("v.post_ln", "vision_tower.encoder.final_layernorm"),
)


def _square(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """A picture's size is that of the table of positions."""
    own["image_size"] = np.uint32(int(config.get("init_pos_emb_height", 64)) * dims["patch"])


def _square_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    side = int(own.get("image_size", 896)) // max(1, dims["patch"])
    config.update(model_type="moonvit", init_pos_emb_height=side, init_pos_emb_width=side, merge_kernel_size=[2, 2])
    config.pop("image_size", None)


KIMI_VL = Tower(
    "kimivl",
    ("KimiVLForConditionalGeneration",),
    "kimi_vl",
    (
        Side(
            vision(
                (
                    *_PATCHES,
                    row(
                        "v.position_embd.weight",
                        "vision_tower.patch_embed.pos_emb.weight",
                        "(image // patch) * (image // patch), n_embd",
                        Reshape(
                            hf=("image // patch", "image // patch", "n_embd"),
                            gguf=("(image // patch) * (image // patch)", "n_embd"),
                        ),
                    ),
                    *split_qkv(_AT, _LAYER + "wqkv"),
                    *_REST,
                    *_PROJECTOR,
                ),
                keys=keys("""
                    image_size                      u32   -                   896
                    patch_size                      u32   patch_size          14
                    embedding_length                u32   hidden_size         1152
                    feed_forward_length             u32   intermediate_size   4304
                    block_count                     u32   num_hidden_layers   27
                    attention.head_count            u32   num_attention_heads 16
                    attention.layer_norm_epsilon    f32   layer_norm_eps      1e-5
                    projector.scale_factor          u32   -                   2
                """),
                constants={"/clip.projector_type": "kimivl", "/clip.use_gelu": True},
                finish=_square,
                rebuild=_square_back,
            ),
            "vision_config",
            _MEASURED,
        ),
    ),
    starts=("vision_tower.", "multi_modal_projector."),
)


def _sized(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """Positions' table, the limits of a picture's size, and how many patches a side are one vector."""
    table = {"height": 64, "width": 64, "time": 4}
    sizes = {name: int(config.get(f"init_pos_emb_{name}", usual)) for name, usual in table.items()}
    own |= {f"/vision.pos_emb_{name}": np.uint32(size) for name, size in sizes.items()}
    own["image_size"] = np.uint32(sizes["height"] * dims["patch"])
    own["/clip.use_gelu"] = config.get("projector_hidden_act", "gelu") == "gelu"
    own["projector.scale_factor"] = np.uint32(config.get("merge_kernel_size", [2, 2])[0])
    area = dims["patch"] * dims["patch"]
    own["image_min_pixels"] = np.uint32(8 * area)
    own["image_max_pixels"] = np.uint32(int(config["processor"].get("in_patch_limit", 16384)) * area)


def _sized_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    side = int(own.get("projector.scale_factor", 2))
    config.pop("image_size", None)
    config.update(merge_kernel_size=[side, side], init_pos_emb_height=dims["n_high"], init_pos_emb_width=dims["n_wide"])
    limit = int(own.get("image_max_pixels", 0)) // max(1, dims["patch"] * dims["patch"])
    config.setdefault("processor", {})["in_patch_limit"] = limit or 16384


_THREE: tuple[Op, ...] = (
    Split(("2 * n_embd", "n_embd")),
    Only(0, SwapRows("n_embd // n_head // 4", 2, outer="2 * n_head", inner=2)),
    Concat(("2 * n_embd", "n_embd")),
)
"""Queries and keys: rotary pairs of the two directions, which alternate in the folder, apart."""

_K25 = vision(
    (
        *_PATCHES,
        row("v.position_embd.weight", "vision_tower.patch_embed.pos_emb.weight", "n_high, n_wide, n_embd"),
        row(_AT + "attn_qkv.weight", _LAYER + "wqkv.weight", "3 * n_embd, n_embd", *_THREE),
        row(_AT + "attn_qkv.bias", _LAYER + "wqkv.bias", "3 * n_embd", *_THREE),
        *_REST,
        *_PROJECTOR,
    ),
    keys=keys("""
        image_size                      u32   -                                          896
        patch_size                      u32   patch_size                                 14
        embedding_length                u32   vt_hidden_size|hidden_size                 1152
        feed_forward_length             u32   vt_intermediate_size|intermediate_size     4304
        block_count                     u32   vt_num_hidden_layers|num_hidden_layers     27
        attention.head_count            u32   vt_num_attention_heads|num_attention_heads 16
        attention.layer_norm_epsilon    f32   projector_ln_eps                           1e-5
    """),
    constants={"/clip.projector_type": "kimik25"},
    finish=_sized,
    rebuild=_sized_back,
)
KIMI_K25 = Tower(
    "kimik25",
    ("KimiK25ForConditionalGeneration", "Glm5vForConditionalGeneration"),
    "kimi_k25",
    (
        Side(
            _K25,
            "vision_config",
            _MEASURED | {"n_high": ("v.position_embd.weight", 0), "n_wide": ("v.position_embd.weight", 1)},
        ),
    ),
    starts=("vision_tower.", "multi_modal_projector."),
    spellings=(
        (r"^(?:model\.)?mm_projector\.pre_norm\.", "multi_modal_projector.pre_norm."),
        (r"^(?:model\.)?mm_projector\.(?:proj\.0|linear_1)\.", "multi_modal_projector.linear_1."),
        (r"^(?:model\.)?mm_projector\.(?:proj\.2|linear_2)\.", "multi_modal_projector.linear_2."),
    ),
    dropped=(r"vision_tower\.patch_embed\.pos_emb\.time_weight",),
    written=(
        ("multi_modal_projector.pre_norm.", "mm_projector.pre_norm."),
        ("multi_modal_projector.linear_1.", "mm_projector.proj.0."),
        ("multi_modal_projector.linear_2.", "mm_projector.proj.2."),
    ),
)

TOWERS = (KIMI_VL, KIMI_K25)
