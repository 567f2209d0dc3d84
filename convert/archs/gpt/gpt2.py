"""GPT-2."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import GPT_KEYS, HEAD, linear, norm
from llmconv.convert.tables.architecture import Architecture, Form, HfName, Row, row
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Concat, Dims, Transpose

_at = "{p}h.{i}."


def attention_scale(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """`attention.scale`, where q·k is not divided by the root of the head's size, or by the layer's number too."""
    usual = config.get("scale_attn_weights", True)
    scale = dims["head_dim"] ** -0.5 if usual else 1.0
    if config.get("scale_attn_by_inverse_layer_idx"):
        layers = np.arange(1, min(dims["n_layer"], 1 << 16) + 1)
        own["attention.scale"] = (scale / layers).astype(np.float32)
    elif not usual:
        own["attention.scale"] = np.float32(1)


def read_attention_scale(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    """The way back of `attention_scale`."""
    if (scale := own.get("attention.scale")) is not None:
        config["scale_attn_by_inverse_layer_idx"] = np.ndim(scale) > 0
        config["scale_attn_weights"] = float(np.ravel(scale)[0]) != 1


_ru = "{p}layers.{i}."

_RU_NAMES = {
    "token_embd": ("{p}embed_tokens",),
    "position_embd": ("{p}embed_positions",),
    "output_norm": ("{p}norm",),
    "blk.{i}.attn_norm": (_ru + "input_layernorm",),
    "blk.{i}.attn_qkv": tuple(_ru + f"self_attn.{part}_proj" for part in "qkv"),
    "blk.{i}.attn_output": (_ru + "self_attn.o_proj",),
    "blk.{i}.ffn_norm": (_ru + "post_attention_layernorm",),
    "blk.{i}.ffn_up": (_ru + "mlp.up_proj",),
    "blk.{i}.ffn_down": (_ru + "mlp.down_proj",),
}
"""What ruGPT-3 XL calls them, whose matrices are not turned, and whose queries, keys and values lie apart."""


def _as_russian(rows: tuple[Row, ...]) -> Iterator[Row]:
    """The rows with a second form, ruGPT-3 XL's."""
    for each in rows:
        name, _, part = each.gguf[0].rpartition(".")
        patterns = tuple(f"{theirs}.{part}" for theirs in _RU_NAMES.get(name, ()))
        ops = (Concat(("n_embd",) * 3),) if len(patterns) > 1 else ()
        yield dataclasses.replace(each, forms=(*each.forms, Form(patterns, ops))) if patterns else each


GPT2 = Architecture(
    "gpt2",
    (HfName("GPT2LMHeadModel", "gpt2"), HfName("GPT2Model", "gpt2"), HfName("RuGPT3XLForCausalLM", "rugpt3xl")),
    keys=GPT_KEYS,
    rows=(
        row("token_embd.weight", "{p}wte.weight", "n_vocab, n_embd"),
        row("position_embd.weight", "{p}wpe.weight", "n_ctx, n_embd"),
        *norm("output_norm", "{p}ln_f"),
        HEAD,
        *norm("blk.{i}.attn_norm", _at + "ln_1"),
        *linear("blk.{i}.attn_qkv", _at + "attn.c_attn", "3 * n_embd", "n_embd", Transpose()),
        *linear("blk.{i}.attn_output", _at + "attn.c_proj", "n_embd", "n_embd", Transpose()),
        *norm("blk.{i}.ffn_norm", _at + "ln_2"),
        *linear("blk.{i}.ffn_up", _at + "mlp.c_fc", "n_ff", "n_embd", Transpose()),
        *linear("blk.{i}.ffn_down", _at + "mlp.c_proj", "n_embd", "n_ff", Transpose()),
    ),
    prefixes=("transformer.", "", "model."),
    dropped=(r".*\.attn\.(masked_)?bias",),
    tied=True,
    decoder={
        "positions": "learned",
        "activation": "gelu_tanh",
        "activation_key": "activation_function",
        "conv1d": True,
    },
    finish=attention_scale,
    rebuild=read_attention_scale,
    reads="scale_attn_weights scale_attn_by_inverse_layer_idx",
    inert="reorder_and_upcast_attn n_ctx",
    fixed={"add_cross_attention": False, "sparse_mode": ("none", None)},
    loader=Loader(unread=("attention.scale",)),
)

GPT2 = dataclasses.replace(GPT2, rows=tuple(_as_russian(GPT2.rows)))

ARCHITECTURES = (GPT2,)
