"""Towers that see and hear: Qwen2.5-Omni, Qwen3-Omni; Qwen3-ASR hears alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import Architecture, row
from llmconv.convert.tables.ops import Dims, Reshape
from llmconv.convert.tables.tower import Side, Tower
from llmconv.convert.towers.families.qwen import QWEN3, SIZES, qwen25
from llmconv.convert.towers.families.whisper import whisper
from llmconv.convert.towers.parts import audio, block, linear, norm
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

PLACES = 1500
"""Rows of the table of positions: half a minute of sound."""


def _waves(folder: Checkpoint, settings: Mapping[str, Any]) -> Iterable[Tensor]:
    """Whisper's table of positions, which the folder does not have: sines, then cosines of growing lengths."""
    half = int(settings.get("d_model") or settings["hidden_size"]) // 2
    step = np.float32(-np.log(10000.0) / (half - 1)) * np.arange(half, dtype=np.float32)
    angles = np.arange(PLACES, dtype=np.float32)[:, None] * np.exp(step)[None, :]
    values = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
    return (Tensor.from_array("a.position_embd.weight", values),)


_WORDS = {
    "hidden_size": "d_model",
    "intermediate_size": "encoder_ffn_dim",
    "num_hidden_layers": "encoder_layers",
    "num_attention_heads": "encoder_attention_heads",
}


def _heard(kind: str) -> Callable[[dict[str, Any], Mapping[str, Any], Dims], None]:
    """The settings under Whisper's names."""

    def rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
        config.update({new: config.pop(old) for old, new in _WORDS.items() if old in config})
        config.update(model_type=kind, output_dim=dims["n_proj"])

    return rebuild


_AUDIO25 = audio(
    (
        *whisper(positions=False),
        *norm("a.post_ln", "audio_tower.ln_post"),
        *linear("mm.a.fc", "audio_tower.proj", "n_proj", "n_embd"),
    ),
    rebuild=_heard("qwen2_5_omni_audio_encoder"),
)
_SPOKEN = (
    (r"^(?:thinker|model)\.(?=visual\.|audio_tower\.)", ""),
    (r"^visual\.merger_list\.", "visual.deepstack_merger_list."),
)
_TEXT = (("model.", "thinker.model."), ("lm_head.", "thinker.lm_head."))

QWEN25_OMNI = Tower(
    "qwen2.5o",
    ("Qwen2_5OmniModel", "Qwen2_5OmniForConditionalGeneration"),
    "qwen2_5_omni",
    (
        Side(qwen25("qwen2.5o"), "thinker_config.vision_config", SIZES),
        Side(_AUDIO25, "thinker_config.audio_config", made=_waves),
    ),
    starts=("visual.", "audio_tower."),
    spellings=_SPOKEN,
    kept=(r"audio_tower\.audio_bos_eos_token\.weight",),
    text=_TEXT,
    written=(("visual.", "thinker.visual."), ("audio_tower.", "thinker.audio_tower.")),
)


def _conv(n: int, n_in: str) -> tuple[Any, ...]:
    """A convolution over time and pitch."""
    return (
        row(f"a.conv2d.{n}.weight", f"audio_tower.conv2d{n}.weight", f"n_conv, {n_in}, 3, 3"),
        row(
            f"a.conv2d.{n}.bias",
            f"audio_tower.conv2d{n}.bias",
            "n_conv, 1, 1",
            Reshape(hf=("n_conv",), gguf=("n_conv", 1, 1)),
        ),
    )


def _audio3(constants: Mapping[str, Any]) -> Architecture:
    return audio(
        (
            *_conv(1, "1"),
            *_conv(2, "n_conv"),
            *_conv(3, "n_conv"),
            *linear("a.conv_out", "audio_tower.conv_out", "n_embd", "n_flat", bias="?"),
            *block(
                "audio_tower.layers.{i}.",
                ("self_attn_layer_norm", "final_layer_norm"),
                mlp=("fc1", "fc2"),
                side="a",
            ),
            *norm("a.post_ln", "audio_tower.ln_post"),
            *linear("mm.a.mlp.1", "audio_tower.proj1", "n_mid", "n_embd"),
            *linear("mm.a.mlp.2", "audio_tower.proj2", "n_proj", "n_mid"),
        ),
        constants={"projector_type": "qwen3a", **constants},
        rebuild=_heard("qwen3_omni_moe_audio_encoder"),
    )


_HEARS = {
    "n_conv": ("a.conv2d.1.weight", 0),
    "n_flat": ("a.conv_out.weight", 1),
    "n_mid": ("mm.a.mlp.1.weight", 0),
}
_SEEN = QWEN3.variant(
    "clip.vision", *QWEN3.hf, constants={"/clip.projector_type": None, "projector_type": "qwen3vl_merger"}
)

QWEN3_OMNI = Tower(
    "qwen3a",
    ("Qwen3OmniMoeForConditionalGeneration",),
    "qwen3_omni_moe",
    (
        Side(_SEEN, "thinker_config.vision_config", SIZES | {"n_places": ("v.position_embd.weight", 0)}),
        Side(_audio3({}), "thinker_config.audio_config", _HEARS, made=_waves),
    ),
    starts=("visual.", "audio_tower."),
    spellings=(
        *_SPOKEN,
        (r"^(visual\..*merger(?:_list\.\d+)?)\.ln_q\.", r"\1.norm."),
        (r"^(visual\..*merger(?:_list\.\d+)?)\.mlp\.0\.", r"\1.linear_fc1."),
        (r"^(visual\..*merger(?:_list\.\d+)?)\.mlp\.2\.", r"\1.linear_fc2."),
    ),
    text=_TEXT,
    written=(
        ("visual.deepstack_merger_list.", "thinker.visual.merger_list."),
        ("visual.", "thinker.visual."),
        ("audio_tower.", "thinker.audio_tower."),
    ),
    told="v.patch_embd.weight",
    projectors=("qwen3vl_merger",),
)
QWEN3_ASR = Tower(
    "qwen3a",
    ("Qwen3ASRForConditionalGeneration",),
    "qwen3_asr",
    (Side(_audio3({}), "thinker_config.audio_config", _HEARS, made=_waves),),
    starts=("audio_tower.",),
    spellings=_SPOKEN,
    text=_TEXT,
    written=(("audio_tower.", "thinker.audio_tower."),),
    told="!v.patch_embd.weight",
)

TOWERS = (QWEN25_OMNI, QWEN3_OMNI, QWEN3_ASR)
