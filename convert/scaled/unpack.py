"""Hugging Face models stored as integers or fp8 with scales, read as the floats they stand for.

| stored as | a layer's tensors |
|---|---|
| fp8, scales by block (DeepSeek-V3, Qwen3-FP8) | `weight` F8_E4M3 (n, k), `weight_scale_inv` (n / b0, k / b1) |
| fp8, scales by row or tensor (compressed-tensors, FBGEMM, ModelOpt) | `weight` F8, `weight_scale` (n, 1) or one |
| int8, scales by row (compressed-tensors) | `weight` I8 or `weight_packed`, `weight_scale` (n, 1) |

A value is the stored weight times its scale, computed in float32 as the models' own loaders do; the tensors are F32
from then on.  Scales of activations and key/value caches (`input_scale`, `k_scale`, ...) have no place in a float model
and are left out.
MXFP4 (gpt-oss) is repacked without loss by `convert.tables.ops.PackMxfp4` instead.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.tables.config import read_config
from llmconv.errors import BadFile, Unsupported
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import int8, plain
from llmconv.quant.block import Bytes

__all__ = ["unpack"]

_SCALES = ("_scale_inv", "_scale")  # `_scale_inv` is a factor too, in spite of its name
_DROPPED = (".input_scale", ".k_scale", ".v_scale", ".q_scale", ".input_scale_ub", ".activation_scale")
_KNOWN = {"fp8", "compressed-tensors", "fbgemm_fp8", "modelopt", "mxfp4"}
_STORED = (plain.F8_E4M3, plain.F8_E5M2, plain.F8_E4M3FNUZ, plain.F8_E5M2FNUZ, plain.I8)


def unpack(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with every pair of stored weights and scales as one lazy F32 tensor; itself when there is none.

    config.json loses its `quantization_config` then, and a note in `notes` says so.  Raises `Unsupported` for
    other ways of quantizing (GPTQ, AWQ, ...), `BadFile` when scales and weights don't fit each other.
    """
    where = checkpoint.where
    config = read_config(checkpoint)
    settings = config.get("quantization_config")
    if settings is not None and not isinstance(settings, Mapping):
        raise BadFile(f"{where}: config.json: quantization_config is {settings!r:.60}, expected an object")
    settings = settings or {}
    method = settings.get("quant_method")
    if method is not None and (not isinstance(method, str) or method not in _KNOWN):
        raise Unsupported(
            f"{where}: is quantized with {method!r}, which can't be read; give the original model, or one in fp8, int8 "
            "or MXFP4"
        )
    block = _block(settings, where)
    tensors: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, tensor in checkpoint.tensors.items():
        scale = _scale_of(name.removesuffix("_packed"), checkpoint.tensors)
        if name.endswith("_packed") and scale is not None and tensor.type is plain.I32:
            shape = checkpoint.tensors.get(name.removesuffix("_packed") + "_shape")
            made = _unpacked(tensor, scale, shape, where)
            used |= {scale.name, *([shape.name] if shape else [])}
            tensors[made.name] = made
        elif scale is not None and tensor.type in _STORED:
            tensors[name] = _scaled(tensor, scale, block, where)
            used.add(scale.name)
        else:
            tensors[name] = tensor
    if not used:
        return checkpoint
    dropped = used | {name for name in tensors if name.endswith(_DROPPED)}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    config.pop("quantization_config", None)
    files: dict[str, Path | bytes] = dict(checkpoint.files)
    if "config.json" in files:
        files["config.json"] = json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
    note = f"{len(used)} weights stored with scales ({method or 'by their names'}) were read as F32"
    return checkpoint.but(note, tensors=tensors, files=files)


def _block(settings: Mapping[str, Any], where: str) -> tuple[int, int]:
    """Rows and columns that share a scale, where scales are by block."""
    size = settings.get("weight_block_size") or [128, 128]
    if isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) and 0 < n <= 1 << 20 for n in size):
        return size[0], size[1]
    raise BadFile(f"{where}: config.json's weight_block_size is {size!r}, expected two numbers such as [128, 128]")


def _scale_of(name: str, tensors: Mapping[str, Tensor]) -> Tensor | None:
    return next((tensors[name + end] for end in _SCALES if name + end in tensors), None)


def _scaled(tensor: Tensor, scale: Tensor, block: tuple[int, int], where: str) -> Tensor:
    """Stored weights times their scales."""
    factors, rows_each, columns_each = _factors(tensor, scale, block, where)
    n = tensor.shape[-2] if len(tensor.shape) > 1 else 1
    assert tensor.type.dtype is not None
    lookup = np.arange(256, dtype=np.uint8).view(tensor.type.dtype).astype(np.float32)
    scale_rows = -(-n // rows_each)

    def read(start: int, stop: int) -> Bytes:
        rows = np.arange(start, stop)
        values = lookup[tensor.read(start, stop)]
        own = factors[np.minimum(rows // n * scale_rows + rows % n // rows_each, len(factors) - 1)]
        if own.shape[1] > 1:
            own = np.repeat(own, columns_each, axis=1)[:, : tensor.row_len]
        values *= own
        return values.view(np.uint8)

    return Tensor(tensor.name, tensor.shape, plain.F32, read)


def _factors(tensor: Tensor, scale: Tensor, block: tuple[int, int], where: str) -> tuple[NDArray[np.float32], int, int]:
    """Scales as (rows, columns) float32, and how many rows and columns of the weights share one."""
    *lead, n, k = tensor.shape if len(tensor.shape) > 1 else (1, *tensor.shape)
    stacked = math.prod(lead)
    if not scale.type.is_float or scale.type.dtype is None:
        raise BadFile(f"{where}: tensor {scale.name!r} is {scale.type.name}, expected floats; the model is damaged")
    count, by_block = scale.n_elements, (-(-n // block[0]), -(-k // block[1]))
    if count == 1:
        shape, shared = (1, 1), (n, k)
    elif scale.shape == (*lead, *by_block):
        shape, shared = (stacked * by_block[0], by_block[1]), block
    elif count == stacked * n and scale.shape[-1] in (1, n):
        shape, shared = (stacked * n, 1), (1, k)
    elif count == stacked and lead:
        shape, shared = (stacked, 1), (n, k)
    else:
        raise BadFile(
            f"{where}: tensor {scale.name!r} of shape {scale.shape} does not scale {tensor.name!r} of shape "
            f"{tensor.shape}; expected one scale, one a row, or one for each block of {block[0]} x {block[1]}"
        )
    return np.ascontiguousarray(scale.rows().astype(np.float32).reshape(shape)), *shared


def _unpacked(packed: Tensor, scale: Tensor, shape: Tensor | None, where: str) -> Tensor:
    """Four integers a word (`quant.int8.pack`) times their scales."""
    name = packed.name.removesuffix("_packed")
    sizes = [] if shape is None or shape.n_elements != 2 else [int(n) for n in shape.rows().reshape(-1)]
    if len(sizes) != 2 or len(packed.shape) != 2 or packed.shape != (sizes[0], -(-sizes[1] // 4)):
        raise BadFile(
            f"{where}: tensor {packed.name!r} of shape {packed.shape} does not hold 8-bit weights of shape {sizes}; "
            "only INT8 can be read, give the original model"
        )
    n, k = sizes

    def read(start: int, stop: int) -> Bytes:
        return int8.unpack(packed.rows(start, stop), k).view(np.uint8)

    return _scaled(Tensor(name, (n, k), plain.I8, read), scale, (1, k), where)
