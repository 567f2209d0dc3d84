"""microgpt (see `archs.small.microgpt`) in JavaScript: config{nLayer, nEmbd, ...}, one flat array of all weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.layouts.base import Field, Layout, Words, row
from llmconv.convert.layouts.settings import activation
from llmconv.convert.tables.ops import Dims
from llmconv.errors import BadFile, Unsupported
from llmconv.formats.documents.document import Slot
from llmconv.formats.tensor import Tensor

_BLOCK = "blk.{i}."
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


LAYOUTS = (FLAT,)
