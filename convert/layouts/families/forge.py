"""forge: state dict of one block, name -> {shape, dtype, data}, [out][in], biases as rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmconv.convert.layouts.base import Field, Layout, Words, row
from llmconv.convert.layouts.settings import vocabulary
from llmconv.convert.layouts.written import Style, by_path, writer
from llmconv.convert.tables.ops import Reshape
from llmconv.formats.documents.document import Slot
from llmconv.formats.tensor import Tensor

_BLOCK = "blk.{i}."


def _forge(gguf: str, path: str, n_out: str, n_in: str) -> Any:
    return (
        row(gguf + ".weight", path + ".weight", f"{n_out}, {n_in}"),
        row(gguf + ".bias", path + ".bias", n_out, Reshape((1, n_out), (n_out,))),
    )


def _forge_positions(own: dict[str, Any], tensors: Mapping[str, Tensor], paths: Sequence[str]) -> list[str]:
    own["position_embedding"] = "learned" if "pos_embedding" in tensors else "none"
    return []


_FORGE = (
    row("token_embd.weight", "embedding.weight", "n_vocab, n_embd"),
    row("position_embd.weight", "pos_embedding", "n_ctx, n_embd", optional=True),
    *_forge("output", "output_proj", "n_vocab", "n_embd"),
    *_forge(_BLOCK + "attn_q", "transformer.attention.query", "n_embd", "n_embd"),
    *_forge(_BLOCK + "attn_k", "transformer.attention.key", "n_embd", "n_embd"),
    *_forge(_BLOCK + "attn_v", "transformer.attention.value", "n_embd", "n_embd"),
    *_forge(_BLOCK + "ffn_up", "transformer.ff1", "n_ff", "n_embd"),
    *_forge(_BLOCK + "ffn_down", "transformer.ff2", "n_embd", "n_ff"),
)

FORGE = Layout(
    "forge",
    "forge: name -> {shape, dtype, data} of one block, [out][in]",
    "forge",
    marks=("embedding.weight", "transformer.attention.query.weight", "transformer.ff1.weight", "output_proj.weight"),
    fields=(
        Field("vocab_size", ("shape of embedding.weight@0",)),
        Field("embedding_length", ("shape of embedding.weight@1",)),
        Field("feed_forward_length", ("shape of transformer.ff1.weight@0",)),
        Field("context_length", ("shape of pos_embedding@0",), optional=True),
    ),
    rows=_FORGE,
    roots=("",),
    constants={
        "block_count": np.uint32(1),
        "attention.head_count": np.uint32(1),
        "attention.causal": False,
        "hidden_activation": "relu",
    },
    words=Words(vocabulary(), unk=None, lowercase=False, separator=""),
    complete=_forge_positions,
    build=writer(
        Style(
            "forge",
            {pattern: pattern for pattern in by_path(_FORGE)},
            {},
            lambda settings, characters, weights: weights,
            single=True,
            array=lambda name, shape: {"shape": list(shape), "dtype": "f", "data": Slot(name, (math.prod(shape),))},
        ),
        _FORGE,
    ),
)


LAYOUTS = (FORGE,)
