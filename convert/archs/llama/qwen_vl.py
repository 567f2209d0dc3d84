"""The text models inside Qwen 2-VL, 2.5-VL, Omni and Qwen 3-VL: a text's three-fold positions are plain ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.llama.qwen import QWEN2, QWEN3, QWEN3_MOE
from llmconv.convert.archs.rope import Finish, rope_sections, sections_back
from llmconv.convert.tables.architecture import Architecture, Form, HfName, row
from llmconv.convert.tables.ops import Dims, Op, Parts, Split, Stack, Transpose

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


class _Gates(Op):
    """The stacked gate and up matrices apart, and the down matrices as they are."""

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        return (*_halves.apply(parts[:1], dims), *parts[1:])

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        return (*_halves.undo(parts[:2], dims), *parts[2:])


_DIVIDED = ("blk.{i}.ffn_gate_exps.weight", "blk.{i}.ffn_down_exps.weight")

_stacked = (_experts + "gate_up_proj", _experts + "down_proj")

# One row, so that either all or none of it lies [in][out]: recent releases of transformers keep stacked experts as
# other families do, under the same names, and the shapes tell.
_all_experts = row(
    ("blk.{i}.ffn_gate_exps.weight", "blk.{i}.ffn_up_exps.weight", "blk.{i}.ffn_down_exps.weight"),
    tuple(_experts + f"{{e}}.{name}_proj.weight" for name in ("gate", "up", "down")),
    ("n_expert, n_ff_exp, n_embd", "n_expert, n_ff_exp, n_embd", "n_expert, n_embd, n_ff_exp"),
    Stack(3),
    when="n_expert and sparse",
    alt=(Form(_stacked, (Transpose(), _Gates())), Form(_stacked, (_Gates(),))),
)


def _always_normed(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """Qwen 3-VL's chosen experts' weights sum to one whatever its configuration says; Omni's says it."""
    _deepstack(own, config, dims)
    if config.get("model_type") == "qwen3_vl_moe":
        own.pop("expert_weights_norm", None)


QWEN3_VL_MOE = _text_of(
    QWEN3_MOE,
    "qwen3vlmoe",
    HfName("Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe"),
    HfName("Qwen3OmniMoeForConditionalGeneration", "qwen3_omni_moe"),
    rows=(_all_experts,),
    drop=_DIVIDED,
    finish=_always_normed,
    rebuild=_deepstack_back,
)

ARCHITECTURES = (QWEN2_VL, QWEN3_VL, QWEN3_VL_MOE)
