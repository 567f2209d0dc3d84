"""Towers made of Whisper's encoder: Qwen2-Audio, Ultravox, Voxtral, Audio Flamingo 3, GLM-ASR, MERaLiON 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmconv.convert.tables.architecture import Architecture, Key, Row, keys, row
from llmconv.convert.tables.ops import Reshape, Split
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

GLM_ASR = Tower(
    "glma",
    ("GlmasrModel",),
    "Glmasr",
    (
        Side(
            audio(
                (
                    *whisper(positions=False),
                    row(
                        "a.position_embd.weight",
                        "audio_tower.embed_positions.weight",
                        "n_places, n_embd",
                        optional=True,
                    ),
                    *norm("mm.a.norm_pre", "audio_encoder.layer_norm"),
                    *linear("mm.a.mlp.1", "audio_encoder.adapting.0", "n_wide", "n_stacked"),
                    *linear("mm.a.mlp.2", "audio_encoder.adapting.2", "n_proj", "n_wide"),
                    row(
                        ("v.boi", "v.eoi"),
                        "audio_encoder.audio_bos_eos_token.weight",
                        ("n_proj", "n_proj"),
                        Split((1, 1)),
                        Reshape(hf=(1, "n_proj"), gguf=("n_proj",)),
                    ),
                ),
                keys=(
                    Key("projection_dim", ("outer.lm_config.hidden_size", "text.hidden_size")),
                    Key("projector.stack_factor", ("outer.merge_factor",), "u32", 4),
                ),
                constants={"/clip.projector_type": "glma"},
                rebuild=lambda config, own, dims: config.update(model_type="whisper"),
            ),
            "whisper_config",
            _WIDE,
        ),
    ),
    starts=("audio_tower.", "audio_encoder."),
    spellings=(
        (r"^audio_encoder\.whisper\.", "audio_tower."),
        (r"^audio_encoder\.adapting\.layer_norm\.", "audio_encoder.layer_norm."),
    ),
    kept=(r"audio_encoder\.proj\..*", r"audio_tower\.layer_norm\..*"),
    text=(),
    written=(("audio_tower.", "audio_encoder.whisper."),),
    flat=True,
)
_ADAPTER = "speech_audio_adapter."
MERALION = Tower(
    "meralion",
    ("MERaLiON2ForConditionalGeneration",),
    "meralion2",
    (
        Side(
            _table(
                "meralion",
                *norm("mm.a.norm_pre", "ln_speech"),
                *linear("mm.a.mlp.0", _ADAPTER + "mlp_adapter.0", "n_first", "n_stacked", bias="?"),
                *linear("mm.a.mlp.1", _ADAPTER + "gate_proj", "n_wide", "n_first", bias="?"),
                *linear("mm.a.mlp.2", _ADAPTER + "pool_proj", "n_wide", "n_first", bias="?"),
                *linear("mm.a.mlp.3", _ADAPTER + "out_proj", "n_proj", "n_wide", bias="?"),
                more="projector.stack_factor  u32  outer.speech_mlp_scale_factor  15",
            ),
            "speech_config",
            PLACES
            | {
                "n_first": ("mm.a.mlp.0.weight", 0),
                "n_stacked": ("mm.a.mlp.0.weight", 1),
                "n_wide": ("mm.a.mlp.1.weight", 0),
            },
        ),
    ),
    starts=("audio_tower.", "ln_speech.", _ADAPTER),
    spellings=((r"^speech_encoder\.", "audio_tower."),),
    text=(("model.", "text_decoder.model."), ("lm_head.", "text_decoder.lm_head.")),
    written=(("audio_tower.", "speech_encoder."),),
)

TOWERS = (QWEN2_AUDIO, VOXTRAL, FLAMINGO3, ULTRAVOX, GLM_ASR, MERALION)
