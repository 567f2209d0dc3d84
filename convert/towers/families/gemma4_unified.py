"""Gemma 4 Unified: no tower, the text model itself sees and hears; a patch becomes a vector by one matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llmconv.convert.tables.architecture import keys, row
from llmconv.convert.tables.ops import Dims, Reshape, SwapColumns, SwapRows
from llmconv.convert.tables.tower import Side, Tower
from llmconv.convert.towers.parts import audio, norm, vision

_SEES = "model.vision_embedder."
_PLACES = "n_first * n_second // 2"
"""Rows of either table of positions, across and down: the folder has the places first, the GGUF which table."""
_PIXELS = "n_patch // 3"
"""Of a patch, whose numbers are (place, colour) in the folder and (colour, place) in the GGUF."""


def _seen_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "layer_norm_eps"):
        config.pop(name, None)
    side = math.isqrt(dims["n_patch"] // 3)
    pooled = max(1, side // max(1, dims["patch"]))
    config.update(
        model_type="gemma4_unified_vision",
        pooling_kernel_size=pooled,
        model_patch_size=side,
        mm_embed_dim=dims["n_embd"],
        output_proj_dims=dims["n_embd"],
        mm_posemb_size=dims["n_first"] * dims["n_second"] // 2,
    )


_SEEN = vision(
    (
        row("v.patch_embd.weight", _SEES + "patch_dense.weight", "n_embd, n_patch", SwapColumns(_PIXELS, 3, 1)),
        row("v.patch_embd.bias", _SEES + "patch_dense.bias", "n_embd"),
        row("v.patch_norm.1.weight", _SEES + "patch_ln1.weight", "n_patch", SwapRows(_PIXELS, 3)),
        row("v.patch_norm.1.bias", _SEES + "patch_ln1.bias", "n_patch", SwapRows(_PIXELS, 3)),
        *norm("v.patch_norm.2", _SEES + "patch_ln2"),
        *norm("v.patch_norm.3", _SEES + "pos_norm"),
        row(
            "v.position_embd.weight",
            _SEES + "pos_embedding",
            f"2, {_PLACES}, n_embd",
            Reshape(hf=(_PLACES, 2, "n_embd"), gguf=(f"2 * ({_PLACES})", "n_embd")),
            SwapRows(_PLACES, 2),
            Reshape(hf=(f"2 * ({_PLACES})", "n_embd"), gguf=(2, _PLACES, "n_embd")),
        ),
        row("mm.input_projection.weight", "model.embed_vision.embedding_projection.weight", "n_proj, n_embd"),
    ),
    keys=keys("""
        image_size                      u32   -                224
        patch_size                      u32   patch_size       16
        embedding_length                u32   mm_embed_dim     3840
        feed_forward_length             u32   -                0
        block_count                     u32   -                0
        attention.head_count            u32   -                0
    """),
    constants={"projector_type": "gemma4uv"},
    rebuild=_seen_back,
)

_HEARD = audio(
    (row("mm.a.input_projection.weight", "model.embed_audio.embedding_projection.weight", "n_proj, n_embd"),),
    keys=keys("""
        embedding_length                u32   audio_embed_dim     640
        feed_forward_length             u32   -                   0
        block_count                     u32   -                   0
        attention.head_count            u32   -                   0
        num_mel_bins                    u32   input_feat_size     128
        attention.layer_norm_epsilon    f32   layer_norm_eps      1e-6
    """),
    constants={"projector_type": "gemma4ua"},
    rebuild=lambda config, own, dims: config.update(model_type="gemma4_unified_audio"),
)

GEMMA4_UNIFIED = Tower(
    "gemma4uv",
    ("Gemma4UnifiedForConditionalGeneration",),
    "gemma4_unified",
    (
        Side(
            _SEEN,
            "vision_config",
            {
                "n_patch": ("v.patch_embd.weight", -1),
                "n_first": ("v.position_embd.weight", 0),
                "n_second": ("v.position_embd.weight", 1),
            },
        ),
        Side(_HEARD, "audio_config"),
    ),
    starts=(_SEES, "model.embed_vision.", "model.embed_audio."),
    text=(("model.", "model.language_model."),),
    projectors=("gemma4ua",),
)

TOWERS = (GEMMA4_UNIFIED,)
