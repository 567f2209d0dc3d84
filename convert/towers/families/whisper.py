"""Towers made of Whisper's encoder: Qwen2-Audio, Ultravox, Voxtral, Audio Flamingo 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmconv.convert.tables.architecture import Architecture, Row, keys, row
from llmconv.convert.tables.ops import Reshape
from llmconv.convert.tables.tower import Side, Tower
from llmconv.convert.towers.parts import audio, block, linear, norm

_COLUMN = Reshape(hf=("n_embd",), gguf=("n_embd", 1))


def whisper(positions: bool = True) -> tuple[Row, ...]:
    """Rows of Whisper's encoder; positions: whether its table of positions is stored."""
    table = (row("a.position_embd.weight", "audio_tower.embed_positions.weight", "n_places, n_embd"),)
    return (
        row("a.conv1d.1.weight", "audio_tower.conv1.weight", "n_embd, n_mel, 3"),
        row("a.conv1d.1.bias", "audio_tower.conv1.bias", "n_embd, 1", _COLUMN),
        row("a.conv1d.2.weight", "audio_tower.conv2.weight", "n_embd, n_embd, 3"),
        row("a.conv1d.2.bias", "audio_tower.conv2.bias", "n_embd, 1", _COLUMN),
        *(table if positions else ()),
        *block("audio_tower.layers.{i}.", ("self_attn_layer_norm", "final_layer_norm"), mlp=("fc1", "fc2"), side="a"),
    )


_END = norm("a.post_ln", "audio_tower.layer_norm")
PLACES = {"n_places": ("a.position_embd.weight", 0)}


def _table(projector: str, *rows: Any, constants: Mapping[str, Any] | None = None, more: str = "") -> Architecture:
    return audio(
        (*whisper(), *_END, *rows),
        keys=keys(more),
        constants={"/clip.projector_type": projector, **(constants or {})},
        rebuild=lambda config, own, dims: config.update(
            model_type=_KINDS.get(projector, "whisper"),
            **({"max_source_positions": dims["n_places"]} if "n_places" in dims else {}),
        ),
    )


_KINDS = {"qwen2a": "qwen2_audio_encoder", "voxtral": "voxtral_encoder", "musicflamingo": "audioflamingo3_encoder"}

_linear_1 = "multi_modal_projector.linear_1"
_linear_2 = "multi_modal_projector.linear_2"
_STARTS = ("audio_tower.", "multi_modal_projector.")
_INSIDE = ((r"^model\.(?=audio_tower\.|multi_modal_projector\.)", ""),)
_WIDE = PLACES | {"n_wide": ("mm.a.mlp.1.weight", 0), "n_stacked": ("mm.a.mlp.1.weight", 1)}

QWEN2_AUDIO = Tower(
    "qwen2a",
    ("Qwen2AudioForConditionalGeneration",),
    "qwen2_audio",
    (
        Side(
            _table("qwen2a", *linear("mm.a.fc", "multi_modal_projector.linear", "n_proj", "n_embd")),
            "audio_config",
            PLACES,
        ),
    ),
    starts=_STARTS,
    spellings=_INSIDE,
)
VOXTRAL = Tower(
    "voxtral",
    ("VoxtralForConditionalGeneration",),
    "voxtral",
    (
        Side(
            _table(
                "voxtral",
                *linear("mm.a.mlp.1", _linear_1, "n_wide", "n_stacked", bias=False),
                *linear("mm.a.mlp.2", _linear_2, "n_proj", "n_wide", bias=False),
                more="projector.stack_factor  u32  -  4",
            ),
            "audio_config",
            _WIDE,
        ),
    ),
    starts=_STARTS,
    spellings=_INSIDE,
)
FLAMINGO3 = Tower(
    "musicflamingo",
    ("AudioFlamingo3ForConditionalGeneration",),
    "audioflamingo3",
    (
        Side(
            _table(
                "musicflamingo",
                *linear("mm.a.mlp.1", _linear_1, "n_wide", "n_stacked"),
                *linear("mm.a.mlp.2", _linear_2, "n_proj", "n_wide"),
            ),
            "audio_config",
            _WIDE,
        ),
    ),
    starts=_STARTS,
    spellings=_INSIDE,
)
ULTRAVOX = Tower(
    "ultravox",
    ("UltravoxModel",),
    "ultravox",
    (
        Side(
            _table(
                "ultravox",
                *norm("mm.a.norm_pre", "multi_modal_projector.ln_pre", "n_stacked", bias=False),
                *linear("mm.a.mlp.1", _linear_1, "n_wide", "n_stacked", bias=False),
                *norm("mm.a.norm_mid", "multi_modal_projector.ln_mid", "n_half", bias=False, optional=True),
                *norm("mm.a.norm_post", "multi_modal_projector.ln_post", "n_proj", bias=False, optional=True),
                *linear("mm.a.mlp.2", _linear_2, "n_proj", "n_half", bias=False),
                more="projector.stack_factor  u32  outer.stack_factor  8",
            ),
            "audio_config",
            _WIDE | {"n_half": ("mm.a.mlp.2.weight", 1)},
        ),
    ),
    starts=_STARTS,
)

TOWERS = (QWEN2_AUDIO, VOXTRAL, FLAMINGO3, ULTRAVOX)
