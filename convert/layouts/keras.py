"""Recurrent language models made of Keras's layers, as Keras (`.h5`, `.keras`) and TensorFlow.js save them.

Their configuration lists the layers: an `Embedding` (or one-hot inputs), `SimpleRNN`, `GRU` or `LSTM` layers, and a
`Dense` one over the vocabulary; what only matters in training (`Dropout`) is passed over.  Matrices lie [in][out],
gates side by side: an LSTM's in, forget, cell, out; a GRU's update, reset, new.  Sources: keras-team/keras
src/layers/rnn/{gru,lstm,simple_rnn}.py, tensorflow/tfjs tfjs-layers/src/layers/recurrent.ts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.errors import cut, shown
from llmconv.formats.checkpoint import Checkpoint

__all__ = ["Model", "Move", "described"]

_CELLS = {"SimpleRNN": "rnn", "GRU": "gru", "LSTM": "lstm"}
_NOTHING = frozenset(
    {"InputLayer", "Dropout", "SpatialDropout1D", "GaussianNoise", "GaussianDropout", "AlphaDropout", "Masking"}
    | {"ActivityRegularization"}
)
"""Layers that compute nothing when a model is used."""
_NO_HEAD = ("linear", "softmax", None)
"""Activations of the last layer that leave the logits' order alone: what is kept are the numbers before them."""


@dataclass(frozen=True)
class Move:
    """A weight of Keras's and the tensors of a GGUF that it becomes.

    how: letters; "s": the first two gates change places, "t": it is turned, "p": its two rows are two vectors.
    """

    name: str
    to: tuple[str, ...]
    how: str = ""

    def apply(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        parts = list(values) if "p" in self.how else [values]
        parts = [_swapped(part) if "s" in self.how else part for part in parts]
        return [np.ascontiguousarray(part.T if "t" in self.how else part) for part in parts]

    def undo(self, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        own = [part.T if "t" in self.how else part for part in parts]
        own = [_swapped(part) if "s" in self.how else part for part in own]
        return np.ascontiguousarray(np.stack(own) if "p" in self.how else own[0])


def _swapped(values: NDArray[Any]) -> NDArray[Any]:
    """The first two of three gates, along the last axis, in each other's place."""
    first, second, third = np.split(values, 3, -1)
    return np.concatenate([second, first, third], -1)


@dataclass
class Model:
    """keys: without the architecture's prefix.   moves: a weight each.   lacks: why it can't be run, "" if it can."""

    keys: dict[str, Any] = field(default_factory=dict)
    moves: list[Move] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lacks: str = ""


class _Odd(Exception):
    """A layer that is not computed here; says what."""


@dataclass(frozen=True)
class _Layer:
    """A layer's class, its configuration, and its weights: what Keras calls them -> their names in the file."""

    kind: str
    config: Mapping[str, Any]
    weights: Mapping[str, str]

    @property
    def name(self) -> str:
        return f"its layer {cut(self.config.get('name', self.kind))} ({self.kind})"

    def weight(self, name: str) -> str:
        if name not in self.weights:
            raise _Odd(f"{self.name} has no {name} in the file")
        return self.weights[name]


def described(checkpoint: Checkpoint) -> Model | None:
    """The language model that a file's layers make; None for any other (a classifier, say)."""
    try:
        layers = _layers(checkpoint)
        return _model(layers, checkpoint) if layers else None
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, RecursionError):
        return None  # a configuration that is none


def _model(layers: list[_Layer], checkpoint: Checkpoint) -> Model | None:
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    body, heads = _parted(layers)
    cells = [layer for layer in body if layer.kind in _CELLS]
    if not cells or not heads or heads[0].kind != "Dense":
        return None
    vocab = int(heads[0].config["units"])
    first = body[0]
    embedded = first.kind == "Embedding"
    given = int(first.config["input_dim"]) if embedded else shapes.get(first.weights.get("kernel", ""), (0,))[0]
    if given != vocab:
        return None
    model = Model()
    try:
        if embedded:
            model.moves.append(Move(first.weight("embeddings"), ("token_embd.weight",)))
        _fill(model, body[1:] if embedded else body, heads, _hard_sigmoid(checkpoint))
        _check(model, shapes)
    except _Odd as error:
        return Model(lacks=str(error))
    dim, width = int(cells[-1].config["units"]), shapes[model.moves[0].name][1]
    sizes = {"vocab_size": vocab, "embedding_length": dim, "block_count": len(cells), "feed_forward_length": width}
    model.keys |= {key: np.uint32(size) for key, size in sizes.items()}
    if embedded and first.config.get("mask_zero"):
        model.notes.append("token 0 is padding there, which leaves the state as it is; here it is a token as any other")
    return model


def _parted(layers: list[_Layer]) -> tuple[list[_Layer], list[_Layer]]:
    """The layers up to the last recurrent one, and those behind it."""
    last = max((k for k, layer in enumerate(layers) if layer.kind in _CELLS), default=-1)
    return layers[: last + 1], layers[last + 1 :]


def _fill(model: Model, cells: list[_Layer], heads: list[_Layer], hard: str) -> None:
    """The moves and keys of the recurrent layers and of the head."""
    for i, layer in enumerate(cells):
        if layer.kind not in _CELLS:
            raise _Odd(f"{layer.name} is not computed here between recurrent ones")
        keys = _settings(layer, hard)
        if i and keys != {k: v for k, v in model.keys.items() if k in keys}:
            raise _Odd(f"{layer.name} is of another kind than the first")
        model.keys |= keys
        model.moves += _cell(layer, i, one_hot=not model.moves)
    head, *rest = heads
    if head.config.get("activation") not in _NO_HEAD:
        raise _Odd(f"{head.name} has the activation {cut(head.config['activation'])}")
    for layer in rest:
        if layer.kind != "Softmax" and not (layer.kind == "Activation" and layer.config.get("activation") in _NO_HEAD):
            raise _Odd(f"{layer.name} stands behind the layer over the vocabulary")
    model.moves.append(Move(head.weight("kernel"), ("output.weight",), "t"))
    if head.config.get("use_bias", True):
        model.moves.append(Move(head.weight("bias"), ("output.bias",)))


def _settings(layer: _Layer, hard: str) -> dict[str, Any]:
    """A recurrent layer's cell and activations, as keys."""
    config, cell = layer.config, _CELLS[layer.kind]
    if config.get("go_backwards"):
        raise _Odd(f"{layer.name} reads a text from its end")
    activation = config.get("activation", "tanh")
    if activation not in ("tanh", "relu"):
        raise _Odd(f"{layer.name} has the activation {cut(activation)}, expected tanh or relu")
    keys: dict[str, Any] = {"recurrent.cell": cell, "recurrent.activation": activation}
    if cell != "rnn":
        gates = config.get("recurrent_activation", "sigmoid")
        known = {"sigmoid": "sigmoid", "hard_sigmoid": hard, "hardSigmoid": hard}
        if gates not in known:
            raise _Odd(f"{layer.name} has gates of {cut(gates)}, expected sigmoid or hard_sigmoid")
        keys["recurrent.gates"] = known[gates]
    if cell == "gru":
        keys["recurrent.reset_after"] = bool(config.get("reset_after", False))
    return keys


def _cell(layer: _Layer, i: int, one_hot: bool) -> Iterator[Move]:
    swap = "s" if layer.kind == "GRU" else ""
    kernel = layer.weight("kernel")
    yield (
        Move(kernel, ("token_embd.weight",), swap) if one_hot else Move(kernel, (f"blk.{i}.rnn_x.weight",), swap + "t")
    )
    yield Move(layer.weight("recurrent_kernel"), (f"blk.{i}.rnn_h.weight",), swap + "t")
    if layer.config.get("use_bias", True):
        pair = layer.kind == "GRU" and bool(layer.config.get("reset_after", False))
        to = (f"blk.{i}.rnn_x.bias", f"blk.{i}.rnn_h.bias") if pair else (f"blk.{i}.rnn_h.bias",)
        yield Move(layer.weight("bias"), to, swap + "p" if pair else swap)


def _check(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for move in model.moves:
        wanted = 2 if move.to[0].endswith(".weight") or "p" in move.how else 1
        shape = shapes[move.name]
        if len(shape) != wanted or ("p" in move.how and shape[0] != 2) or ("s" in move.how and shape[-1] % 3):
            raise _Odd(f"{cut(move.name)} has shape {shown(shape)}, which its layer does not have")


# Reading the configuration


def _texts(checkpoint: Checkpoint) -> Iterator[Any]:
    """The configurations that a file may hold, parsed."""
    for key in ("keras.model_config", "keras.config.json"):
        if key in checkpoint.metadata:
            yield json.loads(checkpoint.metadata[key])
    if "model.json" in checkpoint.files:
        found = json.loads(checkpoint.file("model.json") or b"{}")
        topology = found.get("modelTopology") or {}
        yield topology.get("model_config", topology)


def _hard_sigmoid(checkpoint: Checkpoint) -> str:
    """What a hard sigmoid is: Keras 3 has another slope than Keras 2 and TensorFlow.js."""
    stated = checkpoint.metadata.get("keras.keras_version", checkpoint.metadata.get("keras.metadata.json", ""))
    return "hard_sigmoid_6" if re.search(r'(^|keras_version": ")3\.', str(stated)) else "hard_sigmoid"


def _layers(checkpoint: Checkpoint) -> list[_Layer]:
    """The layers in the order in which they compute, without those that compute nothing."""
    for stated in _texts(checkpoint):
        config = stated["config"]
        listed = config if isinstance(config, list) else config["layers"]
        if stated["class_name"] not in ("Sequential",):
            listed = _chain(listed)
        names, counts = list(checkpoint.tensors), dict[str, int]()
        made = [_layer(entry, names, counts) for entry in listed]
        return [layer for layer in made if layer.kind not in _NOTHING]
    return []


def _chain(listed: list[Any]) -> list[Any]:
    """The layers of a functional model, each of which takes what the one before it gives; ValueError else."""
    after: dict[str, Any] = {}
    start: Any = None
    for entry in listed:
        sources = set(_sources(entry.get("inbound_nodes") or []))
        if len(sources) > 1 or any(source in after for source in sources):
            raise ValueError("is no chain")
        if sources:
            after[sources.pop()] = entry
        elif start is None:
            start = entry
        else:
            raise ValueError("has two inputs")
    out: list[Any] = [start]
    while (following := after.pop(out[-1]["config"]["name"], None)) is not None:
        out.append(following)
    return out


def _sources(node: Any) -> Iterator[str]:
    """The names of the layers that a node takes from, in the spelling of Keras 2 and 3."""
    if isinstance(node, dict):
        if "keras_history" in node:
            yield node["keras_history"][0]
        else:
            for child in node.values():
                yield from _sources(child)
    elif isinstance(node, list):
        if len(node) >= 3 and isinstance(node[0], str) and all(type(n) is int for n in node[1:3]):
            yield node[0]
        else:
            for child in node:
                yield from _sources(child)


_VARS = {
    "Embedding": ("embeddings",),
    "Dense": ("kernel", "bias"),
    **dict.fromkeys(_CELLS, ("kernel", "recurrent_kernel", "bias")),
}
"""What Keras 3's numbered weights are."""


def _layer(entry: Mapping[str, Any], names: Sequence[str], counts: dict[str, int]) -> _Layer:
    """A layer with its weights; counts: how many of a class there were (Keras 3 numbers its layers so)."""
    kind, config = entry["class_name"], entry["config"]
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind).lower()
    number = counts[snake] = counts.get(snake, -1) + 1
    name = config["name"]
    inner = config["layer"] if kind == "TimeDistributed" else None
    kind = inner["class_name"] if inner else kind
    own = f"{snake}_{number}" if number else snake
    numbered = re.compile(rf"(?:layers|_layer_checkpoint_dependencies)/{own}/(?:cell/|layer/)?vars/(\d+)")
    weights: dict[str, str] = {}
    for path in names:
        if (found := numbered.fullmatch(path)) is not None:
            known = _VARS.get(kind, ())
            if int(found[1]) < len(known):
                weights[known[int(found[1])]] = path
        elif path.startswith(f"{name}/"):
            weights[path.rpartition("/")[2].partition(":")[0]] = path
    return _Layer(kind, {**inner["config"], "name": name} if inner else config, weights)
