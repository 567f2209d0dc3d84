"""Other small savers in the wild: one table each, named by what they call themselves or by how they look."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmconv.convert.archs.small.desde_cero import CONSTANTS as DESDE_CERO_CONSTANTS
from llmconv.convert.layouts.base import Field, Layout, Words, row
from llmconv.convert.layouts.settings import activation, guess, vocabulary
from llmconv.convert.layouts.written import Style, by_path, writer
from llmconv.convert.tables.ops import Concat, Dims, Reshape, Transpose
from llmconv.errors import BadFile, Unsupported
from llmconv.formats.documents.document import Slot
from llmconv.formats.tensor import Tensor

_BLOCK = "blk.{i}."


# microgpt (see `archs.small.microgpt`) in JavaScript: config{nLayer, nEmbd, ...}, one flat array of all weights.

_at = "weights.layer{i}."
_MICROGPT = (
    row("token_embd.weight", "weights.wte", "n_vocab, n_embd"),
    row("position_embd.weight", "weights.wpe", "n_ctx, n_embd"),
    row("output.weight", "weights.lm_head", "n_vocab, n_embd"),
    *(row(f"{_BLOCK}attn_{x}.weight", f"{_at}attn_w{x}", "n_embd, n_embd") for x in "qkv"),
    row(f"{_BLOCK}attn_output.weight", f"{_at}attn_wo", "n_embd, n_embd"),
    row(f"{_BLOCK}ffn_up.weight", f"{_at}mlp_fc1", "n_ff, n_embd"),
    row(f"{_BLOCK}ffn_down.weight", f"{_at}mlp_fc2", "n_embd, n_ff"),
)

_ORDER = ("wte", "wpe", "lm_head")
_LAYER_ORDER = ("attn_wq", "attn_wk", "attn_wv", "attn_wo", "mlp_fc1", "mlp_fc2")
_FLAT = ("weights", "params", "parameters", "data", "state")


def _flat_name(tensors: Mapping[str, Tensor]) -> str:
    for name in _FLAT:
        if name in tensors and len(tensors[name].shape) == 1:
            return name
    raise BadFile(f"no flat array of weights called {', '.join(_FLAT)}; the layout flat needs one")


def _flat_order(document: Any, dims: Dims) -> list[str]:
    """The names of the weights in the order in which they follow each other: the document's, or microgpt's."""
    stated = document.get("order") if isinstance(document, dict) else None
    if isinstance(stated, list) and all(isinstance(n, str) for n in stated):
        return stated
    return [*_ORDER, *(f"layer{i}.{n}" for i in range(dims["n_layer"]) for n in _LAYER_ORDER)]


def _flat_shapes(dims: Dims) -> dict[str, tuple[int, ...]]:
    out = {}
    for slot in FLAT.slots(dims):
        for path, shape in zip(slot.names(), slot.shapes, strict=True):
            out[path.removeprefix("weights.")] = shape
    return out


def _unpack(document: Any, tensors: Mapping[str, Tensor], dims: Dims) -> dict[str, Tensor]:
    name = _flat_name(tensors)
    values = tensors[name].numpy()
    if dims["n_layer"] > values.size:
        raise BadFile(f"config.nLayer is {dims['n_layer']}, more than {name} has numbers")
    shapes, out, start = _flat_shapes(dims), {k: t for k, t in tensors.items() if k != name}, 0
    for part in _flat_order(document, dims):
        if part not in shapes:
            raise BadFile(f"order names {part!r}, which is no weight of this model; known: {', '.join(shapes)}")
        size = int(np.prod(shapes[part]))
        piece = values[start : start + size]
        if piece.size != size:
            raise BadFile(f"{name} has {values.size} numbers, too few for {part} at {start} by the configuration")
        out[f"weights.{part}"] = Tensor.from_array(f"weights.{part}", piece.reshape(shapes[part]))
        start += size
    if start != values.size:
        raise BadFile(f"{name} has {values.size} numbers, expected {start} by the configuration")
    return out


def _pack(document: Any, tensors: Mapping[str, Tensor], dims: Dims) -> dict[str, Tensor]:
    parts = [tensors[f"weights.{n}"].numpy().astype(np.float64).reshape(-1) for n in _flat_order(document, dims)]
    name = next(n for n in _FLAT if isinstance(document, dict) and n in document)
    return {name: Tensor.from_array(name, np.concatenate(parts))}


def _default_widths(own: dict[str, Any], dims: Dims) -> None:
    """microgpt's feed-forward is four times as wide as its embedding."""
    own.setdefault("feed_forward_length", np.uint32(4 * dims["n_embd"]))
    own.setdefault("hidden_activation", "relu")


def _flat_document(metadata: Mapping[str, Any], dims: Dims, tensors: Mapping[str, Tensor]) -> Any:
    if metadata.get("microgpt.position_embedding", "learned") != "learned" or "blk.0.ffn_gate.weight" in tensors:
        raise Unsupported("a microgpt with rotary positions or gates can't be written in the layout flat; use microgpt")
    full = {**dims, "n_vocab": dims["n_vocab"] or tensors["token_embd.weight"].shape[0]}
    sizes = {"nLayer": "n_layer", "nEmbd": "n_embd", "blockSize": "n_ctx", "nHead": "n_head", "headDim": "head_dim"}
    config = {**{theirs: full[dim] for theirs, dim in sizes.items()}, "vocabSize": full["n_vocab"], "nFf": full["n_ff"]}
    count = sum(int(np.prod(shape)) for shape in _flat_shapes(full).values())
    words = {"vocab": list(metadata["tokenizer.ggml.tokens"])} if "tokenizer.ggml.tokens" in metadata else {}
    activation = metadata.get("microgpt.hidden_activation", "relu")
    stated = {} if activation == "relu" else {"activation": activation}
    return {"config": config | stated, **words, "weights": Slot("weights", (count,))}


FLAT = Layout(
    "flat",
    "config{nLayer, nEmbd, ...} and one flat array of all weights, [out][in]",
    "microgpt",
    marks=("config.nLayer", "config.nEmbd", "config.blockSize", "config.nHead", "config.vocabSize"),
    fields=(
        Field("vocab_size", ("config.vocabSize",)),
        Field("context_length", ("config.blockSize",)),
        Field("embedding_length", ("config.nEmbd",)),
        Field("block_count", ("config.nLayer",)),
        Field("feed_forward_length", ("config.nFf", "config.dFf", "config.mlpDim"), optional=True),
        Field("attention.head_count", ("config.nHead",)),
        Field("attention.key_length", ("config.headDim",), optional=True),
        activation(),
    ),
    rows=_MICROGPT,
    roots=(),
    constants={
        "attention.causal": True,
        "attention.layer_norm_rms_epsilon": np.float32(1e-5),
        "position_embedding": "learned",
    },
    words=Words(
        ("vocab", "config.vocab", "chars", "uchars", "tokenizer.vocab"),
        unk=None,
        lowercase=False,
        extra=("[BOS]",),
        starts=("[BOS]", "<BOS>", "<bos>", "BOS"),
        separator="",
    ),
    build=_flat_document,
    default=False,
    finish=_default_widths,
    unpack=_unpack,
    pack=_pack,
)


# transformer_desde_cero: one post-norm block, [in][out].

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


# forge: state dict of one block, name -> {shape, dtype, data}, [out][in], biases as rows.


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


# {meta, weights: {projection, blocks, embedding}}: pre-norm, causal; configuration and vocabulary in a second file.


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


def _dotted_activation(own: dict[str, Any], tensors: Mapping[str, Tensor], paths: Sequence[str]) -> list[str]:
    return [] if "hidden_activation" in own else [_GUESS]


# Flat dotted keys in GPT-2's vocabulary of names, [in][out], tied head: GPT-2 itself.

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


LAYOUTS = (DESDE_CERO, FORGE, BLOCKS, DOTTED)
LAST = (FLAT,)
"""Known by settings alone, which documents with weights by name have too."""
