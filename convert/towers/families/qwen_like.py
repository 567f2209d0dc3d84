"""Towers after Qwen's: EXAONE 4.5 with shared keys, GLM 5 with normed ones, Ling 3 whose projector is apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import keys, row
from llmconv.convert.tables.ops import Dims
from llmconv.convert.tables.tower import Side, Tower
from llmconv.convert.towers.families import qwen
from llmconv.convert.towers.families.ocr import PIXELS
from llmconv.convert.towers.parts import CONV3D, linear, norm, vision

_AT = "v.blk.{i}."
_BLOCK = "visual.blocks.{i}."
_FUSED = "n_embd + 2 * n_head_kv * (n_embd // n_head)"


def _exaone(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    if config.get("fullatt_block_indexes"):
        qwen.windows(own, config, dims)


def _exaone_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    full = config.get("fullatt_block_indexes")
    if "n_wa_pattern" in own:
        every = int(own["n_wa_pattern"])
        full = list(range(every - 1, dims["n_layer"], every))
    config.update(
        model_type="exaone4_5_vision",
        hidden_size=config.pop("embed_dim"),
        fullatt_block_indexes=full,
        out_hidden_size=dims["n_proj"],
    )


EXAONE45 = Tower(
    "exaone4_5",
    ("Exaone4_5_ForConditionalGeneration",),
    "exaone4_5",
    (
        Side(
            vision(
                (
                    CONV3D,
                    *norm(_AT + "ln1", _BLOCK + "norm1", bias=False),
                    *linear(_AT + "attn_qkv", _BLOCK + "attn.qkv", _FUSED, "n_embd", bias="?"),
                    *linear(_AT + "attn_out", _BLOCK + "attn.proj", "n_embd", "n_embd", bias="?"),
                    *norm(_AT + "ln2", _BLOCK + "norm2", bias=False),
                    *linear(_AT + "ffn_gate", _BLOCK + "mlp.gate_proj", "n_ff", "n_embd", bias="?"),
                    *linear(_AT + "ffn_up", _BLOCK + "mlp.up_proj", "n_ff", "n_embd", bias="?"),
                    *linear(_AT + "ffn_down", _BLOCK + "mlp.down_proj", "n_embd", "n_ff", bias="?"),
                    *norm("v.post_ln", "visual.merger.ln_q", bias=False),
                    *linear("mm.0", "visual.merger.mlp.0", "n_four", "n_four", bias="?"),
                    *linear("mm.2", "visual.merger.mlp.2", "n_proj", "n_four", bias="?"),
                ),
                keys=(
                    *(key for key in qwen.KEYS if key.gguf != "attention.layer_norm_epsilon"),
                    *keys("""
                        attention.head_count_kv         u32   num_key_value_heads
                        attention.layer_norm_epsilon    f32   rms_norm_eps|outer.rms_norm_eps    1e-6
                        window_size                     u32   window_size
                    """),
                    *PIXELS,
                ),
                constants={"/clip.projector_type": "exaone4_5", "/clip.use_silu": True},
                finish=_exaone,
                rebuild=_exaone_back,
            ),
            "vision_config",
            qwen.SIZES,
        ),
    ),
    starts=("visual.",),
    spellings=qwen.SEEN,
    text=qwen.INSIDE,
    written=qwen.WRITTEN,
)


def _budget(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """How many vectors a picture may become, as its number of pixels."""
    act = str(config.get("hidden_act", "silu")).lower()
    if act in ("gelu", "silu"):
        own[f"/clip.use_{act}"] = True
    said = config["processor"]
    each = (int(said.get("patch_size", 14)) * int(said.get("merge_size", 2))) ** 2
    for key, name in (("image_min_pixels", "min_image_tokens"), ("image_max_pixels", "max_image_tokens")):
        if said.get(name) is not None:
            own[key] = np.uint32(int(said[name]) * each)


def _budget_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    patch, merge = dims["patch"], int(own.get("spatial_merge_size", 2))
    said = config.setdefault("processor", {})
    said |= {"patch_size": patch, "merge_size": merge}
    each = max(1, (patch * merge) ** 2)
    for key, name in (("image_min_pixels", "min_image_tokens"), ("image_max_pixels", "max_image_tokens")):
        if key in own:
            said[name] = int(own[key]) // each
    config.update(hidden_size=config.pop("embed_dim"), hidden_act="silu", out_hidden_size=dims["n_proj"])


GLM5V = Tower(
    "glm5v",
    ("Glm5NextForConditionalGeneration",),
    "glm5_next",
    (
        Side(
            qwen.GLM.variant(
                "clip.vision",
                *qwen.GLM.hf,
                keys=keys("""
                    spatial_merge_size              u32   spatial_merge_size    2
                    swiglu_clamp                    f32   swiglu_limit
                """),
                constants={"/clip.projector_type": "glm5v"},
                finish=_budget,
                rebuild=_budget_back,
            ),
            "vision_config",
            qwen.GLM_SIZES,
        ),
    ),
    starts=("visual.",),
    spellings=qwen.SEEN,
    text=qwen.INSIDE,
    written=qwen.WRITTEN,
)


def _ling(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    if own.get("image_size") is None:
        own["image_size"] = np.uint32(int(int(config.get("num_position_embeddings", 2304)) ** 0.5 * dims["patch"]))


def _ling_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config.update(
        hidden_size=config.pop("embed_dim"),
        out_hidden_size=dims["n_four"],
        disable_merger_proj=True,
        num_position_embeddings=dims["n_places"],
    )


LING3 = Tower(
    "ling3vl",
    ("BailingMoeV3VLForConditionalGeneration",),
    "bailing_moe_v3_vl",
    (
        Side(
            vision(
                (
                    CONV3D,
                    row("v.patch_embd.bias", "visual.patch_embed.proj.bias", "n_embd"),
                    row("v.position_embd.weight", "visual.pos_embed.weight", "n_places, n_embd"),
                    *norm(_AT + "ln1", _BLOCK + "norm1"),
                    *linear(_AT + "attn_qkv", _BLOCK + "attn.qkv", "3 * n_embd", "n_embd"),
                    *linear(_AT + "attn_out", _BLOCK + "attn.proj", "n_embd", "n_embd"),
                    *norm(_AT + "ln2", _BLOCK + "norm2"),
                    *linear(_AT + "ffn_up", _BLOCK + "mlp.linear_fc1", "n_ff", "n_embd"),
                    *linear(_AT + "ffn_down", _BLOCK + "mlp.linear_fc2", "n_embd", "n_ff"),
                    *norm("mm.input_norm", "visual.merger.norm"),
                    *linear("mm.0", "linear_proj.0", "n_mid", "n_four"),
                    *linear("mm.2", "linear_proj.2", "n_proj", "n_mid"),
                ),
                keys=(
                    *(key for key in qwen.KEYS if key.gguf not in ("image_size", "attention.layer_norm_epsilon")),
                    *keys("""
                        image_size                      u32   image_size
                        spatial_merge_size              u32   spatial_merge_size
                        attention.layer_norm_epsilon    f32   outer.text_config.rms_norm_eps    1e-6
                    """),
                ),
                constants={"/clip.projector_type": "ling3vl", "/clip.use_gelu": True},
                finish=_ling,
                rebuild=_ling_back,
            ),
            "vision_config",
            {
                "n_places": ("v.position_embd.weight", 0),
                "n_mid": ("mm.0.weight", 0),
                "n_four": ("mm.0.weight", 1),
            },
        ),
    ),
    starts=("visual.", "linear_proj."),
    spellings=qwen.SEEN,
    text=qwen.INSIDE,
    written=qwen.WRITTEN,
)

TOWERS = (EXAONE45, GLM5V, LING3)
