"""GPT-2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmconv.convert.archs.parts import GPT_KEYS, HEAD, linear, norm
from llmconv.convert.tables.architecture import Architecture, HfName, row
from llmconv.convert.tables.ops import Dims, Transpose

_at = "{p}h.{i}."
_OTHER = {"gelu_tanh": "gelu_new"}
"""Activations that transformers calls otherwise."""


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """Not GPT-2's own activation: a key of ours, for those that people trained themselves (nanoGPT)."""
    stated = config.get("activation_function")
    if isinstance(stated, str) and stated != "gelu_new":
        own["hidden_activation"] = stated


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    if isinstance(stated := own.get("hidden_activation"), str):
        config["activation_function"] = _OTHER.get(stated, stated)


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
    finish=_finish,
    rebuild=_rebuild,
    decoder={"positions": "learned", "activation": "gelu_tanh", "conv1d": True},
)

ARCHITECTURES = (GPT2,)
