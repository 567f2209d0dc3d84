"""The text models inside Qwen 2-VL, 2.5-VL, Omni and Qwen 3-VL: a text's three-fold positions are plain ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.llama.qwen import QWEN2, QWEN3
from llmconv.convert.archs.rope import rope_sections
from llmconv.convert.tables.architecture import Architecture, HfName
from llmconv.convert.tables.ops import Dims

_PREFIXES = (
    *("model.language_model.", "model.", "language_model.model.", "language_model."),
    *("thinker.model.", "thinker.language_model.", ""),
)


def _deepstack(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    rope_sections(own, config, dims)
    vision = config.get("vision_config")
    layers = vision.get("deepstack_visual_indexes") if isinstance(vision, Mapping) else None
    own["n_deepstack_layers"] = np.uint32(len(layers or []))


def _sections_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    if (sections := own.get("rope.dimension_sections")) is not None:
        config["rope_scaling"] = {"rope_type": "default", "mrope_section": [int(n) for n in sections][:3]}


def _text_of(parent: Architecture, gguf: str, *names: HfName, **changes: Any) -> Architecture:
    return parent.variant(
        gguf, *names, rebuild=_sections_back, prefixes=_PREFIXES, reads="mrope_section mrope_interleaved", **changes
    )


QWEN2_VL = _text_of(
    QWEN2,
    "qwen2vl",
    HfName("Qwen2VLForConditionalGeneration", "qwen2_vl"),
    HfName("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl"),
    HfName("Qwen2VLModel", "qwen2_vl_text"),
    HfName("Qwen2_5OmniModel", "qwen2_5_omni"),
    finish=rope_sections,
)

QWEN3_VL = _text_of(
    QWEN3,
    "qwen3vl",
    HfName("Qwen3VLForConditionalGeneration", "qwen3_vl"),
    HfName("Qwen3ASRForConditionalGeneration", "qwen3_asr"),
    finish=_deepstack,
)

ARCHITECTURES = (QWEN2_VL, QWEN3_VL)
