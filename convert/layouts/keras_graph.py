"""A Keras model as a graph: which layer takes what from which, in the spellings of Keras 2, Keras 3 and TensorFlow.js.

Layers that only matter in training are passed over, models among the layers are taken apart into theirs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmconv.convert.layouts.moves import Odd
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.foreign.keras.keras_layers import MODELS, Layer, Names

__all__ = ["Graph", "Node", "graph", "topologies", "weight"]

_NOTHING = frozenset(
    {"InputLayer", "Dropout", "SpatialDropout1D", "GaussianNoise", "GaussianDropout", "AlphaDropout", "Masking"}
    | {"ActivityRegularization", "Identity"}
)
"""Layers that compute nothing when a model is used."""
_Ends = tuple[list[int], list[int]]
"""The places of a model's inputs and outputs."""
_MOST = 4_000
"""Calls of layers in a model."""


@dataclass(frozen=True)
class Node:
    """A call of a layer.   inputs: the nodes that it takes from.   call: arguments that are no tensors.

    numbers: constants among its arguments; NaN stands for an array.
    """

    layer: Layer
    inputs: tuple[int, ...]
    call: Mapping[str, Any] = field(default_factory=dict)
    numbers: tuple[float, ...] = ()

    @property
    def kind(self) -> str:
        return self.layer.kind


class Graph:
    """nodes: calls, each behind those that it takes from.   output: the last one."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.output = -1

    def add(self, node: Node) -> int:
        """Its place; that of what it takes from where it computes nothing."""
        if len(self.nodes) >= _MOST:
            raise ValueError("has too many layers")
        linear = node.kind == "Activation" and node.layer.config.get("activation") == "linear"
        if (node.kind in _NOTHING or linear) and len(node.inputs) == 1:
            return node.inputs[0]
        self.nodes.append(node)
        return len(self.nodes) - 1

    def users(self, place: int) -> list[int]:
        """The nodes that take from one."""
        return [k for k, node in enumerate(self.nodes) if place in node.inputs]

    def chain(self) -> list[Layer]:
        """Its layers where each takes what the one before it gives; none for any other graph."""
        if any(node.inputs != ((k - 1,) if k else ()) for k, node in enumerate(self.nodes)):
            return []
        if self.output != len(self.nodes) - 1:
            return []
        return [node.layer for node in self.nodes if node.kind != "InputLayer"]


def weight(layer: Layer, leaf: str, part: str = "") -> str:
    """The file's name of a layer's weight (see `Layer.weight`); `Odd` where there is none."""
    name = layer.weight(leaf, part)
    if name is None:
        words = re.findall(r"[a-z]+", re.sub(r"\(\?:[^)]*\)", "", part))
        within = f" of its {' '.join(words)}" if words else ""
        raise Odd(f"{layer.said} has no {leaf}{within} in the file")
    return name


def topologies(checkpoint: Checkpoint) -> Iterator[Any]:
    """The configurations that a file may hold, parsed."""
    for key in ("keras.model_config", "keras.config.json"):
        if key in checkpoint.metadata:
            yield json.loads(checkpoint.metadata[key])
    if "model.json" in checkpoint.files:
        found = json.loads(checkpoint.file("model.json") or b"{}")
        topology = found.get("modelTopology") or {}
        yield topology.get("model_config", topology)


def graph(checkpoint: Checkpoint) -> Graph | None:
    """The graph of a file's model; None where the file describes none.

    KeyError, TypeError, ... for a configuration that is none.
    """
    for stated in topologies(checkpoint):
        made = Graph()
        _, outputs = _model(made, stated, Names(checkpoint.tensors), None)
        if len(outputs) == 1:
            made.output = outputs[0]
            return made
    return None


def _model(made: Graph, stated: Mapping[str, Any], names: Names, given: list[int] | None) -> _Ends:
    """Add the layers of a model; the places of its inputs and outputs.   given: what an outer model puts in."""
    config = stated["config"]
    listed = config if isinstance(config, list) else config["layers"]
    if stated["class_name"] == "Sequential":
        return _sequence(made, listed, names, given)
    return _functional(made, config, names, given)


def _sequence(made: Graph, listed: list[Any], names: Names, given: list[int] | None) -> _Ends:
    inputs = given
    for entry in listed:
        if entry["class_name"] == "InputLayer" and inputs is not None:
            names.layer(entry)
            continue
        if inputs is None and entry["class_name"] != "InputLayer":
            inputs = [made.add(Node(Layer("InputLayer", "", {}, {}), ()))]
        inputs = [_called(made, entry, names, inputs or [], {}, ())]
    return given or [], inputs or []


def _called(
    made: Graph, entry: Any, names: Names, inputs: list[int], call: Mapping[str, Any], numbers: tuple[float, ...]
) -> int:
    """A call of a layer, or of a model among the layers."""
    if entry["class_name"] in MODELS:
        _, outputs = _model(made, entry, names.inside(entry), inputs)
        if len(outputs) != 1:
            raise ValueError("has a model of several outputs among its layers")
        return outputs[0]
    return made.add(Node(names.layer(entry), tuple(inputs), call, numbers))


@dataclass
class _Call:
    """What stands in a node: (layer, number of its call) of each tensor, settings, constants."""

    sources: list[tuple[str, int]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    numbers: list[float] = field(default_factory=list)


def _functional(made: Graph, config: Mapping[str, Any], names: Names, given: list[int] | None) -> _Ends:
    entries = {str(entry.get("name") or entry["config"]["name"]): entry for entry in config["layers"]}
    layers = {  # in the order of the list, by which Keras 3 numbers them
        name: entry if entry["class_name"] in MODELS else names.layer(entry) for name, entry in entries.items()
    }
    inner = {name: names.inside(entry) for name, entry in entries.items() if entry["class_name"] in MODELS}
    calls = {(name, k): node for name, entry in entries.items() for k, node in enumerate(_calls(entry))}
    starts = [name for name, _ in _ends(config.get("input_layers")) if name in entries]
    starts = starts or [name for name, entry in entries.items() if entry["class_name"] == "InputLayer"]
    places: dict[tuple[str, int], int] = {}
    for k, name in enumerate(starts):
        node = Node(layers[name], ())
        places[name, 0] = made.add(node) if given is None else given[k]
    for name, k in _in_order(calls, set(places)):
        call = calls[name, k]
        inputs = [places[source] for source in call.sources]
        if name in inner:
            _, outputs = _model(made, entries[name], inner[name], inputs)
            places[name, k] = outputs[0]
        else:
            places[name, k] = made.add(Node(layers[name], tuple(inputs), call.settings, tuple(call.numbers)))
    outputs = [places[end] for end in _ends(config.get("output_layers"))]
    if not outputs:
        taken = {source for call in calls.values() for source in call.sources}
        outputs = [place for key, place in places.items() if key not in taken]
    return [places[name, 0] for name in starts], outputs


def _in_order(calls: Mapping[tuple[str, int], _Call], there: set[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """The calls, each behind those that it takes from; `ValueError` where some wait for each other."""
    waits = {key: set(call.sources) - there for key, call in calls.items() if key not in there}
    behind: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for key, sources in waits.items():
        for source in sources:
            behind.setdefault(source, []).append(key)
    ready = [key for key, sources in waits.items() if not sources]
    for key in ready:
        yield key
        for after in behind.get(key, ()):
            waits[after].discard(key)
            if not waits[after]:
                ready.append(after)
    if len(ready) < len(waits):
        raise ValueError("has layers that wait for each other")


def _ends(listed: Any) -> list[tuple[str, int]]:
    """The inputs or outputs of a model: [[name, call, 0], ...], or one alone."""
    if not isinstance(listed, list) or not listed:
        return []
    return [(str(end[0]), int(end[1])) for end in ([listed] if isinstance(listed[0], str) else listed)]


def _calls(entry: Mapping[str, Any]) -> Iterator[_Call]:
    for node in entry.get("inbound_nodes") or []:
        call = _Call()
        if isinstance(node, dict):
            _gather(node.get("args") or [], call)
            for key, value in (node.get("kwargs") or {}).items():
                _argument(key, value, call)
        else:
            for source in [node] if isinstance(node[0], str) else node:
                call.sources.append((str(source[0]), int(source[1])))
                for key, value in (source[3] if len(source) > 3 else {}).items():
                    _argument(key, value, call)
        if call.sources:
            yield call


def _argument(key: str, value: Any, call: _Call) -> None:
    """An argument with a name."""
    before = len(call.sources)
    if isinstance(value, dict | list):
        _gather(value, call)
    if len(call.sources) > before:
        if "mask" in key:
            call.settings[key] = True
    elif value is not None:
        call.settings[key] = value
        if type(value) in (int, float):
            call.numbers.append(float(value))


def _gather(node: Any, call: _Call) -> None:
    """The tensors and numbers of arguments without names, in their order."""
    if isinstance(node, dict):
        if "keras_history" in (config := node.get("config") or {}):
            call.sources.append((str(config["keras_history"][0]), int(config["keras_history"][1])))
        elif node.get("class_name") in ("__tensor__", "__numpy__"):
            call.numbers.append(math.nan)
        else:
            for child in node.values():
                _gather(child, call)
    elif isinstance(node, list):
        if len(node) >= 3 and isinstance(node[0], str) and all(type(n) is int for n in node[1:3]):
            call.sources.append((node[0], node[1]))
        else:
            for child in node:
                _gather(child, call)
    elif type(node) in (int, float):
        call.numbers.append(float(node))
