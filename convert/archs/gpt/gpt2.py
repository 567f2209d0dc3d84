"""GPT-2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import GPT_KEYS, HEAD, linear, norm
from llmconv.convert.tables.architecture import Architecture, HfName, row
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Dims, Transpose

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


GPT2 = Architecture(
    "gpt2",
    (HfName("GPT2LMHeadModel", "gpt2"), HfName("GPT2Model", "gpt2")),
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
    prefixes=("transformer.", ""),
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
    fixed={"add_cross_attention": False},
    loader=Loader(unread=("attention.scale",)),
)

ARCHITECTURES = (GPT2,)
