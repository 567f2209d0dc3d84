"""Towers of models that read pages: dots.ocr, PaddleOCR-VL, Hunyuan-OCR, Janus and CogVLM beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import Key, keys, row
from llmconv.convert.tables.ops import Dims, Tail
from llmconv.convert.tables.tower import Side, Tower
from llmconv.convert.towers.parts import block, linear, norm, vision

_AT = "v.blk.{i}."
PIXELS = keys("""
    image_min_pixels    u32   processor.min_pixels|processor.size.shortest_edge
    image_max_pixels    u32   processor.max_pixels|processor.size.longest_edge
""")
"""Between how many pixels a picture is brought, as preprocessor_config.json says it, in older or newer words."""

_DOTS = "vision_tower.blocks.{i}."

DOTS_OCR = Tower(
    "dots_ocr",
    ("DotsOCRForCausalLM",),
    "dots_ocr",
    (
        Side(
            vision(
                (
                    row(
                        "v.patch_embd.weight",
                        "vision_tower.patch_embed.patchifier.proj.weight",
                        "n_embd, 3, patch, patch",
                    ),
                    row("v.patch_embd.bias", "vision_tower.patch_embed.patchifier.proj.bias", "n_embd", optional=True),
                    *norm("v.pre_ln", "vision_tower.patch_embed.patchifier.norm", bias=False),
                    *norm(_AT + "ln1", _DOTS + "norm1", bias=False),
                    *linear(_AT + "attn_qkv", _DOTS + "attn.qkv", "3 * n_embd", "n_embd", bias="?"),
                    *linear(_AT + "attn_out", _DOTS + "attn.proj", "n_embd", "n_embd", bias="?"),
                    *norm(_AT + "ln2", _DOTS + "norm2", bias=False),
                    *linear(_AT + "ffn_gate", _DOTS + "mlp.fc1", "n_ff", "n_embd", bias="?"),
                    *linear(_AT + "ffn_up", _DOTS + "mlp.fc3", "n_ff", "n_embd", bias="?"),
                    *linear(_AT + "ffn_down", _DOTS + "mlp.fc2", "n_embd", "n_ff", bias="?"),
                    *norm("mm.post_norm", "vision_tower.post_trunk_norm", bias=False, optional=True),
                    *norm("mm.input_norm", "vision_tower.merger.ln_q"),
                    *linear("mm.0", "vision_tower.merger.mlp.0", "n_four", "n_four"),
                    *linear("mm.2", "vision_tower.merger.mlp.2", "n_proj", "n_four"),
                ),
                keys=(
                    *keys("""
                        image_size                      u32   -                     0
                        patch_size                      u32   patch_size            14
                        embedding_length                u32   hidden_size           1536
                        feed_forward_length             u32   intermediate_size     4224
                        block_count                     u32   num_hidden_layers     42
                        attention.head_count            u32   num_attention_heads   12
                        attention.layer_norm_epsilon    f32   rms_norm_eps          1e-5
                        projector.scale_factor          u32   spatial_merge_size    2
                    """),
                    *PIXELS,
                ),
                constants={"/clip.projector_type": "dots_ocr", "/clip.use_silu": True},
                rebuild=lambda config, own, dims: config.update(model_type="dots_vit", embed_dim=dims["n_embd"]),
            ),
            "vision_config",
            {"n_four": ("mm.0.weight", 0)},
        ),
    ),
    starts=("vision_tower.",),
    text=(),
    flat=True,
)


def _paddle(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """llama.cpp takes the largest picture's side for the size."""
    own["image_size"] = np.uint32(int(float(own["image_max_pixels"]) ** 0.5))


_READS = "visual.vision_model."
_SIGLIP_SIZES = keys("""
    patch_size                      u32   patch_size            14
    embedding_length                u32   hidden_size           1152
    feed_forward_length             u32   intermediate_size     4304
    block_count                     u32   num_hidden_layers     27
    attention.head_count            u32   num_attention_heads   16
""")

PADDLE_OCR = Tower(
    "paddleocr",
    ("PaddleOCRVLForConditionalGeneration", "PaddleOCRVisionModel"),
    "paddleocr_vl",
    (
        Side(
            vision(
                (
                    row("v.patch_embd.weight", _READS + "embeddings.patch_embedding.weight", "n_embd, 3, patch, patch"),
                    row("v.patch_embd.bias", _READS + "embeddings.patch_embedding.bias", "n_embd"),
                    row(
                        "v.position_embd.weight",
                        _READS + "embeddings.position_embedding.weight",
                        "n_places, n_embd",
                    ),
                    *block(_READS + "encoder.layers.{i}."),
                    *norm("v.post_ln", _READS + "post_layernorm"),
                    *norm("mm.input_norm", "mlp_AR.pre_norm"),
                    *linear("mm.1", "mlp_AR.linear_1", "n_four", "n_four"),
                    *linear("mm.2", "mlp_AR.linear_2", "n_proj", "n_four"),
                ),
                keys=(
                    *_SIGLIP_SIZES,
                    Key("image_size", (), "u32", 0),
                    *keys("attention.layer_norm_epsilon  f32  rms_norm_eps|layer_norm_eps  1e-6"),
                    *PIXELS,
                ),
                constants={"/clip.projector_type": "paddleocr", "/clip.use_gelu": True},
                finish=_paddle,
                rebuild=lambda config, own, dims: config.update(model_type="paddleocr_vl_vision"),
            ),
            "vision_config",
            {"n_places": ("v.position_embd.weight", 0), "n_four": ("mm.1.weight", 1)},
        ),
    ),
    starts=("visual.", "mlp_AR."),
    spellings=((r"^(?:model\.)?visual\.(?!vision_model\.)", _READS), (r"^model\.(?=visual\.|mlp_AR\.)", "")),
    kept=(r"visual\.vision_model\.(?:head\..*|embeddings\.packing_position_embedding\.weight)",),
    text=(),
    flat=True,
)

_VIT = "vit.layers.{i}."
HUNYUAN_VL = Tower(
    "hunyuanvl",
    ("HunYuanVLForConditionalGeneration",),
    "hunyuan_vl",
    (
        Side(
            vision(
                (
                    row("v.patch_embd.weight", "vit.embeddings.patch_embedding.weight", "n_embd, 3, patch, patch"),
                    row("v.patch_embd.bias", "vit.embeddings.patch_embedding.bias", "n_embd"),
                    row(
                        "v.position_embd.weight",
                        "vit.embeddings.position_embedding.weight",
                        "(image // patch) * (image // patch), n_embd",
                        Tail(1),
                    ),
                    *block(
                        _VIT,
                        ("input_layernorm", "post_attention_layernorm"),
                        "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj",
                        ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
                    ),
                    *norm("mm.pre_norm", "vit.perceive.before_rms", bias=False),
                    *linear("mm.0", "vit.perceive.proj.0", "n_mid", "n_embd, 2, 2"),
                    *linear("mm.2", "vit.perceive.proj.2", "n_wide", "n_mid, 1, 1"),
                    *linear("mm.model.fc", "vit.perceive.mlp", "n_proj", "n_wide"),
                    *norm("mm.post_norm", "vit.perceive.after_rms", "n_proj", bias=False),
                    row("mm.image_begin", "vit.perceive.image_begin", "n_proj"),
                    row("mm.image_end", "vit.perceive.image_end", "n_proj"),
                    row("v.image_newline", "vit.perceive.image_newline", "n_wide"),
                    row("v.view_seperator", "vit.perceive.image_sep", "n_proj", optional=True),
                ),
                keys=(
                    *_SIGLIP_SIZES,
                    *keys("""
                        image_size                      u32   image_size|max_image_size   2048
                        attention.layer_norm_epsilon    f32   rms_norm_eps                1e-5
                        spatial_merge_size              u32   spatial_merge_size          2
                    """),
                    *PIXELS,
                ),
                constants={"/clip.projector_type": "hunyuanvl", "/clip.use_gelu": True},
                rebuild=lambda config, own, dims: config.update(out_hidden_size=dims["n_proj"]),
            ),
            "vision_config",
            {
                "n_mid": ("mm.0.weight", 0),
                "n_wide": ("mm.2.weight", 0),
            },
        ),
    ),
    starts=("vit.",),
    text=(),
    flat=True,
)

_COG = "model.vision.transformer.layers.{i}."
_GLU = "model.vision.linear_proj."
COGVLM = Tower(
    "cogvlm",
    ("CogVLMForCausalLM",),
    "cogvlm",
    (
        Side(
            vision(
                (
                    row("v.class_embd", "model.vision.patch_embedding.cls_embedding", "1, n_embd"),
                    row("v.patch_embd.weight", "model.vision.patch_embedding.proj.weight", "n_embd, 3, patch, patch"),
                    row("v.patch_embd.bias", "model.vision.patch_embedding.proj.bias", "n_embd"),
                    row(
                        "v.position_embd.weight",
                        "model.vision.patch_embedding.position_embedding.weight",
                        "(image // patch) * (image // patch) + 1, n_embd",
                    ),
                    *norm(_AT + "ln1", _COG + "input_layernorm"),
                    *linear(_AT + "attn_qkv", _COG + "attention.query_key_value", "3 * n_embd", "n_embd"),
                    *linear(_AT + "attn_out", _COG + "attention.dense", "n_embd", "n_embd"),
                    *norm(_AT + "ln2", _COG + "post_attention_layernorm"),
                    *linear(_AT + "ffn_up", _COG + "mlp.fc1", "n_ff", "n_embd"),
                    *linear(_AT + "ffn_down", _COG + "mlp.fc2", "n_embd", "n_ff"),
                    *linear("mm.model.fc", _GLU + "linear_proj", "n_proj", "n_embd", bias=False),
                    *norm("mm.post_fc_norm", _GLU + "norm1", "n_proj"),
                    *linear("mm.up", _GLU + "dense_h_to_4h", "n_mid", "n_proj", bias=False),
                    *linear("mm.gate", _GLU + "gate_proj", "n_mid", "n_proj", bias=False),
                    *linear("mm.down", _GLU + "dense_4h_to_h", "n_proj", "n_mid", bias=False),
                    row("v.boi", "model.vision.boi", "1, 1, n_proj"),
                    row("v.eoi", "model.vision.eoi", "1, 1, n_proj"),
                ),
                keys=keys("""
                    image_size                      u32   image_size            490
                    patch_size                      u32   patch_size            14
                    embedding_length                u32   hidden_size           1792
                    feed_forward_length             u32   intermediate_size     15360
                    block_count                     u32   num_hidden_layers     63
                    attention.head_count            u32   num_heads             16
                """),
                constants={"/clip.projector_type": "cogvlm"},
                rebuild=lambda config, own, dims: config.update(
                    num_positions=(dims["image"] // max(1, dims["patch"])) ** 2 + 1, hidden_act="gelu", in_channels=3
                ),
            ),
            "vision_config",
            {"n_mid": ("mm.up.weight", 0)},
        ),
    ),
    starts=("model.vision.",),
    text=(),
    flat=True,
)


def _janus(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    act = str(config.get("hidden_act", "gelu")).lower()
    if act in ("gelu", "silu"):
        own[f"/clip.use_{act}"] = True
    if own.get("feed_forward_length") is None:
        own["feed_forward_length"] = np.uint32(round(dims["n_embd"] * float(config.get("mlp_ratio", 4.0))))


_EYE = "model.vision_model."
_DRAWS = ("vqmodel", "generation_embeddings", "generation_aligner", "generation_head")
JANUS = Tower(
    "janus_pro",
    ("JanusForConditionalGeneration",),
    "janus",
    (
        Side(
            vision(
                (
                    row("v.patch_embd.weight", _EYE + "embeddings.patch_embedding.weight", "n_embd, 3, patch, patch"),
                    row("v.patch_embd.bias", _EYE + "embeddings.patch_embedding.bias", "n_embd"),
                    row(
                        "v.position_embd.weight",
                        _EYE + "embeddings.position_embedding.weight",
                        "(image // patch) * (image // patch), n_embd",
                    ),
                    *block(
                        _EYE + "encoder.layers.{i}.",
                        attn="self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.projection_layer",
                    ),
                    *norm("v.post_ln", _EYE + "post_layernorm"),
                    *linear("mm.0", "model.aligner.fc1", "n_proj", "n_embd"),
                    *linear("mm.1", "model.aligner.hidden_layers.0", "n_proj", "n_proj"),
                    *(
                        one
                        for n in (2, 3)
                        for one in linear(
                            f"mm.{n}", f"model.aligner.hidden_layers.{n - 1}", "n_proj", "n_proj", optional=True
                        )
                    ),
                ),
                keys=keys("""
                    image_size                      u32   image_size            384
                    embedding_length                u32   hidden_size           1024
                    feed_forward_length             u32   intermediate_size
                    block_count                     u32   num_hidden_layers     24
                    attention.head_count            u32   num_attention_heads   16
                """),
                constants={"/clip.projector_type": "janus_pro"},
                finish=_janus,
                rebuild=lambda config, own, dims: config.update(
                    model_type="janus_vision_model",
                    hidden_act="silu" if own.get("/clip.use_silu") else "gelu",
                    mlp_ratio=dims["n_ff"] / max(1, dims["n_embd"]),
                    projection_dim=dims["n_proj"],
                ),
            ),
            "vision_config",
        ),
    ),
    starts=(_EYE, "model.aligner.", *(f"model.{part}." for part in _DRAWS)),
    spellings=((r"^(?=(?:vision_model|aligner|" + "|".join(_DRAWS) + r")\.)", "model."),),
    kept=(r"model\.(?:" + "|".join(_DRAWS) + r")\..*",),
    text=(("model.", "model.language_model."),),
)

TOWERS = (DOTS_OCR, PADDLE_OCR, HUNYUAN_VL, COGVLM, JANUS)
