"""What differs between two files, in their own terms: metadata keys and tensor lists, nothing translated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.show import Shown

__all__ = ["Difference", "diff_checkpoints"]


@dataclass(frozen=True)
class Difference(Shown):
    """One line of a diff.

    kind: "metadata", "tensor" or "file"; name: the key, tensor or side file;
    a, b: what it is in each, as text; None where it is absent.
    """

    kind: str
    name: str
    a: str | None
    b: str | None


def _text(value: Any) -> str:
    """A metadata value with its type, short enough for a line; equal texts mean equal values."""
    if isinstance(value, np.ndarray):
        head = ", ".join(map(str, value.reshape(-1)[:4].tolist()))
        return f"{value.dtype}[{value.size}] {head}{', …' if value.size > 4 else ''}"
    if isinstance(value, np.generic):
        return f"{value.dtype} {value.item()}"
    if isinstance(value, str):
        return f"str {value!r}"
    if hasattr(value, "__len__") and not isinstance(value, dict):
        head = ", ".join(repr(item) for item in list(value[:4]))
        return f"array[{len(value)}] {head}{', …' if len(value) > 4 else ''}"
    return f"{type(value).__name__} {value!r}"


def _same(a: Any, b: Any) -> bool:
    if _text(a) != _text(b):
        return False
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if hasattr(a, "__len__") and not isinstance(a, str | dict):
        return len(a) == len(b) and all(x == y for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _layout(tensor: Tensor) -> str:
    return f"{tensor.type.name} {list(tensor.shape)}"


def diff_checkpoints(a: Checkpoint, b: Checkpoint) -> list[Difference]:
    """Every metadata key, tensor (by type and shape) and side file that differs, in A's order, then B's."""
    found: list[Difference] = []
    for key in {**a.metadata, **b.metadata}:
        in_a, in_b = key in a.metadata, key in b.metadata
        if in_a and in_b and _same(a.metadata[key], b.metadata[key]):
            continue
        texts = [_text(c.metadata[key]) if key in c.metadata else None for c in (a, b)]
        found.append(Difference("metadata", key, *texts))
    for name in {**a.tensors, **b.tensors}:
        layouts = [_layout(c.tensors[name]) if name in c.tensors else None for c in (a, b)]
        if layouts[0] != layouts[1]:
            found.append(Difference("tensor", name, *layouts))
    for name in {**a.files, **b.files}:
        data = [c.file(name) for c in (a, b)]
        if data[0] != data[1]:
            sizes = [None if d is None else f"{len(d):,} bytes" for d in data]
            found.append(Difference("file", name, *sizes))
    return found
