"""HRM-Text: two stacks of layers that are gone through again and again, the faster one several times in each cycle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import COMMON, HEAD
from llmconv.convert.tables.architecture import Architecture, Form, HfName, Row, keys, row
from llmconv.convert.tables.ops import Dims, Split

_at = "{p}{s}_module.layers.{j}."

_there = "i < 2 * n_stack"

_wide = "n_head * head_dim"


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    stack = int(config.get("num_layers_per_stack") or config["num_hidden_layers"])
    slow, fast = int(own["hrm.h_cycles"]), int(own["hrm.l_cycles"])
    own["hrm.layers_per_stack"] = np.uint32(stack)
    own["block_count"] = np.uint32(stack * slow * (fast + 1))
    if "embedding_scale" not in own:
        own["embedding_scale"] = np.float32(1 / config.get("initializer_range", 0.02))


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["num_layers_per_stack"] = dims["n_stack"]
    config["num_hidden_layers"] = dims["n_layer"]
    config.setdefault("embedding_scale", 1.0)  # which a configuration takes for another, and a GGUF for none


def _fused(names: tuple[str, ...], hf: tuple[str, ...], whole: str, rows: str) -> Row:
    """Weights that its own files have in one, and transformers apart."""
    return row(
        tuple(f"blk.{{i}}.{name}.weight" for name in names),
        tuple(_at + f"{name}.weight" for name in hf),
        (f"{rows}, n_embd",) * len(names),
        when=_there,
        alt=(Form((_at + whole,), (Split((rows,) * len(names)),)),),
    )


HRM_TEXT = Architecture(
    "hrm_text",
    (HfName("HrmTextForCausalLM", "hrm_text"),),
    keys=(
        *(key for key in COMMON if key.gguf not in ("attention.head_count_kv",)),
        *keys("""
            attention.key_length     u32    head_dim            128
            attention.value_length   u32    head_dim            128
            rope.dimension_count     u32    head_dim            128
            embedding_scale          f32    embedding_scale
            hrm.layers_per_stack     u32    num_layers_per_stack
            hrm.h_cycles             u32    H_cycles            2
            hrm.l_cycles             u32    L_cycles            3
            hrm.prefix_lm            bool   prefix_lm           false
        """),
    ),
    rows=(
        row("token_embd.weight", "{p}embed_tokens.weight", "n_vocab, n_embd"),
        HEAD,
        row("hrm.z_l_init", "{p}z_L_init", "n_embd"),
        _fused(
            ("attn_gate", "attn_q", "attn_k", "attn_v"),
            tuple(f"self_attn.{name}_proj" for name in ("gate", "q", "k", "v")),
            "attn.gqkv_proj.weight",
            _wide,
        ),
        row(
            "blk.{i}.attn_output.weight",
            _at + "self_attn.o_proj.weight",
            f"n_embd, {_wide}",
            when=_there,
            alt=(Form((_at + "attn.o_proj.weight",)),),
        ),
        _fused(("ffn_gate", "ffn_up"), ("mlp.gate_proj", "mlp.up_proj"), "mlp.gate_up_proj.weight", "n_ff"),
        row("blk.{i}.ffn_down.weight", _at + "mlp.down_proj.weight", "n_embd, n_ff", when=_there),
    ),
    finish=_finish,
    rebuild=_rebuild,
    decoder={"weightless": ("attn_norm", "ffn_norm")},
    reads="num_layers_per_stack initializer_range",
    inert="L_bp_cycles",
    fixed={"attention_bias": False, "mlp_bias": False},
)

ARCHITECTURES = (HRM_TEXT,)
