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
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.scaled.unpack import unpack
from llmconv.convert.writing.untie import untied
from llmconv.errors import BadFile, Unsupported, at
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.foreign import torch_file
from llmconv.formats.safetensors_header import read_tensors
from llmconv.formats.tensor import Tensor

__all__ = ["merge"]

_NOT_MERGED = (
    *("layer_replication", "trainable_token_indices", "target_parameters", "alora_invocation_tokens", "use_qalora"),
    *("use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "velora_config", "megatron_config"),
)
"""Settings of an adapter that make it something else than W + s · B A of whole layers."""
_PREFIX = "base_model.model."
_PART = re.compile(
    r"(?P<module>.+)\.lora_(?P<kind>embedding_A|embedding_B|A|B|magnitude_vector)(\.(?!bias$)\w+)??(\.weight)?(?P<bias>\.bias)?"
)


def merge(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The model with the adapter of `folder` merged in.

    checkpoint: in Hugging Face's dialect (`translate(…, "hf")`).
    folder: adapter_config.json with adapter_model.safetensors or adapter_model.bin.

    Raises `BadFile` for an adapter that does not fit the model, `Unsupported` for kinds other than LoRA and DoRA.
    """
    checkpoint = unpack(checkpoint)  # into the weights, never into the numbers they are stored as
    config = _config(folder)
    parts, whole = _adapter(folder)
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
            out.tensors[name] = _biased(out.tensors[name], found["B.bias"], _scale(config, module, folder)[1], folder)
    kind = "DoRA" if config.get("use_dora") else "LoRA"
    note = f"{kind} adapter {folder.name} merged into {len(parts)} tensors"
    note += f"; {len(whole)} replaced" if whole else ""
    notes = [note]
    start = str(config.get("init_lora_weights", ""))
    if start.lower().startswith(("pissa", "olora", "loftq", "corda")):
        notes.append(f"it was initialised by {start}, which changes the base: the base must be the one saved with it")
    out.notes += notes
    return out


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise BadFile(f"{at(folder)}: has no adapter_config.json, expected a PEFT adapter's folder")
    try:
        config = json.loads(path.read_bytes())
        if not isinstance(config, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise BadFile(f"{at(path)}: is not a JSON object; fetch it again") from None
    for setting in _NOT_MERGED:
        if config.get(setting):
            raise Unsupported(
                f"{at(path)}: {setting} is set, which can't be merged; merge the adapter with PEFT itself"
            )
    if str(config.get("peft_type", "LORA")).upper() != "LORA":
        raise Unsupported(f"{at(path)}: peft_type is {config['peft_type']!r}; only LORA adapters are merged")
    return config


def _adapter(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """(module -> its lora_A, lora_B, ...; tensors trained whole)."""
    loose, packed = folder / "adapter_model.safetensors", folder / "adapter_model.bin"
    if loose.is_file():
        opened = Checkpoint(source=loose)
        read_tensors(opened, loose)
    elif packed.is_file():
        opened = torch_file.open(packed)
    else:
        raise BadFile(f"{at(folder)}: has no adapter_model.safetensors or .bin, expected a PEFT adapter's folder")
    parts: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, tensor in opened.tensors.items():
        bare = name.removeprefix(_PREFIX)
        match = _PART.fullmatch(bare)
        if match:
            parts.setdefault(match["module"], {})[match["kind"] + (match["bias"] or "")] = tensor
        else:
            whole[bare] = tensor
    return parts, whole


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


def _pattern(patterns: Any, module: str, default: Any) -> Any:
    """PEFT's rank_pattern and alpha_pattern: a key is the end of a module's name, or a regular expression for it."""
    for key, value in patterns.items() if isinstance(patterns, dict) else ():
        try:
            if re.fullmatch(rf"(.*\.)?({key})", module):
                return value
        except re.error:
            continue
    return default


def _scale(config: Mapping[str, Any], module: str, folder: Path) -> tuple[int, np.float32]:
    """A module's rank r, and what its B A is multiplied by.  PEFT's defaults where the file leaves them out."""
    rank = _pattern(config.get("rank_pattern"), module, config.get("r", 8))
    alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    numbers = all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in (rank, alpha))
    if not numbers or not isinstance(rank, int) or rank < 1:
        raise BadFile(f"{at(folder)}: adapter_config.json gives r {rank!r} and lora_alpha {alpha!r}, expected numbers")
    return rank, np.float32(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


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
    rank, scale = _scale(config, module, folder)
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
