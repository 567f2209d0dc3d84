"""transformer_desde_cero: one post-norm block, [in][out]."""

from __future__ import annotations

import numpy as np

from llmconv.convert.archs.small.desde_cero import CONSTANTS as DESDE_CERO_CONSTANTS
from llmconv.convert.layouts.base import Field, Layout, Words, row
from llmconv.convert.layouts.written import Style, by_path, writer
from llmconv.convert.tables.ops import Transpose

_BLOCK = "blk.{i}."

_DESDE_CERO = (
    row("token_embd.weight", "weights.E", "n_vocab, n_embd"),
    row("output.weight", "weights.Wlm", "n_vocab, n_embd", Transpose()),
    row("output.bias", "weights.blm", "n_vocab"),
    *(row(f"{_BLOCK}attn_{x}.weight", f"weights.W{x.upper()}", "n_embd, n_embd", Transpose()) for x in "qkv"),
    row(_BLOCK + "attn_output.weight", "weights.WO", "n_embd, n_embd", Transpose()),
    row(_BLOCK + "attn_output_norm.weight", "weights.gamma1", "n_embd"),
    row(_BLOCK + "attn_output_norm.bias", "weights.beta1", "n_embd"),
    row(_BLOCK + "ffn_up.weight", "weights.W1", "n_ff, n_embd", Transpose()),
    row(_BLOCK + "ffn_up.bias", "weights.bias1", "n_ff"),
    row(_BLOCK + "ffn_down.weight", "weights.W2", "n_embd, n_ff", Transpose()),
    row(_BLOCK + "ffn_down.bias", "weights.bias2", "n_embd"),
    row(_BLOCK + "layer_output_norm.weight", "weights.gamma2", "n_embd"),
    row(_BLOCK + "layer_output_norm.bias", "weights.beta2", "n_embd"),
)

DESDE_CERO = Layout(
    "desde-cero",
    "transformer_desde_cero: one block, weights E, WQ ... Wlm, [in][out]",
    "transformer-desde-cero",
    marks=("weights.E", "weights.WQ", "weights.W1", "weights.Wlm", "weights.blm", "d_model", "n_heads", "vocab"),
    fields=(
        Field("vocab_size", ("shape of weights.E@0",)),
        Field("embedding_length", ("d_model",)),
        Field("feed_forward_length", ("d_ff",)),
        Field("attention.head_count", ("n_heads",)),
        Field("attention.key_length", ("d_k",)),
    ),
    rows=_DESDE_CERO,
    constants={"block_count": np.uint32(1), **DESDE_CERO_CONSTANTS},
    words=Words(("vocab",), unk="<UNK>", lowercase=False, starts=("<BOS>",)),
    build=writer(
        Style(
            "desde-cero",
            by_path(_DESDE_CERO),
            {"d_model": "n_embd", "d_ff": "n_ff", "n_heads": "n_head", "d_k": "head_dim"},
            lambda settings, words, found: {"model_type": "gpt", **found, "vocab": words or [], **settings},
            kind="words",
            single=True,
            states=False,
        ),
        _DESDE_CERO,
    ),
)


LAYOUTS = (DESDE_CERO,)
