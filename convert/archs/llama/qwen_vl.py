"""The text models inside Qwen 2-VL, 2.5-VL, Omni and Qwen 3-VL: a text's three-fold positions are plain ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from llmconv.convert.archs.llama.qwen import QWEN2, QWEN3, QWEN3_MOE
from llmconv.convert.archs.parts import experts
from llmconv.convert.archs.rope import Finish, rope_sections, sections_back
from llmconv.convert.tables.architecture import Architecture, Form, HfName
from llmconv.convert.tables.ops import Dims, Split, Transpose

_PREFIXES = (
    *("model.language_model.", "model.", "language_model.model.", "language_model."),
    *("thinker.model.", "thinker.language_model.", ""),
)


def _deepstack(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    rope_sections(own, config, dims)
    vision = config.get("vision_config")
    layers = vision.get("deepstack_visual_indexes") if isinstance(vision, Mapping) else None
    own["n_deepstack_layers"] = np.uint32(len(layers or []))


def _deepstack_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    _sections_back(config, own, dims)
    if count := int(own.get("n_deepstack_layers", 0)):  # which of its layers, only the vision model's file says
        config["vision_config"] = {"deepstack_visual_indexes": list(range(min(count, dims["n_layer"])))}


def _sections_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    sections_back(config, own)


def _after(first: Finish | None, then: Finish) -> Finish:
    """Two hooks, one after the other."""

    def both(into: dict[str, Any], source: Mapping[str, Any], dims: Dims) -> None:
        if first is not None:
            first(into, source, dims)
        then(into, source, dims)

    return both


def _text_of(
    parent: Architecture, gguf: str, *names: HfName, finish: Finish, rebuild: Finish, **changes: Any
) -> Architecture:
    return parent.variant(
        gguf,
        *names,
        finish=_after(parent.finish, finish),
        rebuild=_after(parent.rebuild, rebuild),
        prefixes=_PREFIXES,
        reads="mrope_section mrope_interleaved",
        **changes,
    )


QWEN2_VL = _text_of(
    QWEN2,
    "qwen2vl",
    HfName("Qwen2VLForConditionalGeneration", "qwen2_vl"),
    HfName("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl"),
    HfName("Qwen2VLModel", "qwen2_vl_text"),
    HfName("Qwen2_5OmniModel", "qwen2_5_omni"),
    finish=rope_sections,
    rebuild=_sections_back,
)

QWEN3_VL = _text_of(
    QWEN3,
    "qwen3vl",
    HfName("Qwen3VLForConditionalGeneration", "qwen3_vl"),
    HfName("Qwen3ASRForConditionalGeneration", "qwen3_asr"),
    finish=_deepstack,
    rebuild=_deepstack_back,
)

_experts = "{p}layers.{i}.mlp.experts."

_halves = Split(("n_ff_exp", "n_ff_exp"), "n_expert", hf_stacked=True, gguf_stacked=True)

_gate_up, _down = experts(where="sparse")[1:]

QWEN3_VL_MOE = _text_of(
    QWEN3_MOE,
    "qwen3vlmoe",
    HfName("Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe"),
    HfName("Qwen3OmniMoeForConditionalGeneration", "qwen3_omni_moe"),
    rows=(  # stacked, its experts lie [in][out]
        replace(_gate_up, forms=(_gate_up.forms[0], Form((_experts + "gate_up_proj",), (Transpose(), _halves)))),
        replace(_down, forms=(_down.forms[0], Form((_experts + "down_proj",), (Transpose(),)))),
    ),
    finish=_deepstack,
    rebuild=_deepstack_back,
)

ARCHITECTURES = (QWEN2_VL, QWEN3_VL, QWEN3_VL_MOE)
