"""PLaMo 1: one norm for attention and MLP; a key head serves every so many query heads, not neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import COMMON, EMBEDDINGS
from llmconv.convert.tables.architecture import Architecture, HfName, row
from llmconv.convert.tables.ops import Dims, SwapColumns, SwapRows

_at = "{p}layers.layers.{i}."

_attn = _at + "self_attn."

_each = "n_head // n_head_kv"


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    shared = int(config.get("n_shared_head", 8))
    if shared and dims["n_head"] % shared == 0:
        own["attention.head_count_kv"] = np.uint32(dims["n_head"] // shared)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["n_shared_head"] = dims["n_head"] // dims["n_head_kv"]
    config["num_key_value_heads"] = dims["n_head"]


PLAMO = Architecture(
    "plamo",
    (HfName("PlamoForCausalLM", "plamo"),),
    keys=tuple(key for key in COMMON if key.gguf not in ("context_length", "rope.freq_base")),
    rows=(
        *EMBEDDINGS,
        row("blk.{i}.attn_norm.weight", _at + "norm.weight", "n_embd"),
        row(
            "blk.{i}.attn_q.weight",
            _attn + "q_proj.weight",
            "n_head * head_dim, n_embd",
            SwapRows(_each, "n_head_kv", inner="head_dim"),
        ),
        row("blk.{i}.attn_k.weight", _attn + "k_proj.weight", "n_head_kv * head_dim, n_embd"),
        row("blk.{i}.attn_v.weight", _attn + "v_proj.weight", "n_head_kv * head_dim, n_embd"),
        row(
            "blk.{i}.attn_output.weight",
            _attn + "o_proj.weight",
            "n_embd, n_head * head_dim",
            SwapColumns(_each, "n_head_kv", "head_dim"),
        ),
        row("blk.{i}.ffn_gate.weight", _at + "mlp.gate_proj.weight", "n_ff, n_embd"),
        row("blk.{i}.ffn_up.weight", _at + "mlp.up_proj.weight", "n_ff, n_embd"),
        row("blk.{i}.ffn_down.weight", _at + "mlp.down_proj.weight", "n_embd, n_ff"),
    ),
    constants={"context_length": np.uint32(4096)},
    finish=_finish,
    rebuild=_rebuild,
    decoder={"parallel": True},
    reads="n_shared_head",
    inert="num_key_value_heads max_position_embeddings",
)

ARCHITECTURES = (PLAMO,)
