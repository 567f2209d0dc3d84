"""Transformers of Keras's layers: their graphs in Keras's spellings, their files, and their arithmetic in numpy."""

from __future__ import annotations

import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

V, D, T, F = 7, 8, 12, 10
"""Tokens, width, positions, width of the MLP."""
EPS = 1e-3
HUB = ("TokenAndPositionEmbedding", "PositionEmbedding", "SinePositionEncoding", "ReversibleEmbedding",
       "TransformerDecoder", "TransformerEncoder")  # fmt: skip


class Net:
    """Calls of layers in their order: (class, name, configuration, names of inputs, settings of the call)."""

    def __init__(self, seed: int = 0) -> None:
        self.calls: list[tuple[str, str, dict[str, Any], list[str], dict[str, Any]]] = []
        self.weights: dict[str, dict[str, Any]] = {}
        self._rng = np.random.default_rng(seed)
        self("InputLayer", [], name="in", batch_input_shape=[None, None])

    def __call__(self, kind: str, inputs: list[str], call: dict[str, Any] | None = None, **config: Any) -> str:
        name = config.pop("name", None) or f"{kind.lower()}_{len(self.calls)}"
        self.calls.append((kind, name, {"name": name, **config}, inputs, call or {}))
        return str(name)

    def draw(self, name: str, **shapes: tuple[int, ...]) -> str:
        """Weights of a layer; "__" in a name parts it from its layer's."""
        own = {k.replace("__", "/"): self._rng.normal(0, 0.5, s).astype(np.float32) for k, s in shapes.items()}
        self.weights[name] = self.weights.get(name, {}) | own
        return name

    # Layers with their weights

    def embedding(self, kind: str = "Embedding", rows: int = V, source: str = "in", **config: Any) -> str:
        return self.draw(self(kind, [source], input_dim=rows, output_dim=D, **config), embeddings=(rows, D))

    def positioned(self) -> str:
        sizes = {"vocabulary_size": V, "sequence_length": T, "embedding_dim": D}
        name = self("TokenAndPositionEmbedding", ["in"], **sizes)
        return self.draw(name, token_embedding__embeddings=(V, D), position_embedding__embeddings=(T, D))

    def dense(self, x: str, n_in: int, n_out: int, activation: Any = "linear", **config: Any) -> str:
        name = self("Dense", [x], units=n_out, activation=activation, use_bias=True, **config)
        return self.draw(name, kernel=(n_in, n_out), bias=(n_out,))

    def norm(self, x: str) -> str:
        return self.draw(self("LayerNormalization", [x], axis=[-1], epsilon=EPS), gamma=(D,), beta=(D,))

    def heads(self, x: str, n: int = 2, size: int = 3, causal: bool = True) -> str:
        name = self("MultiHeadAttention", [x, x], {"use_causal_mask": causal}, num_heads=n, key_dim=size, use_bias=True)
        apart: dict[str, Any] = {f"{p}__kernel": (D, n, size) for p in ("query", "key", "value")}
        apart |= {f"{p}__bias": (n, size) for p in ("query", "key", "value")}
        return self.draw(name, **apart, attention_output__kernel=(n, size, D), attention_output__bias=(D,))

    def block(self, x: str, kind: str = "TransformerDecoder", first: bool = False, activation: Any = "relu") -> str:
        name = self(kind, [x], num_heads=2, intermediate_dim=F, activation=activation, normalize_first=first,
                    layer_norm_epsilon=EPS)  # fmt: skip
        at, h, apart = "self_attention__", D // 2, dict[str, Any]()
        for p in ("query", "key", "value"):
            apart |= {f"{at}{p}__kernel": (D, 2, h), f"{at}{p}__bias": (2, h)}
        apart |= {f"{at}attention_output__kernel": (2, h, D), f"{at}attention_output__bias": (D,)}
        apart |= {f"{p}__{leaf}": (D,) for p in ("self_attention_layer_norm", "feedforward_layer_norm")
                  for leaf in ("gamma", "beta")}  # fmt: skip
        up, down = "feedforward_intermediate_dense", "feedforward_output_dense"
        apart |= {f"{up}__kernel": (D, F), f"{up}__bias": (F,), f"{down}__kernel": (F, D), f"{down}__bias": (D,)}
        return self.draw(name, **apart)

    # What it computes

    def logits(self, ids: list[int]) -> Any:
        values: dict[str, Any] = {}
        for kind, name, config, inputs, call in self.calls:
            given = [values[source] for source in inputs]
            w = {k: v.astype(np.float64) for k, v in self.weights.get(name, {}).items()}
            values[name] = _compute(kind, config, given, call, w, ids)
        return values[self.calls[-1][1]]

    # Its files

    def topology(self, keras3: bool = False) -> dict[str, Any]:
        listed = []
        calls: dict[str, dict[str, Any]] = {}
        for kind, name, config, inputs, call in self.calls:
            entry = {"class_name": kind, "name": name, "config": config}
            if keras3:
                entry |= {"module": "keras_hub.src.layers" if kind in HUB else "keras.layers"}
                if kind == "Sequential":
                    entry["module"] = "keras"
            if inputs and keras3:
                node: Any = {"args": [_histories(inputs)], "kwargs": call}
                if kind == "MultiHeadAttention":
                    node["args"] = _histories(inputs)
            elif inputs and kind == "MultiHeadAttention":
                node = [[inputs[0], 0, 0, {"value": [inputs[1], 0, 0], **call}]]
            else:
                node = [[source, 0, 0, call if source == inputs[0] else {}] for source in inputs]
            if name in calls:
                calls[name]["inbound_nodes"].append(node)
                continue
            calls[name] = entry | {"inbound_nodes": [node] if inputs else []}
            listed.append(calls[name])
        last = self.calls[-1][1]
        k = sum(name == last for _, name, *_ in self.calls) - 1
        inputs = [[name, 0, 0] for kind, name, *_ in self.calls if kind == "InputLayer"]
        ends = {"input_layers": inputs, "output_layers": [[last, k, 0]]}
        return {"class_name": "Functional", "config": {"name": "m", "layers": listed, **ends}}

    def tfjs(self, folder: Path) -> Path:
        folder.mkdir()
        listed, raw = [], b""
        for name, own in self.weights.items():
            for part, array in own.items():
                listed.append({"name": f"{name}/{part}", "shape": list(array.shape), "dtype": "float32"})
                raw += array.tobytes()
        manifest = [{"paths": ["group1-shard1of1.bin"], "weights": listed}]
        model = {"format": "layers-model", "modelTopology": {"model_config": self.topology()}}
        text = json.dumps({**model, "weightsManifest": manifest}, separators=(",", ":"))
        (folder / "model.json").write_text(text)
        (folder / "group1-shard1of1.bin").write_bytes(raw)
        return folder

    def h5(self, path: Path) -> Path:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file.attrs["model_config"], file.attrs["keras_version"] = json.dumps(self.topology()), "2.15.0"
            for name, own in self.weights.items():
                for part, array in own.items():
                    file[f"model_weights/{name}/{name}/{part}:0"] = array
        return path

    def keras(self, path: Path) -> Path:
        h5py = pytest.importorskip("h5py")
        data, counts = io.BytesIO(), dict[str, int]()
        with h5py.File(data, "w") as file:
            for kind, name, *_ in self.calls:
                if name not in self.weights or f"done {name}" in counts:
                    continue
                counts[f"done {name}"] = 1
                snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in kind).lstrip("_")
                counts[snake] = counts.get(snake, -1) + 1
                at = f"layers/{snake}_{counts[snake]}" if counts[snake] else f"layers/{snake}"
                for part, array in self.weights[name].items():
                    file[f"{at}/{_numbered(part)}"] = array
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", json.dumps(self.topology(keras3=True)))
            archive.writestr("metadata.json", '{"keras_version": "3.15.0"}')
            archive.writestr("model.weights.h5", data.getvalue())
        return path

    def save(self, container: str, folder: Path) -> Path:
        return {"tfjs": self.tfjs, "h5": self.h5, "keras": self.keras}[container](folder / f"m.{container}")


def _histories(inputs: list[str]) -> list[Any]:
    return [{"class_name": "__keras_tensor__", "config": {"keras_history": [source, 0, 0]}} for source in inputs]


def _numbered(part: str) -> str:
    *inner, leaf = part.split("/")
    names = {"query": "query_dense", "key": "key_dense", "value": "value_dense", "attention_output": "output_dense"}
    names |= {"self_attention": "_self_attention_layer", "self_attention_layer_norm": "_self_attention_layer_norm"}
    names |= {p: f"_{p}" for p in ("feedforward_layer_norm", "feedforward_intermediate_dense",
                                   "feedforward_output_dense")}  # fmt: skip
    number = 1 if leaf in ("bias", "beta") else 0
    return "/".join([*(names.get(p, p) for p in inner), f"vars/{number}"])


# Keras's layers in numpy


def _softmax(x: Any) -> Any:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _activation(name: Any, x: Any) -> Any:
    if isinstance(name, dict):
        name = name["config"]
    if name == "gelu":
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    if name == "gelu_approximate":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if name == "silu":
        return x / (1 + np.exp(-x))
    return {"relu": np.maximum(x, 0), "linear": x, "softmax": x}[name]  # a last softmax is left to the test


def _norm(x: Any, w: dict[str, Any], at: str = "") -> Any:
    mean, spread = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(spread + EPS) * w[f"{at}gamma"] + w[f"{at}beta"]


def _masked(scores: Any, causal: bool) -> Any:
    return np.where(np.tri(len(scores), dtype=bool), scores, -1e30) if causal else scores


def _attention(x: Any, w: dict[str, Any], at: str, causal: bool) -> Any:
    q, k, v = (np.einsum("td,dhk->htk", x, w[f"{at}{n}/kernel"]) + w[f"{at}{n}/bias"][:, None]
               for n in ("query", "key", "value"))  # fmt: skip
    mixed = [_softmax(_masked(a @ b.T / math.sqrt(a.shape[1]), causal)) @ c for a, b, c in zip(q, k, v, strict=True)]
    return (
        np.einsum("htk,hkd->td", np.array(mixed), w[f"{at}attention_output/kernel"]) + w[f"{at}attention_output/bias"]
    )


def _whole_block(x: Any, config: Any, w: dict[str, Any], causal: bool) -> Any:
    def mlp(x: Any) -> Any:
        up, down = "feedforward_intermediate_dense/", "feedforward_output_dense/"
        inner = _activation(config["activation"], x @ w[f"{up}kernel"] + w[f"{up}bias"])
        return inner @ w[f"{down}kernel"] + w[f"{down}bias"]

    first, second = "self_attention_layer_norm/", "feedforward_layer_norm/"
    if config["normalize_first"]:
        x = x + _attention(_norm(x, w, first), w, "self_attention/", causal)
        return x + mlp(_norm(x, w, second))
    x = _norm(x + _attention(x, w, "self_attention/", causal), w, first)
    return _norm(x + mlp(x), w, second)


def _compute(kind: str, config: Any, given: list[Any], call: Any, w: dict[str, Any], ids: list[int]) -> Any:
    x: Any = given[0] if given else None
    match kind:
        case "InputLayer":
            return np.arange(len(ids)) if config["name"] == "places" else np.array(ids)
        case "ReversibleEmbedding" if call.get("reverse"):
            return x @ w["embeddings"].T
        case "Embedding" | "ReversibleEmbedding":
            return w["embeddings"][x]
        case "TokenAndPositionEmbedding":
            return w["token_embedding/embeddings"][x] + w["position_embedding/embeddings"][: len(x)]
        case "PositionEmbedding":
            return w["embeddings"][: len(x)]
        case "SinePositionEncoding":
            angles = np.arange(len(x))[:, None] / 10000 ** (np.arange(D) // 2 * 2 / D)
            return np.where(np.arange(D) % 2, np.cos(angles), np.sin(angles))
        case "Dense":
            return _activation(config["activation"], x @ w["kernel"] + w["bias"])
        case "LayerNormalization":
            return _norm(x, w)
        case "MultiHeadAttention":
            return _attention(x, w, "", call["use_causal_mask"])
        case "Attention":
            return _softmax(_masked(x @ given[2].T, call["use_causal_mask"])) @ given[1]
        case "Dot":
            return x @ given[1].T if config["axes"] == [2, 2] else x @ given[1]
        case "Rescaling":
            return x * config["scale"]
        case "Softmax":
            return _softmax(x)
        case "ReLU":
            return np.maximum(x, 0)
        case "Activation":
            return _activation(config["activation"], x)
        case "Add":
            return x + given[1]
        case "Multiply":
            return x * given[1]
        case "Dropout":
            return x
        case "TransformerDecoder" | "TransformerEncoder":
            return _whole_block(x, config, w, kind == "TransformerDecoder")
        case "Sequential":
            for layer in config["layers"]:
                name = layer["config"]["name"]
                own = {k.removeprefix(f"{name}/"): v for k, v in w.items() if k.startswith(f"{name}/")}
                x = _compute(layer["class_name"], layer["config"], [x], {}, own, ids)
            return x
    raise AssertionError(kind)
