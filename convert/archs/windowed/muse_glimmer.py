"""Muse Glimmer: windows with positions, full attention without, a gate on what attention gives, norms on both sides.

Queries and keys are brought to length one and queries multiplied by a number, which a GGUF says as weights of norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.gemma.gemma4 import FOUR_NORMS
from llmconv.convert.archs.parts import COMMON, EMBEDDINGS, HEAD_DIM, attention, gated_mlp, shifted
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.loader import HEAD, MLP_BIASES, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims, rope_halves
from llmconv.convert.tables.times import Filled
from llmconv.convert.tables.windows import PATTERN
from llmconv.errors import Unsupported

_at = "{p}layers.{i}."


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    count = min(dims["n_layer"], 1 << 16)
    kinds, thetas = config.get("layer_types"), config.get("layer_rope_theta")
    if not isinstance(kinds, list):
        kinds = ["sliding_attention" if (count - 1 - i) % 4 else "full_attention" for i in range(count)]
    windowed = [kind == "sliding_attention" for kind in kinds[:count]]
    base = float(own["rope.freq_base"])
    if isinstance(thetas, list) and any(float(t) != base * on for t, on in zip(thetas, windowed, strict=False)):
        raise Unsupported(
            "config.json: layer_rope_theta is not rope_theta in layers with a window and 0 in the others, which is all "
            "that a muse-glimmer GGUF can say"
        )
    own[PATTERN] = np.asarray(windowed, np.bool_)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    windowed = np.broadcast_to(own.get(PATTERN, False), (dims["n_layer"],))
    config["layer_types"] = ["sliding_attention" if on else "full_attention" for on in windowed]
    config["layer_rope_theta"] = [config["rope_theta"] if on else 0 for on in windowed]


def _told(tensors: Mapping[str, Any], dims: Dims) -> dict[str, Any]:
    """What queries are multiplied by, in a GGUF of somebody else's."""
    norm = tensors.get("blk.0.attn_q_norm.weight")
    return {} if norm is None else {"scaled_by.query": np.float32(norm.numpy().reshape(-1)[0])}


_query = row(
    ("blk.{i}.attn_q.weight", "blk.{i}.attn_q_norm.weight", "blk.{i}.attn_k_norm.weight"),
    _at + "self_attn.q_proj.weight",
    ("n_head * head_dim, n_embd", "head_dim", "head_dim"),
    rope_halves("n_head"),
    Filled((("head_dim", "query"), ("head_dim", ""))),
)

MUSE_GLIMMER = Architecture(
    "muse-glimmer",
    (HfName("MuseGlimmerForConditionalGeneration", "muse_glimmer"),),
    keys=(
        *COMMON,
        *HEAD_DIM,
        *keys("""
            attention.sliding_window   u32   sliding_window            2048
            final_logit_softcapping    f32   final_logit_softcapping   20
            logit_scale                f32   output_multiplier         0.19611613513818404
            scaled_by.query            f32   qk_scale_factor           3.87
        """),
    ),
    rows=(
        *EMBEDDINGS,
        *shifted(FOUR_NORMS),
        _query,
        *(r for r in attention(permuted=True) if r.gguf[0] != "blk.{i}.attn_q.weight"),
        row("blk.{i}.attn_gate.weight", _at + "self_attn.gate_proj.weight", "n_head * head_dim, n_embd"),
        *gated_mlp(),
    ),
    prefixes=("model.language_model.", "model.", "language_model.model.", ""),
    finish=_finish,
    rebuild=_rebuild,
    told=_told,
    decoder={
        "rope": "pairs",
        "rope_layers": "windowed",
        "weightless": ("token_embd_norm",),
        "behind_eps": 1e-8,
        "activation_key": "hidden_activation",
    },
    reads="layer_types layer_rope_theta",
    fixed={"post_norm_eps": 1e-8},
    loader=Loader(refused=(*MLP_BIASES, *OUT_BIAS), needed=HEAD),
)

ARCHITECTURES = (MUSE_GLIMMER,)
