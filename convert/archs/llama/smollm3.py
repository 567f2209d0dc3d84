"""SmolLM3: Llama without rotary in every fourth layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.llama.llama import LLAMA, NOT_DENSE
from llmconv.convert.tables.architecture import HfName, keys
from llmconv.convert.tables.loader import DIVISORS, MLP_BIASES, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims

_EVERY = 4  # layers, of which the last has no rotary positions


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    n_layer = min(dims["n_layer"], 1 << 16)
    usual = [(i + 1) % _EVERY != 0 for i in range(n_layer)]
    turning, every = config.get("no_rope_layers"), config.get("no_rope_layer_interval") or _EVERY
    if not isinstance(turning, list):
        turning = [(i + 1) % every != 0 for i in range(n_layer)]
    if len(turning) < n_layer:
        raise ValueError(f"fewer entries than the {n_layer} layers")
    turning = [bool(on) for on in turning[:n_layer]]
    if turning != usual:
        own["rope.layers"] = np.asarray(turning, np.bool_)
    if config.get("use_sliding_window") and config.get("sliding_window") is not None:
        own["attention.sliding_window"] = np.uint32(config["sliding_window"])
        own["attention.sliding_window_pattern"] = np.logical_not(turning)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    if (turning := own.get("rope.layers")) is not None:
        config["no_rope_layers"] = [int(on) for on in turning]
    if dims["window"]:
        config.update(use_sliding_window=True, sliding_window=dims["window"])


SMOLLM3 = LLAMA.variant(
    "smollm3",
    HfName("SmolLM3ForCausalLM", "smollm3"),
    drop=NOT_DENSE,
    keys=keys("rope.freq_base  f32  rope_theta  2000000"),
    tied=True,
    finish=_finish,
    rebuild=_rebuild,
    decoder={"no_rope_every": _EVERY},
    reads="no_rope_layers no_rope_layer_interval use_sliding_window sliding_window layer_types",
    loader=Loader(refused=(*MLP_BIASES, *OUT_BIAS, *DIVISORS)),
)

ARCHITECTURES = (SMOLLM3,)
