"""Writing Keras's files again: `.h5` and `.keras`, for models that came from one.

Groups and attributes stand in the metadata as `keras_file` found them (`STRUCTURE`), so that Keras finds its layers'
names and its model's configuration where it looks for them.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmconv.errors import MissingExtra, Unsupported, at, cut
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.formats.writing.outputs import Outputs
from llmconv.progress import Meter

__all__ = ["STRUCTURE", "TEXTS", "WEIGHTS", "save", "structure"]

STRUCTURE = "keras.h5"
"""Metadata: the file's groups with their attributes, and its datasets of text, as JSON."""
WEIGHTS = "model.weights.h5"
"""The weights of a `.keras`, and beside them:"""
TEXTS = ("config.json", "metadata.json")


def structure(file: Any, root: str, left_out: tuple[str, ...], metadata: Mapping[str, Any]) -> str:
    """What an open HDF5 file has besides its numbers.

    root: what stood before tensors' names.   left_out: groups that are not kept.   metadata: texts kept already.
    """
    import h5py

    attributes: dict[str, dict[str, Any]] = {}
    texts: dict[str, Any] = {}
    outside: list[str] = []

    def visit(path: str, node: Any) -> None:
        if path.split("/", 1)[0] in left_out:
            return
        own = {key: _stored(value, metadata.get(f"keras.{key}")) for key, value in node.attrs.items()}
        own = {key: value for key, value in own.items() if value is not None}
        if own or isinstance(node, h5py.Group):
            attributes[path] = own
        if isinstance(node, h5py.Dataset):
            if node.dtype.kind in "OSU":
                texts[path] = _stored(node[()], None)
            elif not path.startswith(root):
                outside.append(path)

    visit("", file)
    file.visititems(visit)
    tracked = bool(file.id.get_create_plist().get_link_creation_order())
    found = {"root": root, "ordered": tracked, "attributes": attributes, "texts": texts, "outside": outside}
    return json.dumps(found)


def _stored(value: Any, known: Any) -> Any:
    """An attribute as JSON; [kind] alone where the metadata has its text; None for what is empty."""
    if isinstance(value, bytes):
        value = np.bytes_(value)
    if isinstance(value, np.bytes_):
        text = value.decode("utf-8", "surrogateescape")
        return ["bytes"] if text == known else ["bytes", text]
    if isinstance(value, str):
        return ["text"] if value == known else ["text", value]
    if not isinstance(value, np.ndarray | np.generic):
        return None
    if value.dtype.kind in "SO":
        items = [x.decode("utf-8", "surrogateescape") if isinstance(x, bytes) else str(x) for x in value.ravel()]
        return ["texts" if value.dtype.kind == "O" else "bytes", items, list(value.shape)]
    return ["numbers", value.tolist(), value.dtype.str]


def _again(found: list[Any], text: Any) -> Any:
    """The attribute that `_stored` wrote; text: what the metadata has."""
    kind, value = found[0], found[1] if len(found) > 1 else text
    if kind == "numbers":
        return np.array(value, np.dtype(found[2]))
    if isinstance(value, list) and kind == "bytes":
        raw = [x.encode("utf-8", "surrogateescape") for x in value]
        return np.array(raw, "S" if any(raw) else "S1").reshape(found[2])
    if isinstance(value, list):
        import h5py

        return np.array(value, h5py.string_dtype()).reshape(found[2])
    return np.bytes_(value.encode("utf-8", "surrogateescape")) if kind == "bytes" else str(value)


def save(
    checkpoint: Checkpoint, path: Path, *, force: bool = False, jobs: int | None = None, meter: Meter | None = None
) -> list[Path]:
    """Write an `.h5` or a `.keras` as the model came; `Unsupported` for one that came from elsewhere.

    Block types and bfloat16 are written as float32, since HDF5 has none.
    """
    told = _told(checkpoint, path)
    zipped = path.suffix.lower() == ".keras"
    texts = {name: str(checkpoint.metadata.get(f"keras.{name}", "")) for name in TEXTS if zipped}
    if zipped and not all(texts.values()):
        raise Unsupported(f"{at(path)}: the model came from an .h5, which holds no {TEXTS[0]}; write .h5")
    try:
        import h5py
    except ImportError:
        raise MissingExtra(f"{at(path)}: writing HDF5", "h5py", "h5") from None
    size = sum(t.n_elements * _dtype(t).itemsize for t in checkpoint.tensors.values())
    with Outputs({path: size}, force=force, inputs=checkpoint.inputs()) as outputs, outputs.open(path) as out:
        inner = io.BytesIO()
        with h5py.File(inner if zipped else out.file, "w", track_order=told["ordered"]) as file:
            try:
                _fill(file, checkpoint, told, meter)
            except (ValueError, KeyError, TypeError, RuntimeError) as error:
                raise Unsupported(
                    f"{at(path)}: its tensors have no place in an HDF5 file ({str(error)[:80]}); write safetensors"
                ) from None
        if zipped:
            with zipfile.ZipFile(out.file, "w") as archive:
                for name, text in texts.items():
                    archive.writestr(zipfile.ZipInfo(name), text)
                archive.writestr(zipfile.ZipInfo(WEIGHTS), inner.getvalue())
    return [path]


def _told(checkpoint: Checkpoint, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(checkpoint.metadata[STRUCTURE])
        assert isinstance(found["root"], str) and isinstance(found["ordered"], bool)
        assert all(isinstance(found[key], dict) for key in ("attributes", "texts"))
        assert isinstance(found["outside"], list)
    except (KeyError, ValueError, TypeError, AssertionError, RecursionError):
        raise Unsupported(
            f"{at(path)}: the model came from no Keras file, so what Keras looks for is not there; write safetensors, "
            ".npz or a TensorFlow.js folder (.tfjs)"
        ) from None
    return dict(found)


def _dtype(tensor: Tensor) -> np.dtype[Any]:
    kind = tensor.type.dtype
    return np.dtype(np.float32) if kind is None or not tensor.type.is_plain() else np.dtype(kind)


def _fill(file: Any, checkpoint: Checkpoint, told: Mapping[str, Any], meter: Meter | None) -> None:
    """Groups, datasets and attributes."""
    root, outside = told["root"], set(told["outside"])
    text_names = set(told["texts"])
    for name in told["attributes"]:
        if name and name not in text_names and name.removeprefix(root) not in checkpoint.tensors:
            file.require_group(name)
    for name, found in told["texts"].items():
        file[name] = _again(found, None)
    for name, tensor in checkpoint.tensors.items():
        place = name if name in outside else root + name
        dataset = file.create_dataset(place, tensor.shape, _dtype(tensor))
        if len(tensor.shape) != 2:
            dataset[...] = tensor.numpy().reshape(tensor.shape)
            continue
        for start, stop in tensor.slabs():
            dataset[start:stop] = tensor.rows(start, stop)
            if meter is not None:
                meter((stop - start) * tensor.row_bytes, cut(name))
    for name, own in told["attributes"].items():
        if not name or name in file:
            for key, found in own.items():
                (file[name] if name else file).attrs[key] = _again(found, checkpoint.metadata.get(f"keras.{key}"))
