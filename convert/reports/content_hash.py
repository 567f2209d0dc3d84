"""A hash of what a model *is*: its tensors' names, shapes and values, whatever file they lie in.

A tensor's hash is SHA-256 over its canonical name, its shape and its values as little-endian float32, the widest
form that every stored float type (F16, BF16, fp8, the block types) decodes to exactly; so a bf16 weight and the same
weight widened to F32 hash alike.  A float64 tensor with a value that float32 can't hold is hashed as float64;
integers and booleans as int64.  The model's hash is SHA-256 over its tensors' hashes, sorted by name: independent of
the container and of the tensors' order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.towers import translate as towers
from llmconv.convert.translate import translate
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.progress import Meter
from llmconv.show import Shown

__all__ = ["ContentHash", "content_hash", "tensor_hash"]


@dataclass(frozen=True)
class ContentHash(Shown):
    """model: hex SHA-256 of the whole; tensors: canonical name -> hex SHA-256."""

    model: str
    tensors: dict[str, str]


def tensor_hash(tensor: Tensor, meter: Callable[[int], None] | None = None) -> str:
    """Hex SHA-256 of one tensor (name, shape, values), read slab by slab: one is hashed while the next is read.

    `meter` is called with the stored bytes of each slab done.
    """
    with ThreadPoolExecutor(1) as pool:
        return _tensor_hash(tensor, meter, pool)


def _tensor_hash(tensor: Tensor, meter: Callable[[int], None] | None, pool: ThreadPoolExecutor) -> str:
    head = f"{tensor.name}\0{','.join(map(str, tensor.shape))}\0".encode()
    plain = tensor.type.dtype
    narrow, wide = hashlib.sha256(head + b"float"), hashlib.sha256(head + b"double")
    whole, exact = hashlib.sha256(head + b"int"), True
    busy: list[Future[None]] = []

    def take(found: Any, values: NDArray[Any]) -> None:
        while busy:
            busy.pop().result()
        busy.append(pool.submit(found.update, values.data))

    for start, stop in tensor.slabs():
        values = tensor.rows(start, stop)
        if not tensor.type.is_float and plain is not None and plain.kind in "iub":
            take(whole, np.ascontiguousarray(values.astype("<i8")))
        elif plain is not None and plain.itemsize == 8 and plain.kind == "f":
            with np.errstate(over="ignore", invalid="ignore"):
                single = values.astype("<f4")
            exact = exact and np.array_equal(single.astype("<f8"), values, equal_nan=True)
            if exact:
                take(narrow, single)
            take(wide, np.ascontiguousarray(values, "<f8"))
        elif plain is not None and plain.kind == "c":
            exact = False
            take(wide, np.ascontiguousarray(values))
        else:
            take(narrow, np.ascontiguousarray(values, "<f4"))
        if meter:
            meter((stop - start) * tensor.row_bytes)
    for last in busy:
        last.result()
    if not tensor.type.is_float and plain is not None and plain.kind in "iub":
        return whole.hexdigest()
    return (narrow if exact else wide).hexdigest()


def content_hash(checkpoint: Checkpoint, meter: Meter | None = None) -> ContentHash:
    """The content hash of a checkpoint of any dialect, over its canonical form; streaming.

    `meter` is called with (bytes just done, tensor name).
    """
    text, tower = towers.halves(checkpoint)
    canonical = translate(text, "gguf")
    if tower is not None:
        canonical = canonical.but(tensors={**canonical.tensors, **tower.tensors})
    tensors = {}
    for name, tensor in sorted(canonical.tensors.items()):
        step = (lambda n, name=name: meter(n, name)) if meter else None
        tensors[name] = tensor_hash(tensor, step)
    model = hashlib.sha256("".join(f"{name}\0{digest}\n" for name, digest in tensors.items()).encode())
    return ContentHash(model.hexdigest(), tensors)
