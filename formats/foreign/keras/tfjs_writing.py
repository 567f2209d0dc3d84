"""Writing TensorFlow.js models: the manifest, its shards, and a graph of constants where the model had no topology.

See `formats.foreign.tfjs_file`.  `tf.loadGraphModel` needs a graph: a `Const` node for each weight, which takes its
numbers from the manifest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.errors import Unsupported, UsageError, cut
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.foreign.keras import keras_topology
from llmconv.formats.tensor import Tensor
from llmconv.formats.writing.outputs import Outputs
from llmconv.progress import Meter
from llmconv.quant import plain

__all__ = ["OURS", "Recode", "dequantizer", "save"]

OURS = "llmconv"
"""The key of `userDefinedMetadata` that holds a checkpoint's metadata."""
_SHARD = 4 << 20
"""Bytes of a shard, as tensorflowjs_converter cuts them: browsers cache files of this size."""
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.bin|group\d+-shard\d+of\d+")
"""Names of shards that may be used again."""
_NODE = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")
"""Names that a node of a graph may have."""
_ENUM = {"float32": "DT_FLOAT", "int32": "DT_INT32", "bool": "DT_BOOL", "complex64": "DT_COMPLEX64"}


Recode = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class _Weight:
    """A weight as it is written: its entry in the manifest, the type of its items, and what makes them."""

    tensor: Tensor
    entry: dict[str, Any]
    items: np.dtype[Any]
    encode: Recode

    @property
    def size(self) -> int:
        return self.tensor.n_elements * self.items.itemsize


def save(
    checkpoint: Checkpoint, path: Path, *, force: bool = False, jobs: int | None = None, meter: Meter | None = None
) -> list[Path]:
    """Write a folder that `tf.loadGraphModel` and `tf.io` read, or `tf.loadLayersModel` where it came from one, or from
    Keras.

    float32, int32, bool and complex64; 16-bit floats as float16, which TensorFlow.js reads as float32.  Block types are
    decoded.  Where the model was TensorFlow.js its topology stays, and a quantized weight keeps its codes if they give
    its numbers exactly.
    """
    original = _original(checkpoint)
    if not original and (layers := keras_topology.layers_model(checkpoint)) is not None:
        original, checkpoint = layers
    specs = {w["name"]: w for group in original.get("weightsManifest", ()) for w in group["weights"]}
    groups = _grouped(checkpoint, original)
    weights = [[_weight(t, specs) for t in group] for _, group in groups]
    kept = _kept([paths for paths, _ in groups], [sum(w.size for w in group) for group in weights])
    names = kept or [_shards(i, sum(w.size for w in group)) for i, group in enumerate(weights)]
    manifest = [
        {"paths": paths, "weights": [w.entry for w in ws]} for paths, ws in zip(names, weights, strict=True)
    ]  # fmt: skip
    model = _model(checkpoint, original, manifest)
    files = {path / _safe(name): checkpoint.file(name) or b"" for name in checkpoint.files if name != "model.json"}
    sizes = {file: len(raw) for file, raw in files.items()}
    for paths, ws in zip(names, weights, strict=True):
        total = sum(w.size for w in ws)
        room = _room(paths)
        sizes |= {path / name: min(room, total - i * room) if room else total for i, name in enumerate(paths)}
    sizes[path / "model.json"] = len(model)
    stale = [p for p in path.glob("group*-shard*of*.bin") if p.is_file()] if path.is_dir() else []
    with Outputs(sizes, force=force, inputs=checkpoint.inputs(), folder=path, stale=stale) as outputs:
        for file, raw in files.items():
            with outputs.open(file) as out:
                out.file.write(raw)
        for paths, ws in zip(names, weights, strict=True):
            _write(outputs, [path / name for name in paths], ws, meter)
        with outputs.open(path / "model.json") as out:
            out.file.write(model)
    return list(sizes)


def _original(checkpoint: Checkpoint) -> dict[str, Any]:
    """The model.json that the model came with, {} when there is none that can be used."""
    try:
        found = json.loads(checkpoint.file("model.json") or b"{}")
        groups = found.get("weightsManifest", [])
        assert all(isinstance(w["name"], str) for group in groups for w in group["weights"])
        return dict(found) if groups else {}
    except (ValueError, AssertionError, AttributeError, TypeError, KeyError, RecursionError):
        return {}


def _grouped(checkpoint: Checkpoint, original: dict[str, Any]) -> list[tuple[Any, list[Tensor]]]:
    """The tensors in the groups and the order of the original manifest, with its names of shards; those that it lacks
    in a group of their own."""
    left = dict(checkpoint.tensors)
    groups = [
        (group.get("paths"), [left.pop(w["name"]) for w in group["weights"] if w["name"] in left])
        for group in original.get("weightsManifest", ())
    ]
    return [(paths, group) for paths, group in (*groups, (None, list(left.values()))) if group]


def _kept(stated: list[Any], sizes: list[int]) -> list[list[str]]:
    """The shards' names in the original manifest, [] where they don't fit what is written: one file of any size for a
    group, or as many as it is cut into."""
    for paths, size in zip(stated, sizes, strict=True):
        plain_names = isinstance(paths, list) and all(isinstance(p, str) and _FILE.fullmatch(p) for p in paths)
        if not plain_names or len(paths) not in (1, -(-size // _SHARD)):
            return []
    every = [name.lower() for paths in stated for name in paths]
    return stated if len(set(every)) == len(every) else []


def _room(paths: Sequence[object]) -> int:
    """Bytes of a shard; 0: all of its group's."""
    return 0 if len(paths) == 1 else _SHARD


def _shards(group: int, size: int) -> list[str]:
    count = max(1, -(-size // _SHARD))
    return [f"group{group + 1}-shard{i + 1}of{count}.bin" for i in range(count)]


def _safe(name: str) -> str:
    if not name or name in (".", "..") or any(c in name for c in "/\\\0") or re.fullmatch(r"group\d+-shard\d.*", name):
        raise UsageError(f"side file {cut(name)} has no place in a TensorFlow.js folder; leave it out or rename it")
    return name


def _weight(tensor: Tensor, specs: dict[str, Any]) -> _Weight:
    """How a tensor is written, by its type and by what it was in the manifest that it came with."""
    entry: dict[str, Any] = {"name": tensor.name, "shape": list(tensor.shape)}
    kind = tensor.type
    packed = specs.get(tensor.name, {}).get("quantization")
    if isinstance(packed, dict) and (kept := _requantized(tensor, specs[tensor.name])) is not None:
        return kept
    if kind is plain.F16:
        entry |= {"dtype": "float32", "quantization": {"dtype": "float16", "original_dtype": "float32"}}
        return _Weight(tensor, entry, np.dtype("<f2"), lambda x: x)
    if kind is plain.BOOL:
        return _Weight(tensor, entry | {"dtype": "bool"}, np.dtype(np.uint8), lambda x: x)
    if kind.dtype is not None and kind.dtype.kind == "c":
        return _Weight(tensor, entry | {"dtype": "complex64"}, np.dtype("<c8"), lambda x: x)
    if kind.is_float or not kind.is_plain():
        return _Weight(tensor, entry | {"dtype": "float32"}, np.dtype("<f4"), _singles(tensor.name))
    return _Weight(tensor, entry | {"dtype": "int32"}, np.dtype("<i4"), _whole(tensor.name))


def _singles(name: str) -> Recode:
    def encode(values: NDArray[Any]) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            out = values.astype(np.float32)
        if values.dtype == np.float64 and (np.isinf(out) & np.isfinite(values)).any():
            raise Unsupported(f"tensor {cut(name)} has numbers beyond 3.4e38, which float32 can't hold; write GGUF")
        return out

    return encode


def _whole(name: str) -> Recode:
    def encode(values: NDArray[Any]) -> NDArray[Any]:
        out = values.astype(np.int32)
        if not np.array_equal(out.astype(values.dtype), values) or (values.dtype.kind == "u" and (out < 0).any()):
            raise Unsupported(f"tensor {cut(name)} has numbers beyond 2^31, which int32 can't hold; write safetensors")
        return out

    return encode


def dequantizer(scale: float, least: float, dtype: str) -> Recode:
    """codes -> numbers, as TensorFlow.js computes them: in doubles, then rounded."""

    def decode(codes: NDArray[Any]) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            values = codes.astype(np.float64) * scale + least
            return np.floor(values + 0.5).astype(np.int32) if dtype == "int32" else values.astype(np.float32)

    return decode


def _requantized(tensor: Tensor, spec: dict[str, Any]) -> _Weight | None:
    """The codes of the manifest that the tensor came with, if they give its numbers exactly; else None."""
    packed, dtype = spec["quantization"], spec.get("dtype")
    kind, scale, least = (packed.get(key) for key in ("dtype", "scale", "min"))
    entry = {"name": tensor.name, "shape": list(tensor.shape), "dtype": dtype, "quantization": packed}
    if kind == "float16":
        half: np.dtype[Any] = np.dtype("<f2")
        with np.errstate(over="ignore"):
            exact = all(
                np.array_equal(rows.astype(np.float16).astype(rows.dtype), rows) for rows in _rows(tensor)
            )  # fmt: skip
        return _Weight(tensor, entry, half, lambda x: x.astype(np.float16)) if exact else None
    if kind not in ("uint8", "uint16") or not isinstance(scale, int | float) or not isinstance(least, int | float):
        return None
    most = 255 if kind == "uint8" else 65535
    items, decode = np.dtype("u1" if kind == "uint8" else "<u2"), dequantizer(float(scale), float(least), str(dtype))

    def encode(values: NDArray[Any]) -> NDArray[Any]:
        codes = np.rint((values.astype(np.float64) - least) / scale) if scale else np.zeros(values.shape)
        return np.clip(codes, 0, most).astype(items)

    exact = all(np.array_equal(decode(encode(rows)).astype(rows.dtype), rows) for rows in _rows(tensor))
    return _Weight(tensor, entry, items, encode) if exact else None


def _rows(tensor: Tensor) -> Iterator[NDArray[Any]]:
    return (tensor.rows(start, stop) for start, stop in tensor.slabs())


def _write(outputs: Outputs, paths: list[Path], weights: list[_Weight], meter: Meter | None) -> None:
    """The bytes of a group's weights, cut into shards."""
    rest, pieces = b"", _bytes(weights, meter)
    for path in paths:
        with outputs.open(path) as out:
            room = _room(paths) or sum(w.size for w in weights)
            while room and (rest or (rest := next(pieces, b""))):
                out.file.write(rest[:room])
                rest, room = rest[room:], room - min(room, len(rest))


def _bytes(weights: list[_Weight], meter: Meter | None) -> Iterator[bytes]:
    for weight in weights:
        for start, stop in weight.tensor.slabs(_SHARD):
            data = np.ascontiguousarray(weight.encode(weight.tensor.rows(start, stop)), weight.items).tobytes()
            if meter is not None:
                meter((stop - start) * weight.tensor.row_bytes, weight.tensor.name)
            if data:
                yield data


def _model(checkpoint: Checkpoint, original: dict[str, Any], manifest: list[dict[str, Any]]) -> bytes:
    """model.json: the original's with the new manifest, or a graph of constants."""
    if original and not checkpoint.metadata and original.get("weightsManifest") == manifest:
        return checkpoint.file("model.json") or b""
    made = original or {
        "format": "graph-model",
        "generatedBy": "llmconv",
        "convertedBy": None,
        "modelTopology": {"node": list(_nodes(manifest)), "versions": {"producer": 175}},
    }
    texts = {key: value for key, value in checkpoint.metadata.items() if isinstance(value, str)}
    if texts and texts != {"format": "pt"}:
        own = made.get("userDefinedMetadata")
        made = {**made, "userDefinedMetadata": {**(own if isinstance(own, dict) else {}), OURS: texts}}
    return json.dumps({**made, "weightsManifest": manifest}, ensure_ascii=False, separators=(",", ":")).encode()


def _nodes(manifest: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for weight in (w for group in manifest for w in group["weights"]):
        if _NODE.fullmatch(weight["name"]):
            kind = _ENUM[weight["dtype"]]
            shape = {"dim": [{"size": str(n)} for n in weight["shape"]]}
            value = {"tensor": {"dtype": kind, "tensorShape": shape}}
            yield {"name": weight["name"], "op": "Const", "attr": {"value": value, "dtype": {"type": kind}}}
