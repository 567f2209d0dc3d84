"""Writing `.npz` and pickles of numpy arrays, as `np.savez` and `pickle.dump` do: the same bytes for the same model.

An `.npz` has names and arrays only: what stood beside the arrays goes into it as far as it is lists of texts, numbers
and texts; a pickle holds the tree that the program had.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.errors import Unsupported, cut
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.foreign.mappings import PLACES, REST
from llmconv.formats.foreign.trees import tree_of
from llmconv.formats.tensor import Tensor
from llmconv.formats.writing.outputs import Outputs
from llmconv.progress import Meter
from llmconv.quant import plain

__all__ = ["save_npz", "save_pickle"]


def save_npz(
    checkpoint: Checkpoint, path: Path, *, force: bool = False, jobs: int | None = None, meter: Meter | None = None
) -> list[Path]:
    """Every tensor by its name, uncompressed; bfloat16 as numpy saves ml_dtypes', two bytes without a type."""
    items = dict(_leaves(tree_of(checkpoint), ""))
    if "document" not in checkpoint.metadata:
        items |= dict(_texts(checkpoint.metadata))
    size = sum(value.nbytes for value in items.values())
    with (
        Outputs({path: size}, force=force, inputs=checkpoint.inputs()) as outputs,
        outputs.open(path) as out,
        zipfile.ZipFile(out.file, "w") as archive,
    ):
        for name, value in items.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                if isinstance(value, Tensor):
                    _tensor(file, value, meter)
                else:
                    np.lib.format.write_array(file, value, version=None, allow_pickle=False)
    return [path]


def _tensor(file: Any, tensor: Tensor, meter: Meter | None) -> None:
    """One array, slab by slab."""
    header = {"descr": _descr(tensor), "fortran_order": False, "shape": tensor.shape}
    np.lib.format.write_array_header_1_0(file, header)
    for start, stop in tensor.slabs():
        file.write(tensor.read(start, stop).tobytes())
        if meter is not None:
            meter((stop - start) * tensor.row_bytes, tensor.name)


def _descr(tensor: Tensor) -> str:
    if tensor.type is plain.BF16:
        return "<V2"
    if tensor.type.dtype is None:
        raise Unsupported(
            f"tensor {cut(tensor.name)} is {tensor.type.name}, which numpy has no type for; use --outtype"
        )
    return np.dtype(tensor.type.dtype).str


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(name, tensor or array) of everything that an .npz can hold, names joined by dots."""
    if isinstance(node, Tensor):
        yield path or node.name, node
    elif isinstance(node, list) and node and all(isinstance(x, str) for x in node):
        yield path, np.array(node)
    elif isinstance(node, Mapping | list):
        for key, child in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from _leaves(child, f"{path}.{key}" if path else str(key))
    elif isinstance(node, bool | int | float | str):
        yield path, np.array(node)


def _texts(metadata: Mapping[str, Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Arrays of text, which an .npz's are kept as."""
    for name, text in metadata.items():
        try:
            found = json.loads(text)
        except (TypeError, ValueError, RecursionError):
            continue
        if name not in (REST, PLACES) and not name.startswith("llmconv.") and isinstance(found, list | str):
            value = np.array(found)
            if value.dtype.kind == "U":
                yield name, value


def save_pickle(
    checkpoint: Checkpoint, path: Path, *, force: bool = False, jobs: int | None = None, meter: Meter | None = None
) -> list[Path]:
    """The tree with numpy's arrays, protocol 4."""

    def arrays(node: Any) -> Any:
        if isinstance(node, Tensor):
            _descr(node)
            return node.numpy().astype(node.type.dtype or np.float32, copy=False)
        if isinstance(node, dict):
            return {k: arrays(v) for k, v in node.items()}
        return [arrays(v) for v in node] if isinstance(node, list) else node

    buffer = io.BytesIO()
    pickle.dump(arrays(tree_of(checkpoint)), buffer, protocol=4)
    sizes = {path: len(buffer.getvalue())}
    with Outputs(sizes, force=force, inputs=checkpoint.inputs()) as outputs, outputs.open(path) as out:
        out.file.write(buffer.getvalue())
    return [path]
