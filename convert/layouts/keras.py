"""Recurrent language models made of Keras's layers, as Keras (`.h5`, `.keras`) and TensorFlow.js save them.

Their configuration lists the layers: an `Embedding` (or one-hot inputs), `SimpleRNN`, `GRU` or `LSTM` layers, and a
`Dense` one over the vocabulary; what only matters in training (`Dropout`) is passed over.  Matrices lie [in][out],
gates side by side: an LSTM's in, forget, cell, out; a GRU's update, reset, new.  Sources: keras-team/keras
src/layers/rnn/{gru,lstm,simple_rnn}.py, tensorflow/tfjs tfjs-layers/src/layers/recurrent.ts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from llmconv.convert.decoders.recurrent import SIZES
from llmconv.convert.layouts import keras_gpt
from llmconv.convert.layouts.keras_graph import graph, weight
from llmconv.convert.layouts.moves import Model, Move, Odd
from llmconv.errors import cut, shown
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.foreign.keras.keras_layers import Layer

__all__ = ["described"]

_CELLS = {"SimpleRNN": "rnn", "GRU": "gru", "LSTM": "lstm"}
_NO_HEAD = ("linear", "softmax", None)
"""Activations of the last layer that leave the logits' order alone: what is kept are the numbers before them."""


def described(checkpoint: Checkpoint) -> Model | None:
    """The language model that a file's layers make; None for any other (a classifier, say)."""
    try:
        found = graph(checkpoint)
        if found is None:
            return None
        return _model(found.chain(), checkpoint) or keras_gpt.described(found, checkpoint)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, RecursionError):
        return None  # a configuration that is none


def _model(layers: list[Layer], checkpoint: Checkpoint) -> Model | None:
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    body, heads = _parted(layers)
    cells = [layer for layer in body if layer.kind in _CELLS]
    if not cells or not heads or heads[0].kind != "Dense":
        return None
    vocab = int(heads[0].config["units"])
    first = body[0]
    embedded = first.kind == "Embedding"
    given = int(first.config["input_dim"]) if embedded else shapes.get(first.weight("kernel") or "", (0,))[0]
    if given != vocab:
        return None
    model = Model()
    try:
        if embedded:
            model.moves.append(Move(weight(first, "embeddings"), ("token_embd.weight",)))
        _fill(model, body[1:] if embedded else body, heads, _hard_sigmoid(checkpoint))
        _check(model, shapes)
    except Odd as error:
        return Model(lacks=str(error))
    dim, width = int(cells[-1].config["units"]), shapes[model.moves[0].names[0]][1]
    sizes = {"vocab_size": vocab, "embedding_length": dim, "block_count": len(cells), "feed_forward_length": width}
    model.keys |= {key: np.uint32(size) for key, size in sizes.items()}
    if len({cell.config["units"] for cell in cells}) > 1:
        model.keys[SIZES] = np.array([cell.config["units"] for cell in cells], np.uint32)
    if embedded and first.config.get("mask_zero"):
        model.notes.append("token 0 is padding there, which leaves the state as it is; here it is a token as any other")
    return model


def _parted(layers: list[Layer]) -> tuple[list[Layer], list[Layer]]:
    """The layers up to the last recurrent one, and those behind it."""
    last = max((k for k, layer in enumerate(layers) if layer.kind in _CELLS), default=-1)
    return layers[: last + 1], layers[last + 1 :]


def _fill(model: Model, cells: list[Layer], heads: list[Layer], hard: str) -> None:
    """The moves and keys of the recurrent layers and of the head."""
    for i, layer in enumerate(cells):
        if layer.kind not in _CELLS:
            raise Odd(f"{layer.said} is not computed here between recurrent ones")
        keys = _settings(layer, hard)
        if i and keys != {k: v for k, v in model.keys.items() if k in keys}:
            raise Odd(f"{layer.said} is of another kind than the first")
        model.keys |= keys
        model.moves += _cell(layer, i, one_hot=not model.moves)
    head, *rest = heads
    if head.config.get("activation") not in _NO_HEAD:
        raise Odd(f"{head.said} has the activation {cut(head.config['activation'])}")
    for layer in rest:
        if layer.kind != "Softmax" and not (layer.kind == "Activation" and layer.config.get("activation") in _NO_HEAD):
            raise Odd(f"{layer.said} stands behind the layer over the vocabulary")
    model.moves.append(Move(weight(head, "kernel"), ("output.weight",), "t"))
    if head.config.get("use_bias", True):
        model.moves.append(Move(weight(head, "bias"), ("output.bias",)))


def _settings(layer: Layer, hard: str) -> dict[str, Any]:
    """A recurrent layer's cell and activations, as keys."""
    config, cell = layer.config, _CELLS[layer.kind]
    if config.get("go_backwards"):
        raise Odd(f"{layer.said} reads a text from its end")
    activation = config.get("activation", "tanh")
    if activation not in ("tanh", "relu"):
        raise Odd(f"{layer.said} has the activation {cut(activation)}, expected tanh or relu")
    keys: dict[str, Any] = {"recurrent.cell": cell, "recurrent.activation": activation}
    if cell != "rnn":
        gates = config.get("recurrent_activation", "sigmoid")
        known = {"sigmoid": "sigmoid", "hard_sigmoid": hard, "hardSigmoid": hard}
        if gates not in known:
            raise Odd(f"{layer.said} has gates of {cut(gates)}, expected sigmoid or hard_sigmoid")
        keys["recurrent.gates"] = known[gates]
    if cell == "gru":
        keys["recurrent.reset_after"] = bool(config.get("reset_after", False))
    return keys


def _cell(layer: Layer, i: int, one_hot: bool) -> Iterator[Move]:
    swap = "s" if layer.kind == "GRU" else ""
    kernel = weight(layer, "kernel")
    yield (
        Move(kernel, ("token_embd.weight",), swap) if one_hot else Move(kernel, (f"blk.{i}.rnn_x.weight",), swap + "t")
    )
    yield Move(weight(layer, "recurrent_kernel"), (f"blk.{i}.rnn_h.weight",), swap + "t")
    if layer.config.get("use_bias", True):
        pair = layer.kind == "GRU" and bool(layer.config.get("reset_after", False))
        to = (f"blk.{i}.rnn_x.bias", f"blk.{i}.rnn_h.bias") if pair else (f"blk.{i}.rnn_h.bias",)
        yield Move(weight(layer, "bias"), to, swap + "p" if pair else swap)


def _check(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for move in model.moves:
        wanted = 2 if move.to[0].endswith(".weight") or "p" in move.how else 1
        shape = shapes[move.names[0]]
        if len(shape) != wanted or ("p" in move.how and shape[0] != 2) or ("s" in move.how and shape[-1] % 3):
            raise Odd(f"{cut(move.names[0])} has shape {shown(shape)}, which its layer does not have")


def _hard_sigmoid(checkpoint: Checkpoint) -> str:
    """What a hard sigmoid is: Keras 3 has another slope than Keras 2 and TensorFlow.js."""
    stated = checkpoint.metadata.get("keras.keras_version", checkpoint.metadata.get("keras.metadata.json", ""))
    return "hard_sigmoid_6" if re.search(r'(^|keras_version": ")3\.', str(stated)) else "hard_sigmoid"
