"""PLaMo 3: norms on both sides of the sublayers, whose weights are stored less a constant of their place.

Those behind the sublayers have no ".weight" in a GGUF.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import COMMON, EMBEDDINGS, HEAD_DIM
from llmconv.convert.tables.architecture import Architecture, HfName, Row, keys, row
from llmconv.convert.tables.ops import Dims, Shift
from llmconv.convert.tables.windows import PATTERN

_at = "{p}layers.layers.{i}."

_mix = _at + "mixer."


def _norm(gguf: str, hf: str, shape: str = "n_embd", by: float = 1.0) -> Row:
    return row(f"blk.{{i}}.{gguf}", f"{_at}{hf}.weight", shape, Shift(by))


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    if own.get("attention.sliding_window") and (every := config.get("sliding_window_pattern")):
        own[PATTERN] = np.uint32(every)
    factor = config.get("rope_scaling_factor", 1)
    if factor != 1 and "rope.scaling.type" not in own:
        own["rope.scaling.type"], own["rope.scaling.factor"] = "yarn", np.float32(factor)
        own["rope.scaling.original_context_length"] = np.uint32(config["initial_context_length"])
        own["rope.scaling.yarn_beta_fast"], own["rope.scaling.yarn_beta_slow"] = np.float32(32), np.float32(1)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    if PATTERN in own and np.ndim(own[PATTERN]) == 0:
        config["sliding_window_pattern"] = int(own[PATTERN])


PLAMO3 = Architecture(
    "plamo3",
    (HfName("Plamo3ForCausalLM", "plamo3"), HfName("PLaMo3ForCausalLM", "plamo3")),
    keys=(
        *COMMON,
        *HEAD_DIM,
        *keys("""
            vocab_size                        u32   vocab_size
            attention.sliding_window          u32   window_size|sliding_window
        """),
    ),
    rows=(
        EMBEDDINGS[0],
        row("output_norm.weight", "{p}norm.weight", "n_embd", Shift()),
        EMBEDDINGS[2],
        _norm("attn_norm.weight", "pre_mixer_norm"),
        row("blk.{i}.attn_qkv.weight", _mix + "qkv_proj.weight", "(n_head + 2 * n_head_kv) * head_dim, n_embd"),
        _norm("attn_q_norm.weight", "mixer.q_norm", "head_dim"),
        _norm("attn_k_norm.weight", "mixer.k_norm", "head_dim"),
        row("blk.{i}.attn_output.weight", _mix + "o_proj.weight", "n_embd, n_head * head_dim"),
        _norm("post_attention_norm", "post_mixer_norm", by=1.0 / 5),
        _norm("ffn_norm.weight", "pre_mlp_norm"),
        row("blk.{i}.ffn_up.weight", _at + "mlp.gate_up_proj.weight", "2 * n_ff, n_embd"),
        row("blk.{i}.ffn_down.weight", _at + "mlp.down_proj.weight", "n_embd, n_ff"),
        _norm("post_ffw_norm", "post_mlp_norm", by=1.0 / 5**1.5),
    ),
    finish=_finish,
    rebuild=_rebuild,
    decoder={
        "window_pattern": 8,
        "yarn_truncate": False,
    },
    reads="sliding_window_pattern rope_scaling_factor initial_context_length",
    inert="interleaved_sliding_window full_attention_idx shared_intermediate_size attention_window_size",
)

ARCHITECTURES = (PLAMO3,)
