"""simple-llm: word-level models of a small TypeScript project, versions "1.0" and "2.0" of its files.

What the program computes: text lower-cased, split at spaces, trimmed, unknown words to [UNK]; embedding plus
interleaved sinusoidal positions (not stored); per layer full attention (no mask) scaled by the square root of a head's
size, residual, LayerNorm, a ReLU block without biases, residual, LayerNorm; an untied output with a bias.  Post-norm
models are what GGUF's BERT is, so the tensors have its names.  Matrices are [in][out] in the document.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmconv.convert.archs.small.simple_llm import CONSTANTS, scale
from llmconv.convert.layouts.base import Field, Layout, Words, row
from llmconv.convert.tables.ops import Dims, Reshape, Transpose
from llmconv.formats.documents.document import Slot

_at = "weights.transformers[{i}]."
_HEADS = (
    Transpose(),
    Reshape(("n_head", "n_embd // n_head", "n_embd"), ("n_embd", "n_embd")),
)
"""[head][in][out of a head] -> [out][in]."""


def _attention(at: str, *ops: Any) -> Any:
    return tuple(row(f"blk.{{i}}.attn_{x}.weight", f"{at}w{x}", "n_embd, n_embd", *ops) for x in "qkv")


def _norm(gguf: str, path: str) -> Any:
    return (
        row(f"blk.{{i}}.{gguf}.weight", f"{_at}{path}.gamma", "n_embd"),
        row(f"blk.{{i}}.{gguf}.bias", f"{_at}{path}.beta", "n_embd"),
    )


def _weights(*attention: Any) -> Any:
    return (
        row("token_embd.weight", "weights.embedding", "n_vocab, n_embd"),
        row("output.weight", "weights.output.weights", "n_vocab, n_embd", Transpose()),
        row("output.bias", "weights.output.bias", "n_vocab"),
        *attention,
        *_norm("attn_output_norm", "layerNorm1"),
        row("blk.{i}.ffn_up.weight", _at + "w1", "n_ff, n_embd", Transpose()),
        row("blk.{i}.ffn_down.weight", _at + "w2", "n_embd, n_ff", Transpose()),
        *_norm("layer_output_norm", "layerNorm2"),
    )


_FIELDS = (
    Field("vocab_size", ("config.vocabSize",)),
    Field("embedding_length", ("config.embeddingDim",)),
    Field("block_count", ("config.numLayers",)),
    Field("feed_forward_length", ("shape of weights.transformers[0].w1@1",)),
    Field("attention.head_count", ("config.numHeads",), default=1),
)
_MARKS = (
    "version",
    "config.vocabSize",
    "config.embeddingDim",
    "config.numLayers",
    "config.vocab",
    "weights.embedding",
    "weights.transformers",
    "weights.transformers[0].w1",
    "weights.output.weights",
    "weights.output.bias",
)


def _check(document: Any, dims: Dims) -> str | None:
    n, heads = dims["n_embd"], dims["n_head"]
    if n % heads:
        return f"config.embeddingDim is {n}, which {heads} heads (config.numHeads) don't divide"
    layers = document["weights"]["transformers"]
    if not isinstance(layers, list) or len(layers) != dims["n_layer"]:
        found = len(layers) if isinstance(layers, list) else "no list of"
        return f"weights.transformers holds {found} layers, expected {dims['n_layer']} by config.numLayers"
    multi = "multiHeadAttention" in layers[0]
    if not multi and heads != 1:
        return f"config.numHeads is {heads}, but the layers have single-head attention"
    for i, layer in enumerate(layers):
        kind = layer.get("type") if isinstance(layer, dict) else None
        if kind is not None and kind != ("multi-head" if multi else "single-head"):
            return f"weights.transformers[{i}].type is {str(kind)[:40]!r}, which its weights contradict"
    return None


def _norms(i: int) -> dict[str, Any]:
    at = _at.replace("{i}", str(i))
    return {n: {x: f"{at}{n}.{x}" for x in ("gamma", "beta")} for n in ("layerNorm1", "layerNorm2")}


def _document(metadata: Mapping[str, Any], dims: Dims, multi: bool) -> Any:
    n, ff, heads, vocab = dims["n_embd"], dims["n_ff"], dims["n_head"], dims["n_vocab"]

    def layer(i: int) -> dict[str, Any]:
        at = _at.replace("{i}", str(i))
        norms = {k: {x: Slot(p, (n,)) for x, p in v.items()} for k, v in _norms(i).items()}
        feed = {"w1": Slot(at + "w1", (n, ff)), "w2": Slot(at + "w2", (ff, n))}
        if not multi:
            return {**{f"w{x}": Slot(f"{at}w{x}", (n, n)) for x in "qkv"}, **feed, **norms}
        inner = at + "multiHeadAttention."
        heads_ = {f"w{x}": Slot(f"{inner}w{x}", (heads, n, n // heads)) for x in "qkv"}
        return {
            "type": "multi-head",
            "multiHeadAttention": {**heads_, "wo": Slot(inner + "wo", (n, n))},
            **feed,
            **norms,
        }

    config = {"vocabSize": vocab, "embeddingDim": n, "numLayers": dims["n_layer"]}
    if multi:
        config["numHeads"] = heads
    config["vocab"] = list(metadata.get("tokenizer.ggml.tokens", ()))  # type: ignore[assignment]
    output = {"weights": Slot("weights.output.weights", (n, vocab)), "bias": Slot("weights.output.bias", (vocab,))}
    layers = [layer(i) for i in range(dims["n_layer"])]
    weights = {"embedding": Slot("weights.embedding", (vocab, n)), "transformers": layers, "output": output}
    return {"version": "2.0" if multi else "1.0", "config": config, "weights": weights}


def _finish(own: dict[str, Any], dims: Dims) -> None:
    own["attention.scale"] = scale(dims)


SINGLE = Layout(
    "simple-llm",
    "simple-llm, one attention head (versions 1.0 and 2.0)",
    "simple-llm",
    marks=(*_MARKS, "weights.transformers[0].wq"),
    fields=_FIELDS,
    rows=_weights(*_attention(_at, Transpose())),
    constants=CONSTANTS,
    words=Words(("config.vocab",)),
    finish=_finish,
    check=_check,
    build=lambda metadata, dims, _: _document(metadata, dims, multi=False),
)

MULTI = Layout(
    "simple-llm-multi-head",
    "simple-llm, several attention heads (version 2.0)",
    "simple-llm",
    marks=(*_MARKS, "config.numHeads", "weights.transformers[0].multiHeadAttention.wq"),
    fields=_FIELDS,
    rows=_weights(
        *_attention(_at + "multiHeadAttention.", *_HEADS),
        row("blk.{i}.attn_output.weight", _at + "multiHeadAttention.wo", "n_embd, n_embd", Transpose()),
    ),
    constants=CONSTANTS,
    words=Words(("config.vocab",)),
    finish=_finish,
    check=_check,
    build=lambda metadata, dims, _: _document(metadata, dims, multi=True),
)

LAYOUTS = (SINGLE, MULTI)
