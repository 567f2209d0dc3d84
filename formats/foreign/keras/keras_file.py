"""Keras weights: `.h5` (HDF5: weights of Keras 2 and 3, whole models) and `.keras`, a zip with one.

Every dataset of numbers is a tensor named by its path; the attributes of the file (the layers' names, the model's
configuration) are kept in the metadata.  HDF5 is read through the optional h5py; nothing outside the file is followed.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llmconv.errors import BadFile, LlmconvError, MissingExtra, Unsupported, at, cut
from llmconv.formats import limits
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.foreign.keras import keras_writing
from llmconv.formats.foreign.keras.keras_writing import TEXTS, WEIGHTS
from llmconv.formats.foreign.zipped import entries
from llmconv.formats.format import Format
from llmconv.formats.source import Source
from llmconv.formats.tensor import Tensor, type_of_dtype
from llmconv.quant.block import Bytes

NAME = "keras"

_MAGIC = b"\x89HDF\r\n\x1a\n"
_ROOT, _TRAINING = "model_weights/", ("optimizer_weights", "optimizer")


def sniff(path: Path, head: bytes) -> bool:
    if head.startswith(_MAGIC):
        return True
    return head.startswith(b"PK\x03\x04") and (path.suffix == ".keras" or b"model.weights.h5" in head)


def open(path: Path) -> Checkpoint:
    """The datasets of the file, read when asked for; `MissingExtra` without h5py."""
    source = Source.of(path)
    out = Checkpoint(format=NAME, source=path, dialect="plain", parts=[path])
    if source.read(0, min(8, source.size)).tobytes() == _MAGIC:
        _read(out, lambda: _opened(path, path, source))
        return out
    found = entries(path, source)
    if WEIGHTS not in found:
        raise BadFile(f"{at(path)}: is a zip file without {WEIGHTS}, expected a Keras model")
    weights = found[WEIGHTS]
    if weights.size > limits.JSON_BYTES:
        raise BadFile(f"{at(path)}: {WEIGHTS} is {weights.size:,} bytes, expected at most {limits.JSON_BYTES:,}")
    data = io.BytesIO(weights.read(0, weights.size).tobytes())
    _read(out, lambda: _opened(data, path, source))
    for name in TEXTS:
        entry = found.get(name)
        if entry is not None and entry.size <= limits.SIDE_FILE_BYTES:
            out.metadata[f"keras.{name}"] = entry.read(0, entry.size).tobytes().decode("utf-8", "replace")
    out.notes += [f"{cut(name)} is left out" for name in found if name not in (WEIGHTS, *TEXTS)]
    return out


def _opened(file: Any, path: Path, source: Source) -> Any:
    try:
        import h5py
    except ImportError:
        raise MissingExtra(f"{at(path)}: reading HDF5", "h5py", "h5") from None
    if source.stamp != Source.of(path).stamp:
        raise BadFile(f"{at(path)}: changed while it was being read; run again when nothing writes to it")
    try:
        return h5py.File(file, "r")
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise BadFile(f"{at(path)}: is no whole HDF5 file ({str(error)[:80]}); fetch it again") from None


def _read(out: Checkpoint, opened: Callable[[], Any]) -> None:
    """Add the datasets and attributes."""
    left: dict[str, int] = {}
    try:
        with opened() as file:
            for name, dataset in _datasets(file, out.where):
                top = name.split("/", 1)[0]
                if top in _TRAINING:
                    left[top] = left.get(top, 0) + 1
                    continue
                _add(out, name, dataset, opened)
            for holder in (file, file.get("model_weights")):
                for key, value in holder.attrs.items() if holder is not None else ():
                    out.metadata.setdefault(f"keras.{key}", _text(value))
            root = _ROOT if "model_weights" in file else ""
            told = keras_writing.structure(file, root, _TRAINING, out.metadata)
            out.metadata[keras_writing.STRUCTURE] = told
    except LlmconvError:
        raise
    except Exception as error:  # the library has many, from C
        raise BadFile(f"{out.where}: is no HDF5 that can be read ({str(error)[:80]}); fetch it again") from None
    out.notes += [f"{n} arrays under {cut(top)}, the state of training, are left out" for top, n in left.items()]
    if not out.tensors:
        raise BadFile(f"{out.where}: holds no array of numbers, so there is nothing to convert")


def _datasets(file: Any, where: str) -> list[tuple[str, Any]]:
    """(path, dataset) in order; links out of the file are not followed, a group is entered once."""
    import h5py

    found: list[tuple[str, Any]] = []
    stack: list[tuple[str, Any]] = [("", file)]
    seen: set[Any] = set()
    count = 0
    while stack:
        path, node = stack.pop()
        if isinstance(node, h5py.Dataset):
            found.append((path, node))
            continue
        identity = h5py.h5o.get_info(node.id).addr
        if identity in seen:
            continue
        seen.add(identity)
        inner = []
        for name in node:
            count += 1
            if count > limits.HDF5_OBJECTS:
                raise BadFile(f"{where}: has more than {limits.HDF5_OBJECTS:,} groups and datasets; no model has")
            if isinstance(node.get(name, getlink=True), h5py.HardLink):
                child = node.get(name)
                inner.append((f"{path}/{name}" if path else name, child))
        stack += reversed([(p, c) for p, c in inner if isinstance(c, h5py.Group | h5py.Dataset)])
    return found


def _add(out: Checkpoint, path: str, dataset: Any, opened: Callable[[], Any]) -> None:
    where = f"{out.where}: dataset {cut(path)}"
    if dataset.external or dataset.is_virtual:
        raise Unsupported(f"{where} keeps its numbers in other files, which are not followed; save it as one file")
    name = path.removeprefix(_ROOT)
    if dataset.shape is None or len(name) > limits.MAX_NAME_BYTES:
        out.notes.append(f"dataset {cut(path)} holds nothing: it is left out")
        return
    shape, dtype = tuple(int(n) for n in dataset.shape), dataset.dtype
    if dtype.names:
        raise Unsupported(f"{where} has the fields {cut(', '.join(dtype.names))}; save each on its own")
    if dtype.kind in "OSU":
        out.metadata[f"keras.{name}"] = _text(dataset[()]) if math.prod(shape) <= 1 << 20 else ""
        return
    if limits.too_large(shape) or len(shape) > limits.MAX_DIMS:
        raise BadFile(f"{where} has shape {list(shape)}, more elements than any file holds; it is damaged")
    try:
        kind = type_of_dtype(np.dtype(dtype))
    except LlmconvError:
        raise Unsupported(f"{where} is of type {dtype}, which no tensor type stores") from None
    assert kind.dtype is not None
    little, whole_rows = kind.dtype, math.prod(shape[:-1])

    def read(start: int, stop: int) -> Bytes:
        """Rows of the flattened leading dimensions, by slices of the first."""
        with opened() as file:
            stored = file[path]
            try:
                if len(shape) < 2:
                    values = np.asarray(stored[()]).reshape(1, -1)[start:stop]
                else:
                    inner = whole_rows // shape[0] if shape[0] else 1
                    first, last = start // max(inner, 1), -(-stop // max(inner, 1))
                    block = np.asarray(stored[first:last]).reshape(-1, shape[-1])
                    values = block[start - first * inner : stop - first * inner]
            except (OSError, ValueError, RuntimeError, KeyError) as error:
                raise BadFile(f"{where} can't be read ({str(error)[:80]}); fetch it again") from None
        return np.ascontiguousarray(values, little).view(np.uint8).reshape(stop - start, -1)

    out.add(Tensor(name, shape, kind, read))


def _text(value: Any) -> str:
    """An attribute as text: itself, or JSON."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()

    def plain(node: Any) -> Any:
        if isinstance(node, list):
            return [plain(x) for x in node]
        if isinstance(node, bytes):
            return node.decode("utf-8", "replace")
        return node if isinstance(node, str | int | float | bool) or node is None else str(node)

    return json.dumps(plain(value), ensure_ascii=False)


FORMAT = Format(
    name=NAME,
    dialect="hf",
    sniff=sniff,
    open=open,
    write=keras_writing.save,
    suffixes=(".h5", ".hdf5", ".keras"),
)
