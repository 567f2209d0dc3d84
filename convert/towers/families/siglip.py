"""Towers made of SigLIP: Gemma 3, Idefics 3, SmolVLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import keys, row
from llmconv.convert.tables.ops import Dims, Shift
from llmconv.convert.tables.tower import Side, Tower
from llmconv.convert.towers.parts import block, norm, vision

_TOWER = "vision_tower.vision_model."

GELU = {"/clip.use_gelu": True}


def siglip(start: str, patches: str = "(image // patch) * (image // patch)") -> tuple[Any, ...]:
    """Rows of SigLIP's encoder; patches: rows of its table of positions."""
    return (
        row("v.patch_embd.weight", start + "embeddings.patch_embedding.weight", "n_embd, 3, patch, patch"),
        row("v.patch_embd.bias", start + "embeddings.patch_embedding.bias", "n_embd"),
        row("v.position_embd.weight", start + "embeddings.position_embedding.weight", f"{patches}, n_embd"),
        *block(start + "encoder.layers.{i}."),
        *norm("v.post_ln", start + "post_layernorm"),
    )


def _pooled(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """How many patches a side are averaged to one vector, where it is not Gemma 3's four."""
    tokens = config["processor"].get("image_seq_length", config["outer"].get("mm_tokens_per_image", 256))
    factor = (dims["image"] // max(1, dims["patch"])) // max(1, int(tokens**0.5))
    if factor > 0 and factor != 4:
        own["projector.scale_factor"] = np.uint32(factor)


def _pooled_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    side = dims["image"] // max(1, dims["patch"]) // int(own.get("projector.scale_factor", 4))
    config["outer"] = {"mm_tokens_per_image": side * side}
    config["model_type"] = "siglip_vision_model"


GEMMA3 = Tower(
    "gemma3",
    ("Gemma3ForConditionalGeneration",),
    "gemma3",
    (
        Side(
            vision(
                (
                    *siglip(_TOWER),
                    row(
                        "mm.input_projection.weight",
                        "multi_modal_projector.mm_input_projection_weight",
                        "n_embd, n_proj",
                    ),
                    row("mm.soft_emb_norm.weight", "multi_modal_projector.mm_soft_emb_norm.weight", "n_embd", Shift()),
                ),
                constants=GELU | {"/clip.projector_type": "gemma3"},
                finish=_pooled,
                rebuild=_pooled_back,
            ),
            "vision_config",
        ),
    ),
    starts=("vision_tower.", "multi_modal_projector."),
    spellings=(
        (r"^model\.(?=vision_tower\.|multi_modal_projector\.)", ""),
        (r"^vision_tower\.(?!vision_model\.)", _TOWER),
    ),
    kept=(r"vision_tower\.vision_model\.head\..*",),
)

_SEEN = "model.vision_model."


def _idefics(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["projector.scale_factor"] = np.uint32(config["outer"].get("scale_factor", 2))
    size = config["processor"].get("size")
    edge = size.get("longest_edge") if isinstance(size, Mapping) else None
    own["preproc_image_size"] = np.uint32(dims["image"] if edge is None else edge)


def _idefics_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["outer"] = {"scale_factor": int(own.get("projector.scale_factor", 2))}
    if "preproc_image_size" in own:
        config.setdefault("processor", {})["size"] = {"longest_edge": int(own["preproc_image_size"])}


_IDEFICS3 = Side(
    vision(
        (
            *siglip(_SEEN),
            row(
                "mm.model.fc.weight",
                "model.connector.modality_projection.proj.weight",
                "n_proj, n_embd * scale * scale",
            ),
        ),
        keys=keys("""
            patch_size              u32   patch_size            32
            embedding_length        u32   hidden_size           1152
            attention.head_count    u32   num_attention_heads   16
            attention.layer_norm_epsilon    f32   layer_norm_eps    1e-5
        """),
        constants=GELU | {"/clip.projector_type": "idefics3"},
        finish=_idefics,
        rebuild=_idefics_back,
    ),
    "vision_config",
)

_IDEFICS_TEXT = (("model.", "model.text_model."),)

SMOLVLM = Tower(
    "idefics3",
    ("SmolVLMForConditionalGeneration",),
    "smolvlm",
    (_IDEFICS3,),
    starts=("model.vision_model.", "model.connector."),
    text=_IDEFICS_TEXT,
)
IDEFICS3 = Tower(
    "idefics3",
    ("Idefics3ForConditionalGeneration",),
    "idefics3",
    (_IDEFICS3,),
    starts=("model.vision_model.", "model.connector."),
    text=_IDEFICS_TEXT,
)

TOWERS = (GEMMA3, SMOLVLM, IDEFICS3)
