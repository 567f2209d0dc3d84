"""Ministral 3, and Mistral 3.1 and later inside the multimodal model: Llama whose queries grow with their position."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.llama.llama import LLAMA, NOT_DENSE
from llmconv.convert.archs.parts import HEAD_DIM, check_text_model
from llmconv.convert.archs.rope import yarn_magnitudes
from llmconv.convert.tables.architecture import HfName, keys
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Dims

_TEXTS = ("mistral", "ministral3", "mistral3")
"""Model types of the text models that the multimodal class has here."""


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    check_text_model(config, _TEXTS)
    rope = config.get("rope") or {}
    yarn_magnitudes(own, rope, 1.0)
    if rope.get("llama_4_scaling_beta"):
        own["attention.temperature_scale"] = np.float32(rope["llama_4_scaling_beta"])


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    scale = own.get("attention.temperature_scale")
    if scale is None:
        return
    config.update(architectures=["Ministral3ForCausalLM"], model_type="ministral3")
    scaling = config.setdefault("rope_scaling", {"rope_type": "default"})
    scaling["llama_4_scaling_beta"] = float(scale)
    scaling["rope_theta"] = float(own["rope.freq_base"])
    if (multiplier := own.get("rope.scaling.yarn_log_multiplier")) is not None:
        scaling["mscale_all_dim"] = float(multiplier)
        scaling["attention_factor"] = float(own.get("rope.scaling.attn_factor", 1.0))
        if (factor := scaling.get("factor", 1.0)) > 1:  # as llama.cpp has it
            scaling["attention_factor"] *= (1 + 0.1 * math.log(factor)) / (
                1 + 0.1 * float(multiplier) * math.log(factor)
            )


MISTRAL3 = LLAMA.variant(
    "mistral3",
    HfName("Ministral3ForCausalLM", "ministral3"),
    HfName("Mistral3ForConditionalGeneration", "mistral3"),
    drop=NOT_DENSE,
    keys=(*HEAD_DIM, *keys("attention.sliding_window  u32  sliding_window")),
    decoder={"yarn_log_unit": 0.1},
    finish=_finish,
    rebuild=_rebuild,
    reads="rope_theta llama_4_scaling_beta",
    loader=Loader(unread=("attention.sliding_window",)),
)

ARCHITECTURES = (MISTRAL3,)
