"""Granite Switch: dense Granite with adapters (LoRA) in its weights, which tokens of its vocabulary turn on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.llama.granite import GRANITE, scale_back
from llmconv.convert.archs.parts import EMBEDDINGS, NORMS
from llmconv.convert.tables.architecture import HfName, keys, row
from llmconv.convert.tables.ops import Dims, Led, Reshape, Split, rope_halves

_at = "{p}layers.{i}."

_qkv, _out = _at + "self_attn.qkv_proj.", _at + "self_attn.o_proj."

_in, _down = _at + "shared_mlp.input_linear.", _at + "shared_mlp.output_linear."

_q, _kv = "n_head * head_dim", "n_head_kv * head_dim"


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["block_count"] = np.uint32(dims["n_layer"] - 1)  # the switch, which has no weights, counts as a layer
    own.setdefault("expert_used_count", np.uint32(0))
    if not config.get("num_local_experts"):
        own["expert_used_count"] = np.uint32(0)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    scale_back(config, own, dims)
    config["num_hidden_layers"] = dims["n_layer"] + 1
    config["projection_head_dim"] = dims["head_dim"]


def _adapters(gguf: str, hf: str, number: str, n_in: str, n_out: str, *turned: Any) -> tuple[Any, ...]:
    """Rows of the adapters of one matrix: down to their rank, and up from it."""
    a, b = ("lora_A_slices." + number, "lora_B_slices." + number) if number else ("lora_A", "lora_B")
    return (
        row(
            f"blk.{{i}}.{gguf}.lora_a",
            hf + a,
            f"n_adapter + 1, n_rank, {n_in}",
            Reshape(("n_adapter", 1, "n_rank", n_in), ("n_adapter", "n_rank", n_in)),
            Led(),
        ),
        row(
            f"blk.{{i}}.{gguf}.lora_b",
            hf + b,
            f"n_adapter + 1, {n_out}, n_rank",
            Reshape(("n_adapter", 1, n_out, "n_rank"), ("n_adapter", n_out, "n_rank")),
            *turned,
            Led(),
        ),
    )


class _Turned(Split):
    """q, k and v in one matrix: the rows of the first two in GGUF's order."""

    def apply(self, parts: Any, dims: Dims) -> Any:
        q, k, v = super().apply(parts, dims)
        parts = (*rope_halves("n_head").apply((q,), dims), *rope_halves("n_head_kv").apply((k,), dims), v)
        return super().undo(parts, dims)

    def undo(self, parts: Any, dims: Dims) -> Any:
        q, k, v = super().apply(parts, dims)
        parts = (*rope_halves("n_head").undo((q,), dims), *rope_halves("n_head_kv").undo((k,), dims), v)
        return super().undo(parts, dims)


_KEYS = GRANITE.variant(
    "graniteswitch",
    HfName("GraniteSwitchForCausalLM", "granite_switch"),
    keys=keys("""
        attention.key_length                u32    projection_head_dim|head_dim
        rope.dimension_count                u32    projection_head_dim|head_dim     = n_embd // n_head
        expert_shared_feed_forward_length   u32    shared_intermediate_size
        expert_count                        u32    num_local_experts
        expert_used_count                   u32    num_experts_per_tok
        adapters.count                      u32    num_adapters
        adapters.lora_rank                  u32    max_lora_rank
        adapters.token_ids_activate         i32s   adapter_token_ids
        adapters.token_ids_substitute       i32s   adapter_substitute_token_ids
        adapters.router_gain                f32    control_token_gain               15
    """),
    finish=_finish,
    rebuild=_rebuild,
    kept=(r"(model\.)?switch\..*", r".*adapter_token_ids", r".*control_to_substitute_lut"),
    reads="num_experts_per_tok",
    inert="lora_config adapter_names adapter_ranks",
)

GRANITE_SWITCH = dataclasses.replace(
    _KEYS,
    rows=(
        *EMBEDDINGS,
        *NORMS,
        row(
            "blk.{i}.attn_qkv.weight",
            _qkv + "base_layer.weight",
            f"{_q} + 2 * {_kv}, n_embd",
            _Turned((_q, _kv, _kv)),
        ),
        *_adapters("attn_q", _qkv, "0", "n_embd", _q, rope_halves("n_adapter * n_head")),
        *_adapters("attn_k", _qkv, "1", "n_embd", _kv, rope_halves("n_adapter * n_head_kv")),
        *_adapters("attn_v", _qkv, "2", "n_embd", _kv),
        row("blk.{i}.attn_output.weight", _out + "base_layer.weight", f"n_embd, {_q}"),
        *_adapters("attn_output", _out, "", _q, "n_embd"),
        row(
            ("blk.{i}.ffn_gate.weight", "blk.{i}.ffn_up.weight"),
            _in + "base_layer.weight",
            ("n_ff_shexp, n_embd", "n_ff_shexp, n_embd"),
            Split(("n_ff_shexp", "n_ff_shexp")),
        ),
        *_adapters("ffn_gate", _in, "0", "n_embd", "n_ff_shexp"),
        *_adapters("ffn_up", _in, "1", "n_embd", "n_ff_shexp"),
        row("blk.{i}.ffn_down.weight", _down + "base_layer.weight", "n_embd, n_ff_shexp"),
        *_adapters("ffn_down", _down, "", "n_ff_shexp", "n_embd"),
    ),
)

ARCHITECTURES = (GRANITE_SWITCH,)
