"""Towers with a lineage of their own: Llama 4, LFM2-VL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import keys, row
from llmconv.convert.tables.ops import Dims, Reshape, SwapColumns
from llmconv.convert.tables.tower import Side, Tower
from llmconv.convert.towers.parts import block, linear, norm, vision


def _shuffled(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["projector.scale_factor"] = np.uint32(int(1.0 / config.get("pixel_shuffle_ratio", 0.5)))


def _shuffled_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config.update(model_type="llama4_vision_model", pixel_shuffle_ratio=1.0 / int(own["projector.scale_factor"]))
    config.update(
        vision_output_dim=dims["n_out"], projector_input_dim=dims["n_mid"], projector_output_dim=dims["n_out"]
    )


_LAYER = "vision_model.model.layers.{i}."

LLAMA4 = Tower(
    "llama4",
    ("Llama4ForConditionalGeneration",),
    "llama4",
    (
        Side(
            vision(
                (
                    row("v.class_embd", "vision_model.class_embedding", "n_embd"),
                    row(
                        "v.patch_embd.weight",
                        "vision_model.patch_embedding.linear.weight",
                        "n_embd, 3 * patch * patch",
                    ),
                    row(
                        "v.position_embd.weight",
                        "vision_model.positional_embedding_vlm",
                        "(image // patch) * (image // patch) + 1, n_embd",
                    ),
                    *norm("v.pre_ln", "vision_model.layernorm_pre"),
                    *block(
                        _LAYER,
                        ("input_layernorm", "post_attention_layernorm"),
                        "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj",
                    ),
                    *norm("v.post_ln", "vision_model.layernorm_post"),
                    *linear("mm.model.mlp.1", "vision_model.vision_adapter.mlp.fc1", "n_mid", "n_in", bias=False),
                    *linear("mm.model.mlp.2", "vision_model.vision_adapter.mlp.fc2", "n_out", "n_mid", bias=False),
                    row("mm.model.fc.weight", "multi_modal_projector.linear_1.weight", "n_proj, n_last"),
                ),
                keys=keys("attention.layer_norm_epsilon    f32   norm_eps    1e-5"),
                constants={"/clip.projector_type": "llama4", "/clip.use_gelu": True},
                finish=_shuffled,
                rebuild=_shuffled_back,
            ),
            "vision_config",
            {
                "n_mid": ("mm.model.mlp.1.weight", 0),
                "n_in": ("mm.model.mlp.1.weight", 1),
                "n_out": ("mm.model.mlp.2.weight", 0),
                "n_last": ("mm.model.fc.weight", 1),
            },
        ),
    ),
    starts=("vision_model.", "multi_modal_projector."),
)


def _layers(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """A negative setting says which layer's result is taken; the ones behind it are not needed."""
    own["projector.scale_factor"] = np.uint32(config["outer"].get("downsample_factor", 2))
    behind = -(int(config["outer"].get("vision_feature_layer", -1)) + 1)
    own["block_count"] = np.uint32(int(own["block_count"]) - behind)


def _layers_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config.update(model_type="siglip2_vision_model", num_patches=dims["n_places"], vision_use_head=False)
    config["outer"] = {"downsample_factor": int(own.get("projector.scale_factor", 2))}


_SIGLIP2 = "vision_tower.vision_model."

LFM2_VL = Tower(
    "lfm2",
    ("Lfm2VlForConditionalGeneration",),
    "lfm2_vl",
    (
        Side(
            vision(
                (
                    row(
                        "v.patch_embd.weight",
                        _SIGLIP2 + "embeddings.patch_embedding.weight",
                        "n_embd, 3, patch, patch",
                        SwapColumns("patch * patch", 3, 1),
                        Reshape(hf=("n_embd", "3 * patch * patch"), gguf=("n_embd", 3, "patch", "patch")),
                    ),
                    row("v.patch_embd.bias", _SIGLIP2 + "embeddings.patch_embedding.bias", "n_embd"),
                    row(
                        "v.position_embd.weight",
                        _SIGLIP2 + "embeddings.position_embedding.weight",
                        "n_places, n_embd",
                    ),
                    *block(_SIGLIP2 + "encoder.layers.{i}."),
                    *norm("v.post_ln", _SIGLIP2 + "post_layernorm"),
                    *norm("mm.input_norm", "multi_modal_projector.layer_norm", "n_four", optional=True),
                    *linear("mm.1", "multi_modal_projector.linear_1", "n_mid", "n_four"),
                    *linear("mm.2", "multi_modal_projector.linear_2", "n_proj", "n_mid"),
                ),
                keys=keys("image_size  u32  -  256"),
                constants={"/clip.projector_type": "lfm2", "/clip.use_gelu": True},
                finish=_layers,
                rebuild=_layers_back,
            ),
            "vision_config",
            {
                "n_places": ("v.position_embd.weight", 0),
                "n_mid": ("mm.1.weight", 0),
                "n_four": ("mm.1.weight", 1),
            },
        ),
    ),
    starts=("vision_tower.", "multi_modal_projector."),
    spellings=(
        (r"^model\.(?=vision_tower\.|multi_modal_projector\.)", ""),
        (r"^vision_tower\.(?!vision_model\.)", _SIGLIP2),
    ),
    kept=(r"vision_tower\.vision_model\.(head\..*|encoder\.layers\.\d+\..*)",),
    text=(("model.", "model.language_model."),),
    written=(("vision_tower.", "model.vision_tower."), ("multi_modal_projector.", "model.multi_modal_projector.")),
)

TOWERS = (LLAMA4, LFM2_VL)
