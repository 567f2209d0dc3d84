"""Layers behind pooling: sentence-transformers' Dense modules <-> the tensors `dense_2`, `dense_3` of a GGUF.

A family of which llama.cpp computes them (EmbeddingGemma, LFM2) says which there are (`Architecture.dense`).  The
module's file becomes a tensor and the rest of its bytes, under a key of our own, and comes back as it was.  Layers that
a family has no tensor for, or that are more than a matrix, stay files, which travel along and are computed with here.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmconv.convert.tables import own_keys
from llmconv.convert.tables.architecture import Architecture
from llmconv.errors import BadFile, LlmconvError, WrongShape, cut, more
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.safetensors_header import DTYPES, header_of
from llmconv.formats.side_files import MODULES, is_name, modules_of
from llmconv.formats.tensor import Tensor

__all__ = ["Dense", "given", "taken"]

_WEIGHT = "linear.weight"
_COMPUTED = ("Transformer", "Pooling", "Dense", "Normalize")
"""The modules of sentence-transformers that `llmconv embed` computes."""


@dataclass
class Dense:
    """A folder's layers as a GGUF has them.  heads: what its files hold beside the numbers, by the files' names."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    heads: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def taken(folder: Checkpoint, arch: Architecture) -> Dense:
    """The layers of a folder's modules.json; `BadFile` for a file that is no whole safetensors file."""
    listed = folder.file(MODULES)
    out, paths = Dense(), modules_of(listed, "Dense")
    known = {path for kind in _COMPUTED for path in modules_of(listed, f".{kind}")}
    if odd := [path for path in modules_of(listed, "") if path not in known]:
        out.notes.append(f"module {cut(odd[0])}{more(odd)} of modules.json: kept, and computed by nothing here")
    if not paths:
        return out
    found = [_plain_layer(folder, path) for path in paths]
    if len(paths) > len(arch.dense) or any(one is None for one in found):
        here = all(f"{path}/model.safetensors" in folder.files for path in paths)
        by = (
            "and computed by llmconv embed" if here else "but computed from a model.safetensors alone, by llmconv embed"
        )
        out.notes.append(f"{cut(paths[0])}{more(paths)}: kept, {by}; llama.cpp has no place for it")
        return out
    for (name, (_, into, rows)), path, one in zip(arch.dense.items(), paths, found, strict=False):
        assert one is not None
        head, weight = one
        out.tensors[f"{name}.weight"] = weight.renamed(f"{name}.weight")
        out.heads[f"{path}/model.safetensors"] = head
        sizes = {into: weight.shape[1], rows: weight.shape[0]}
        out.keys |= {f"{arch.gguf}.{key}": np.uint32(size) for key, size in sizes.items() if key}
    return out


def given(gguf: Checkpoint, arch: Architecture) -> tuple[dict[str, bytes], list[str], list[str]]:
    """The way back: files of a folder, the names of the tensors that are in them, and the paths of layers that no kept
    file names, of a GGUF that somebody else made."""
    files: dict[str, bytes] = {}
    used, new = [], []
    heads = {
        key.removeprefix(own_keys.HEAD): value for key, value in gguf.metadata.items() if key.startswith(own_keys.HEAD)
    }
    names = iter(sorted(heads))
    for name, (path, _, _) in arch.dense.items():
        weight = gguf.tensors.get(f"{name}.weight")
        biased = f"{name}.bias" in gguf.tensors or own_keys.CONFIG in gguf.metadata
        if weight is None or (biased and not heads):  # a row of the table: what LFM2's sound decoder ends with
            continue
        if len(weight.shape) != 2:
            raise WrongShape(gguf.where, weight.name, weight.shape, (0, 0), "as a layer")
        used.append(weight.name)
        kept = next(names, None)
        if kept is None:
            new.append(path)
            files |= _made(path, weight if weight.type.is_plain() else weight.astype(DTYPES["F32"]))
        elif is_name(kept):
            files[kept] = _whole(heads[kept], weight, gguf.where)
    return files, used, new


def _plain_layer(folder: Checkpoint, path: str) -> tuple[bytes, Tensor] | None:
    """The head of a module's file and its matrix; None for a layer that is more than a matrix, or has no such file."""
    name = f"{path}/model.safetensors"
    data = folder.file(name) if name in folder.files else None
    try:
        config = json.loads(folder.file(f"{path}/config.json") or b"{}")
        activation = str(config.get("activation_function", "Identity")).rpartition(".")[2]
    except (ValueError, AttributeError, RecursionError):
        return None
    if data is None or activation != "Identity":
        return None
    header, end = _header(data, f"{folder.where}: {cut(name)}")
    entries = {key: entry for key, entry in header.items() if key != "__metadata__"}
    if list(entries) != [_WEIGHT]:
        return None
    try:
        kind, shape = DTYPES[entries[_WEIGHT]["dtype"]], tuple(entries[_WEIGHT]["shape"])
        if not kind.is_float or kind.ggml_id is None or len(shape) != 2:
            return None
        values = np.frombuffer(data[end:], np.uint8).reshape(shape[0], -1)
        if values.shape[1] != kind.row_bytes(shape[1]) or not all(isinstance(n, int) for n in shape):
            raise ValueError
    except (LlmconvError, LookupError, TypeError, ValueError):
        raise BadFile(f"{folder.where}: {cut(name)} is no whole safetensors file; fetch it again") from None
    return data[:end], Tensor(_WEIGHT, shape, kind, lambda start, stop: values[start:stop])


def _header(data: bytes, where: str) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where it ends."""
    try:
        end = 8 + struct.unpack("<Q", data[:8])[0]
        found = json.loads(data[8:end])
        if isinstance(found, dict) and end <= len(data):
            return found, end
    except (ValueError, RecursionError, struct.error):
        pass
    raise BadFile(f"{where} is no whole safetensors file; fetch it again")


def _whole(head: Any, weight: Tensor, where: str) -> bytes:
    """A module's file of its head and the matrix, which is decoded where it was quantized since."""
    raw = head.tobytes() if isinstance(head, np.ndarray) and head.dtype == np.uint8 else b""
    header, _ = _header(raw, f"{where}: a key that begins with {own_keys.HEAD}")
    entry = found if isinstance(found := header.get(_WEIGHT), dict) else {}
    kind = DTYPES.get(str(entry.get("dtype")))
    if kind is None or not kind.can_encode() or list(weight.shape) != entry.get("shape"):
        raise BadFile(
            f"{where}: tensor {weight.name!r} is not of the file that it came from; remove the key of its head"
        )
    return raw + weight.astype(kind).blocks().tobytes()


def _made(path: str, weight: Tensor) -> dict[str, bytes]:
    """Files of a layer that nobody kept any of."""
    weight = weight.renamed(_WEIGHT)
    config = {
        "in_features": weight.shape[1],
        "out_features": weight.shape[0],
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    head, _ = header_of([weight], {"format": "pt"})
    return {
        f"{path}/config.json": json.dumps(config, indent=2).encode() + b"\n",
        f"{path}/model.safetensors": head + weight.blocks().tobytes(),
    }
