"""Flat dotted keys in GPT-2's vocabulary of names, [in][out], tied head: GPT-2 itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmconv.convert.layouts.base import Field, Layout, Words, row
from llmconv.convert.layouts.settings import activation, guess
from llmconv.convert.layouts.written import Style, by_path, writer
from llmconv.convert.tables.ops import Concat, Transpose
from llmconv.formats.tensor import Tensor

_BLOCK = "blk.{i}."

_GUESS = guess("its MLP has gelu_tanh", "relu, or gelu for the exact one")


def _dotted_activation(own: dict[str, Any], tensors: Mapping[str, Tensor], paths: Sequence[str]) -> list[str]:
    return [] if "hidden_activation" in own else [_GUESS]


_QKV = ("block{i}.q.", "block{i}.k.", "block{i}.v.")
_THREE = ("n_embd", "n_embd", "n_embd")


def _dotted(gguf: str, path: str, n_out: str, n_in: str) -> Any:
    return (
        row(gguf + ".weight", path + ".W", f"{n_out}, {n_in}", Transpose()),
        row(gguf + ".bias", path + ".b", n_out),
    )


def _gb(gguf: str, path: str) -> Any:
    return (row(gguf + ".weight", path + ".g", "n_embd"), row(gguf + ".bias", path + ".b", "n_embd"))


_DOTTED = (
    row("token_embd.weight", "wte", "n_vocab, n_embd"),
    row("position_embd.weight", "wpe", "n_ctx, n_embd"),
    *_gb("output_norm", "ln_f"),
    *_gb(_BLOCK + "attn_norm", "block{i}.ln1"),
    row(_BLOCK + "attn_qkv.weight", tuple(p + "W" for p in _QKV), "3 * n_embd, n_embd", Transpose(), Concat(_THREE)),
    row(_BLOCK + "attn_qkv.bias", tuple(p + "b" for p in _QKV), "3 * n_embd", Concat(_THREE)),
    *_dotted(_BLOCK + "attn_output", "block{i}.o", "n_embd", "n_embd"),
    *_gb(_BLOCK + "ffn_norm", "block{i}.ln2"),
    *_dotted(_BLOCK + "ffn_up", "block{i}.ffn.lin1", "n_ff", "n_embd"),
    *_dotted(_BLOCK + "ffn_down", "block{i}.ffn.lin2", "n_embd", "n_ff"),
)

DOTTED = Layout(
    "dotted",
    "flat dotted keys: config, vocab, wte, wpe, block0.q.W ..., [in][out], tied head",
    "gpt2",
    marks=(
        "config.d_model",
        "config.n_heads",
        "config.n_layers",
        "wte",
        "wpe",
        "block0.q.W",
        "block0.ffn.lin1.W",
        "ln_f.g",
    ),
    fields=(
        Field("vocab_size", ("shape of wte@0", "config.vocab_size")),
        Field("context_length", ("config.max_seq_len", "shape of wpe@0")),
        Field("embedding_length", ("config.d_model",)),
        Field("block_count", ("config.n_layers",)),
        Field("feed_forward_length", ("config.d_ff",)),
        Field("attention.head_count", ("config.n_heads",)),
        activation(),
    ),
    rows=_DOTTED,
    roots=("block", "wte", "wpe", "ln_f"),
    constants={"attention.layer_norm_epsilon": np.float32(1e-5)},
    words=Words(("vocab", "config.vocab")),
    default=False,
    complete=_dotted_activation,
    build=writer(
        Style(
            "dotted",
            {pattern: pattern for pattern in by_path(_DOTTED)},
            {"d_model": "n_embd", "n_heads": "n_head", "d_ff": "n_ff", "n_layers": "n_layer", "max_seq_len": "n_ctx"},
            lambda settings, words, weights: {"config": settings, **({"vocab": words} if words else {}), **weights},
            activation="gelu_tanh",
            kind="words",
        ),
        _DOTTED,
    ),
)


LAYOUTS = (DOTTED,)
