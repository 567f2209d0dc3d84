"""{meta, weights: {projection, blocks, embedding}}: pre-norm, causal; configuration and vocabulary in a second file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmconv.convert.layouts.base import Field, Layout, Words, row
from llmconv.convert.layouts.settings import activation, guess
from llmconv.convert.layouts.written import Style, by_path, writer
from llmconv.convert.tables.ops import Dims, Transpose
from llmconv.formats.tensor import Tensor

_BLOCK = "blk.{i}."


def _linear(gguf: str, path: str, n_out: str, n_in: str) -> Any:
    return (
        row(gguf + ".weight", path + ".weights", f"{n_out}, {n_in}", Transpose()),
        row(gguf + ".bias", path + ".bias", n_out),
    )


def _norm(gguf: str, path: str) -> Any:
    return (row(gguf + ".weight", path + ".gamma", "n_embd"), row(gguf + ".bias", path + ".beta", "n_embd"))


_at = "weights.blocks[{i}]."


def _names(*names: str) -> tuple[str, ...]:
    """Spellings of a setting, at the top or in an object of its own."""
    return tuple(f"{start}{name}" for start in ("", "config.", "meta.", "model.") for name in names)


def _same_blocks(document: Any, dims: Dims) -> str | None:
    blocks = document["weights"]["blocks"]
    if not isinstance(blocks, list) or len(blocks) != dims["n_layer"]:
        found = len(blocks) if isinstance(blocks, list) else "no list of"
        return f"weights.blocks holds {found} blocks, expected {dims['n_layer']} by the configuration"
    if dims["n_embd"] % dims["n_head"]:
        return f"the embedding's {dims['n_embd']} dimensions are not a multiple of {dims['n_head']} heads"
    return None


_GUESS = guess("its MLP has gelu_tanh", "relu, or gelu for the exact one")


def _blocks_activation(own: dict[str, Any], tensors: Mapping[str, Tensor], paths: Sequence[str]) -> list[str]:
    if "hidden_activation" in own:
        return []
    own["hidden_activation"] = "gelu_tanh"
    return [_GUESS]


_BLOCKS = (
    row("token_embd.weight", "weights.embedding.tokenWeights", "n_vocab, n_embd"),
    row("position_embd.weight", "weights.embedding.positionWeights", "n_ctx, n_embd"),
    *_linear("output", "weights.projection", "n_vocab", "n_embd"),
    *_norm(_BLOCK + "attn_norm", _at + "norm1"),
    *(x for n in "qkv" for x in _linear(f"{_BLOCK}attn_{n}", f"{_at}attention.w{n}", "n_embd", "n_embd")),
    *_linear(_BLOCK + "attn_output", _at + "attention.wo", "n_embd", "n_embd"),
    *_norm(_BLOCK + "ffn_norm", _at + "norm2"),
    *_linear(_BLOCK + "ffn_up", _at + "feedforward.linear1", "n_ff", "n_embd"),
    *_linear(_BLOCK + "ffn_down", _at + "feedforward.linear2", "n_embd", "n_ff"),
)

BLOCKS = Layout(
    "blocks",
    "{meta, weights: {projection, blocks, embedding}}, [in][out], configuration in a second file",
    "blocks",
    marks=(
        "weights.projection.weights",
        "weights.projection.bias",
        "weights.blocks",
        "weights.blocks[0].attention.wq.weights",
        "weights.blocks[0].feedforward.linear1.weights",
        "weights.embedding.tokenWeights",
        "weights.embedding.positionWeights",
    ),
    fields=(
        Field("vocab_size", ("shape of weights.embedding.tokenWeights@0", *_names("vocabSize", "vocab_size"))),
        Field(
            "context_length",
            (
                "shape of weights.embedding.positionWeights@0",
                *_names("maxSeqLen", "contextLength", "blockSize", "maxSequenceLength", "seqLen"),
            ),
        ),
        Field(
            "embedding_length",
            (
                "shape of weights.embedding.tokenWeights@1",
                *_names("embeddingDim", "dModel", "embedDim", "nEmbd", "hiddenSize"),
            ),
        ),
        Field(
            "block_count",
            ("length of weights.blocks", *_names("numLayers", "nLayers", "nLayer", "numBlocks", "layers")),
        ),
        Field(
            "feed_forward_length",
            (
                "shape of weights.blocks[0].feedforward.linear1.weights@1",
                *_names("ffDim", "dFf", "hiddenDim", "feedForwardDim"),
            ),
        ),
        Field("attention.head_count", _names("numHeads", "nHeads", "nHead", "heads")),
        activation(),
    ),
    rows=_BLOCKS,
    constants={
        "attention.causal": True,
        "attention.layer_norm_epsilon": np.float32(1e-5),
        "position_embedding": "learned",
    },
    words=Words((*_names("vocab", "vocabulary", "tokens", "words"), "tokenizer.vocab")),
    config=("config", "vocab", "tokenizer", "meta"),
    check=_same_blocks,
    complete=_blocks_activation,
    build=writer(
        Style(
            "blocks",
            by_path(_BLOCKS),
            {
                "vocabSize": "n_vocab",
                "maxSeqLen": "n_ctx",
                "embeddingDim": "n_embd",
                "numLayers": "n_layer",
                "numHeads": "n_head",
                "ffDim": "n_ff",
            },
            lambda settings, words, found: {"config": settings, **({"vocab": words} if words else {}), **found},
            kind="words",
        ),
        _BLOCKS,
    ),
)


LAYOUTS = (BLOCKS,)
