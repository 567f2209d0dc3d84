"""Merging a LoRA adapter (PEFT's files) into the model it was trained on, lazily, row by row.

W' = W + s · B A with s = alpha / r (alpha / √r for rank-stabilised ones), summed in float32 and rounded once to W's
type.  With DoRA the outputs' vectors (rows; columns of embeddings and of GPT-2's matrices) are then scaled to the
trained magnitudes.  Tensors that were trained whole
(`modules_to_save`, biases) replace the base's.  Source: Hu et al. 2021; Kalajdzievski 2023;
Liu et al. 2024; PEFT's files.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv import formats
from llmconv.convert.scaled.unpack import unpack
from llmconv.convert.translate import translate
from llmconv.convert.writing import adapters
from llmconv.convert.writing.peft import config_of, opened, parted, scale_of
from llmconv.convert.writing.untie import untied
from llmconv.errors import BadFile, Unsupported, at
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

__all__ = ["merge"]


def merge(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The model with the adapter of `folder` merged in.

    checkpoint: in Hugging Face's dialect (`translate(…, "hf")`).
    folder: adapter_config.json with adapter_model.safetensors or adapter_model.bin; or an adapter's GGUF.

    Raises `BadFile` for an adapter that does not fit the model, `Unsupported` for kinds other than LoRA and DoRA.
    """
    checkpoint = unpack(checkpoint)  # into the weights, never into the numbers they are stored as
    gguf = _from_gguf(folder, checkpoint) if folder.is_file() else None
    config = config_of(folder) if gguf is None else json.loads(gguf.file("adapter_config.json") or b"{}")
    parts, whole = parted(opened(folder) if gguf is None else gguf)
    checkpoint, whole = untied(checkpoint, parts, whole)
    out = checkpoint.but()
    # First what was trained or saved whole: PEFT keeps the base's embeddings beside an adapter of them.
    for name, tensor in whole.items():
        target = _whole_target(name, out.tensors, folder)
        base = out.tensors[target]
        if base.shape != tensor.shape:
            raise BadFile(
                f"{at(folder)}: tensor {name!r} has shape {tensor.shape}, expected {base.shape} as in the base"
            )
        out.tensors[target] = tensor.astype(base.type).renamed(target)
    for module, found in parts.items():
        name = _target(module, out.tensors, folder)
        out.tensors[name] = _merged(out.tensors[name], module, found, config, folder)
        if "B.bias" in found:
            name = name.removesuffix("weight") + "bias"
            if name not in out.tensors:
                raise BadFile(f"{at(folder)}: has a bias for {module!r}, which has none in the base model")
            out.tensors[name] = _biased(out.tensors[name], found["B.bias"], scale_of(config, module, folder)[1], folder)
    kind = "DoRA" if config.get("use_dora") else "LoRA"
    note = f"{kind} adapter {folder.name} merged into {len(parts)} tensors"
    note += f"; {len(whole)} replaced" if whole else ""
    notes = [note]
    start = str(config.get("init_lora_weights", ""))
    if start.lower().startswith(("pissa", "olora", "loftq", "corda")):
        notes.append(f"it was initialised by {start}, which changes the base: the base must be the one saved with it")
    out.notes += notes
    return out


def _from_gguf(path: Path, base: Checkpoint) -> Checkpoint:
    """An adapter's GGUF as PEFT's files."""
    found = formats.open(path)
    if not adapters.is_adapter(found):
        raise BadFile(f"{at(path)}: is no adapter, expected a PEFT adapter's folder or a GGUF made of one")
    return adapters.from_gguf(found, translate(base, "gguf").metadata)


def _target(module: str, tensors: Mapping[str, Tensor], folder: Path) -> str:
    for name in (f"{module}.weight", f"{module.removeprefix('model.')}.weight", f"model.{module}.weight"):
        if name in tensors:
            return name
    raise BadFile(
        f"{at(folder)}: adapts {module!r}, which the base model does not have; use the adapter's own base model"
    )


def _whole_target(name: str, tensors: Mapping[str, Tensor], folder: Path) -> str:
    for wanted in (name, name.replace(".modules_to_save.default", "").replace(".modules_to_save", "")):
        for candidate in (
            wanted,
            wanted.replace(".base_layer.", "."),
            wanted.removeprefix("model."),
            f"model.{wanted}",
        ):
            if candidate in tensors:
                return candidate
    raise BadFile(
        f"{at(folder)}: has tensor {name!r}, which the base model does not have; use the adapter's own base model"
    )


def _biased(base: Tensor, change: Tensor, scale: np.float32, folder: Path) -> Tensor:
    """A bias plus what the adapter adds to it."""
    if base.shape != change.shape or not change.type.is_float:
        raise BadFile(f"{at(folder)}: tensor {change.name!r} has shape {change.shape}, expected {base.shape}")
    values = base.numpy().astype(np.float32) + scale * change.numpy().astype(np.float32)
    return Tensor.from_array(base.name, values, base.type)


def _matrix(tensor: Tensor, rank: int, axis: int, folder: Path) -> NDArray[np.float32]:
    if len(tensor.shape) != 2 or not tensor.type.is_float:
        raise Unsupported(
            f"{at(folder)}: tensor {tensor.name!r} has shape {tensor.shape}; only linear layers are merged"
        )
    if tensor.shape[axis] != rank:
        raise BadFile(f"{at(folder)}: tensor {tensor.name!r} has shape {tensor.shape}, expected rank {rank}")
    return tensor.numpy().astype(np.float32)


def _lengths(magnitude: Tensor | None, count: int, folder: Path) -> NDArray[np.float32] | None:
    """DoRA's trained magnitudes, one for each output; None where there are none."""
    if magnitude is None:
        return None
    lengths = magnitude.numpy().astype(np.float32).reshape(-1)
    if lengths.shape != (count,):
        raise BadFile(f"{at(folder)}: tensor {magnitude.name!r} has {lengths.size} values, expected {count}")
    return lengths


def _stretch(lengths: NDArray[np.float32], norms: NDArray[Any]) -> NDArray[np.float32]:
    """What vectors of these norms are multiplied by to be of these lengths; nothing changes one of zeros."""
    norms = norms.astype(np.float32)
    return np.divide(lengths, np.where(norms == 0, np.float32(1), norms), dtype=np.float32)


def _merged(base: Tensor, module: str, found: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> Tensor:
    embedding = "embedding_A" in found
    a, b = (found.get("embedding_A"), found.get("embedding_B")) if embedding else (found.get("A"), found.get("B"))
    if a is None or b is None:
        raise BadFile(f"{at(folder)}: module {module!r} lacks lora_A or lora_B; fetch the adapter again")
    rank, scale = scale_of(config, module, folder)
    down, up = _matrix(a, rank, 0, folder), _matrix(b, rank, 1, folder)  # (r, in), (out, r)
    left, right = up, down  # the change is left @ right, row by row
    if embedding or config.get("fan_in_fan_out"):
        left, right = np.ascontiguousarray(down.T), np.ascontiguousarray(up.T)
    if base.shape != (left.shape[0], right.shape[1]):
        raise BadFile(
            f"{at(folder)}: adapts {base.name!r} of shape {base.shape} by a change of shape "
            f"{(left.shape[0], right.shape[1])}; use the adapter's own base model"
        )
    if not base.type.is_float or not base.type.can_encode():
        raise Unsupported(f"tensor {base.name!r} is {base.type.name}, into which nothing can be merged")
    by_columns = embedding or bool(config.get("fan_in_fan_out"))
    lengths = _lengths(found.get("magnitude_vector"), base.shape[1 if by_columns else 0], folder)

    def changed(start: int, stop: int) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = base.rows(start, stop).astype(np.float32) + scale * (left[start:stop] @ right)
        return rows

    @functools.cache
    def columns() -> NDArray[np.float32]:
        """What each column is multiplied by, for DoRA on a matrix that stands [in][out]."""
        assert lengths is not None
        squares, step = np.zeros(base.row_len), max(1, (1 << 22) // max(1, base.row_len))
        for start in range(0, base.n_rows, step):
            squares += np.square(changed(start, min(start + step, base.n_rows)), dtype=np.float64).sum(axis=0)
        return _stretch(lengths, np.sqrt(squares))

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        before = base.rows(start, stop).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            rows = changed(start, stop)
            if lengths is not None and by_columns:
                rows *= columns()
            elif lengths is not None:
                rows *= _stretch(lengths[start:stop], np.linalg.norm(rows, axis=1))[:, None]
        stored = base.type.encode(rows)
        lost = ~np.isfinite(base.type.decode(stored).astype(np.float32)) & np.isfinite(before)
        if lost.any():
            row, column = (int(n) for n in np.argwhere(lost)[0])
            raise Unsupported(
                f"{at(folder)}: merged, {base.name!r} is {rows[row, column]:g} at {[start + row, column]}, which "
                f"{base.type.name} can't hold; convert the base model to f32 first"
            )
        return stored

    return dataclasses.replace(base, read=read, extent=None)
