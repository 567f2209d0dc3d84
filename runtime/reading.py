"""From a file's tensors into a model's: slab by slab to where they will live, with no second copy in host memory."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from llmconv.errors import BadWeight, cut
from llmconv.formats.source import read_extent
from llmconv.formats.tensor import SLAB_BYTES, Tensor

__all__ = ["PLAIN", "fill_tensor", "put", "read_tensor", "room", "slots_of", "tensor_of"]

T = TypeVar("T")

_ALIGNMENT = 64  # bytes: a vector never crosses a cache line
PLAIN = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def slots_of(model: torch.nn.Module) -> dict[str, tuple[torch.nn.Module, str]]:
    """Where a model's parameters and buffers are: a module, and what they are called there; by tensor name."""
    slots: dict[str, tuple[torch.nn.Module, str]] = {}
    for prefix, module in model.named_modules():
        for part in (*module._parameters, *module._buffers):
            if getattr(module, part) is not None:
                slots[f"{prefix}.{part}" if prefix else part] = (module, part)
    return slots


def tensor_of(tensors: Mapping[str, T], name: str) -> T:
    """The tensor of a parameter or buffer: buffers' names have no ".weight", the tensors of some norms have none."""
    found = (tensors.get(n) for n in (name, f"{name}.weight", name.removesuffix(".weight")))
    tensor = next((t for t in found if t is not None), None)
    assert tensor is not None, name
    return tensor


def put(module: torch.nn.Module, part: str, values: torch.Tensor) -> None:
    """Give a parameter or buffer its storage; a parameter that is fixed stays so."""
    if part in module._parameters:
        old = module._parameters[part]
        trained = values.is_floating_point() and (old is None or old.requires_grad)
        module._parameters[part] = torch.nn.Parameter(values, requires_grad=trained)
    else:
        module._buffers[part] = values


def read_tensor(tensor: Tensor, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor's blocks (dtype uint8) or numbers, on the device, read slab by slab, or at once where they will live."""
    return fill_tensor(tensor, room(shape, dtype, device))


def room(shape: Sequence[int], dtype: torch.dtype, device: torch.device | None = None) -> torch.Tensor:
    """Memory for a tensor.  On the CPU it is numpy's, which asks the system for large pages: of a token's time, which
    goes by all weights once, a quarter would be spent on finding small ones."""
    if device is not None and device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    nbytes = math.prod(shape) * dtype.itemsize
    found = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -found.ctypes.data % _ALIGNMENT
    return torch.from_numpy(found[start : start + nbytes]).view(dtype).view(tuple(shape))


def _copied(to: torch.Tensor, values: torch.Tensor) -> None:
    to.copy_(values)


def fill_tensor(
    tensor: Tensor, out: torch.Tensor, copied: Callable[[torch.Tensor, torch.Tensor], None] = _copied
) -> torch.Tensor:
    """`out` with a tensor's blocks (dtype uint8) or numbers in it.   copied: brings rows from host memory there."""
    device, dtype = out.device, out.dtype
    if device.type == "meta" or not out.numel():
        return out
    rows = out.view(tensor.n_rows, -1)
    raw = dtype == torch.uint8 or PLAIN.get(tensor.type.name) == dtype
    flat = rows.view(torch.uint8) if raw else rows
    if raw and tensor.extent is not None and device.type == "cpu":
        read_extent(tensor.extent, flat.view(-1).numpy().data)
        return out
    for start, stop in tensor.slabs(4 * SLAB_BYTES):
        source = tensor.blocks(start, stop) if raw else _numbers(tensor, start, stop)
        if dtype == torch.float16 and not raw:
            _check_fits(tensor, start, source)
        copied(flat[start:stop], _from_numpy(source))
    return out


_FIRST_INFINITE = 65520.0
"""What rounds to infinity in float16, whose largest number is 65504."""


def _check_fits(tensor: Tensor, start: int, values: Any) -> None:
    """`BadWeight` for rows, from `start` on, with a finite number that float16 can't hold."""
    over = (np.abs(values) >= _FIRST_INFINITE) & np.isfinite(values)
    if over.any():
        row, column = np.unravel_index(int(over.argmax()), over.shape)
        value = float(values[row, column])
        raise BadWeight(
            f"tensor {cut(tensor.name)} holds {value:g}, which float16 can't; use --dtype bf16 or f32",
            tensor=tensor.name,
            index=(start + int(row), int(column)),
            value=value,
            type="F16",
        )


def _numbers(tensor: Tensor, start: int, stop: int) -> Any:
    """Values of some rows in a dtype that torch knows."""
    values = tensor.rows(start, stop)
    if tensor.type.name not in PLAIN or tensor.type.name == "BF16":
        values = values.astype(np.float32)
    return values


def _from_numpy(array: Any) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a mapped file is read-only; it is only read
        return torch.from_numpy(np.ascontiguousarray(array))
