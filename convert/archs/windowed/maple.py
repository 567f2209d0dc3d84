"""Maple: experts whose gates are clamped; layers without a window have no rotary positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import (
    COMMON,
    EMBEDDINGS,
    EXPERTS,
    HEAD_DIM,
    NORMS,
    QK_NORMS,
    attention,
    experts,
)
from llmconv.convert.archs.rope import partial_rotary
from llmconv.convert.tables.architecture import Architecture, HfName, keys
from llmconv.convert.tables.loader import HEAD, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims
from llmconv.convert.tables.windows import PATTERN

_part, _part_back = partial_rotary("partial_rotary_factor", 1.0)

_CLAMP = 7.0  # in the model's own code


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    _part(own, config, dims)
    own[PATTERN] = np.asarray([kind == "sliding_attention" for kind in config["layer_types"]], np.bool_)
    own["swiglu_clamp_exp"] = np.full(min(dims["n_layer"], 1 << 16), _CLAMP, np.float32)


MAPLE = Architecture(
    "maple",
    (HfName("MapleForCausalLM", "maple"),),
    keys=(
        *COMMON,
        *HEAD_DIM,
        *EXPERTS,
        *keys("""
            vocab_size                        u32   vocab_size
            attention.sliding_window          u32   sliding_window
            expert_feed_forward_length        u32   moe_intermediate_size
        """),
    ),
    rows=(*EMBEDDINGS, *NORMS, *attention(), *QK_NORMS, *experts(where="1")),
    finish=_finish,
    rebuild=_part_back,
    decoder={"window_pattern": 0, "rope_layers": "windowed", "normalize_experts": True, "clamp_first": True},
    reads="layer_types partial_rotary_factor",
    inert="intermediate_size",
    fixed={"nope_on_global_attention": True, "norm_topk_prob": True, "num_shared_experts": 0},
    loader=Loader(refused=OUT_BIAS, needed=HEAD),
)

ARCHITECTURES = (MAPLE,)
