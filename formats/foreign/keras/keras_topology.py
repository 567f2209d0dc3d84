"""A Keras file's configuration and weights as TensorFlow.js has them: a layers model.

TensorFlow.js reads what Keras 2 writes.  Keras 3's differs in how a layer says its dtype, its input's shape and what it
takes from; its numbered weights get the names that their layers give them.  Source: tensorflow/tfjs, tfjs-layers
src/models.ts, src/engine/container.ts (`loadWeights`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.foreign.keras.keras_layers import MODELS, Layer, Names

__all__ = ["layers_model"]

_LEAVES = {
    "Embedding": ("embeddings",),
    "Dense": ("kernel", "bias"),
    "LayerNormalization": ("gamma", "beta"),
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D", "EinsumDense"), ("kernel", "bias")),
    **dict.fromkeys(("SimpleRNN", "GRU", "LSTM"), ("kernel", "recurrent_kernel", "bias")),
}
"""What Keras 3's numbered weights are."""


def layers_model(checkpoint: Checkpoint) -> tuple[dict[str, Any], Checkpoint] | None:
    """(model.json without its weights, the checkpoint with TensorFlow.js's names) of what came from a Keras file.

    None for anything else, and for a model with layers whose weights have no names there.
    """
    try:
        stated = next((json.loads(checkpoint.metadata[key]) for key in _KEYS if key in checkpoint.metadata), None)
        if stated is None or stated["class_name"] not in MODELS:
            return None
        names = dict(_named(stated, Names(checkpoint.tensors)))
        topology = {"keras_version": "2.15.0", "backend": "tensorflow", "model_config": _older(stated)}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    if set(names) != set(checkpoint.tensors) or len(set(names.values())) != len(names):
        return None
    tensors = {names[name]: tensor.renamed(names[name]) for name, tensor in checkpoint.tensors.items()}
    model = {"format": "layers-model", "generatedBy": "keras", "convertedBy": "llmconv", "modelTopology": topology}
    metadata = {key: value for key, value in checkpoint.metadata.items() if not key.startswith("keras.")}
    return model, checkpoint.but(tensors=tensors, metadata=metadata)


_KEYS = ("keras.model_config", "keras.config.json")


def _named(stated: Mapping[str, Any], names: Names) -> Iterator[tuple[str, str]]:
    """(name in the file, name for TensorFlow.js) of every weight."""
    config = stated["config"]
    for entry in config if isinstance(config, list) else config["layers"]:
        if entry["class_name"] in MODELS:
            yield from _named(entry, names.inside(entry))
        else:
            yield from _of_layer(names.layer(entry))


def _of_layer(layer: Layer) -> Iterator[tuple[str, str]]:
    leaves = _LEAVES.get(layer.kind, ())
    for path, full in layer.weights.items():
        parts = path.split("/")
        while layer.name in parts:  # Keras 3's `.h5` has the model's name before it
            parts = parts[parts.index(layer.name) + 1 :]
        leaf = parts[-1]
        if leaf.isdigit():
            if len(parts) > 3 or int(leaf) >= len(leaves):
                return
            leaf = leaves[int(leaf)]
        elif layer.kind not in _LEAVES:  # of a layer within: its own name stays
            leaf = "/".join(parts)
        yield full, f"{layer.name}/{leaf}"


def _older(node: Any) -> Any:
    """A configuration as Keras 2 writes it."""
    if isinstance(node, list):
        return [_older(child) for child in node]
    if not isinstance(node, dict):
        return node
    if node.get("class_name") == "DTypePolicy":
        return node["config"]["name"]
    if "class_name" in node and "config" in node:
        kept = {key: _older(node[key]) for key in ("class_name", "config", "name") if key in node}
        if "inbound_nodes" in node:
            kept["inbound_nodes"] = [_node(call) for call in node["inbound_nodes"]]
        return kept
    out = {key: _older(child) for key, child in node.items() if key not in ("build_config", "compile_config")}
    if "batch_shape" in out:
        out["batch_input_shape"] = out.pop("batch_shape")
    for key in ("input_layers", "output_layers"):
        if isinstance(ends := out.get(key), list) and ends and isinstance(ends[0], str):
            out[key] = [ends]
    return out


def _node(call: Any) -> Any:
    """A call of a layer: [[name, call, tensor, arguments], ...]."""
    if not isinstance(call, dict):
        return call
    sources: list[Any] = []

    def gather(node: Any) -> None:
        if isinstance(node, list):
            for child in node:
                gather(child)
        elif isinstance(node, dict) and "keras_history" in (node.get("config") or {}):
            sources.append(node["config"]["keras_history"])

    gather(call.get("args", []))
    settings = {
        key: value for key, value in (call.get("kwargs") or {}).items() if isinstance(value, bool | int | float)
    }
    return [[*source, settings] for source in sources]
