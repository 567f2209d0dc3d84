"""`--outtype`: the same model in another plain float type, lazily, with what that rounds measured as it streams.

Vectors (norms, biases) stay F32 in a GGUF that is asked for in 16 bits, as the ecosystem has them.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.tables.storage import is_typical, stored_in
from llmconv.errors import UnknownName, Unsupported, UsageError
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.sharing.team import current
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import block, plain
from llmconv.quant.filetypes import ALIASES, FILE_TYPES, number_of

__all__ = ["OUTTYPES", "Rounding", "cast", "check_outtype", "stated_rounding"]

OUTTYPES = ("auto", "f64", "f32", "f16", "bf16")
_MEANT = {
    "fp64": "f64", "double": "f64", "float64": "f64", "fp32": "f32", "float": "f32", "float32": "f32", "fp16": "f16",
    "half": "f16", "float16": "f16", "bfloat16": "bf16", "bfloat": "bf16", "fp": "f16",
}  # fmt: skip

_BY_NAME: dict[str, BlockClass] = {"f64": plain.F64, "f32": plain.F32, "f16": plain.F16, "bf16": plain.BF16}
# Narrow -> wide pairs that round nothing.
_F8 = (plain.F8_E4M3, plain.F8_E5M2, plain.F8_E8M0, plain.F8_E4M3FNUZ, plain.F8_E5M2FNUZ)
_EXACT: set[tuple[BlockClass, BlockClass]] = {
    (a, b) for a in (*_F8, plain.F16, plain.BF16) for b in (plain.F32, plain.F64)
}
_EXACT |= {(plain.F32, plain.F64)}
_EXACT |= {(a, plain.BF16) for a in _F8}
_BLOCK = 1 << 16  # values measured at a time, so that they stay in the cache


class Rounding:
    """The largest relative error, |rounded - value| / |value|, of all values cast so far, and where it is."""

    def __init__(self, allow_overflow: bool = False):
        self.allow_overflow = allow_overflow
        self.largest = 0.0
        self.tensor = ""
        self.overflows = 0
        """Values that became infinite."""
        self.underflows = 0
        """Values that became zero (their relative error is 1, and not counted in `largest`)."""
        self._lock = threading.Lock()

    def cast(self, tensor: Tensor, to: BlockClass) -> Tensor:
        """The tensor as `to`, measured whenever it is read."""
        if tensor.type is to:
            return tensor
        if (tensor.type, to) in _EXACT:
            return tensor.astype(to)
        assert to.dtype is not None
        dtype, source = to.dtype, tensor

        def read(start: int, stop: int) -> NDArray[np.uint8]:
            values = source.rows(start, stop)
            with np.errstate(over="ignore", under="ignore"):
                rounded = np.ascontiguousarray(values.astype(dtype))
            self._measure(source, start, values.reshape(-1), rounded.reshape(-1), to)
            return rounded.view(np.uint8).reshape(stop - start, -1)

        return dataclasses.replace(tensor, type=to, read=read, extent=None)

    def _measure(self, tensor: Tensor, start: int, values: Any, rounded: Any, to: BlockClass) -> None:
        largest, over, under = 0.0, 0, 0
        for lo in range(0, values.size, _BLOCK):
            before = values[lo : lo + _BLOCK]
            wide = np.float64 if before.dtype.itemsize == 8 else np.float32
            before = before.astype(wide, copy=False)
            after = rounded[lo : lo + _BLOCK].astype(wide)
            with np.errstate(all="ignore"):
                error = np.abs(after - before) / np.abs(before)
            worst = float(error.max(initial=0.0))
            if not worst < 1:  # an infinity, a NaN or a zero among them
                lost = np.isfinite(before) & np.isinf(after)
                if lost.any() and not self.allow_overflow:
                    raise self._overflow(tensor, start * tensor.row_len + lo + int(np.flatnonzero(lost)[0]), to)
                gone = (after == 0) & (before != 0)
                over, under = over + int(lost.sum()), under + int(gone.sum())
                worst = float(error[np.isfinite(error) & ~gone].max(initial=0.0))
            largest = max(largest, worst)
        with self._lock:
            self.overflows += over
            self.underflows += under
            if largest > self.largest:
                self.largest, self.tensor = largest, tensor.name

    def settle(self) -> None:
        """Of several processes, each of which has cast some tensors: what all of them have measured."""
        team = current()
        if team is None:
            return
        found = team.all((self.largest, self.tensor, self.overflows, self.underflows))
        self.largest, self.tensor = max((largest, tensor) for largest, tensor, *_ in found)
        self.overflows, self.underflows = (sum(part[i] for part in found) for i in (2, 3))

    @staticmethod
    def _overflow(tensor: Tensor, flat: int, to: BlockClass) -> Unsupported:
        index = [int(i) for i in np.unravel_index(flat, tensor.shape)] if tensor.shape else []
        row, column = divmod(flat, tensor.row_len)
        value = float(tensor.rows(row, row + 1)[0, column])
        limit = {"F16": "65504", "BF16": "3.39e38", "F32": "3.4e38"}.get(to.name, "its range")
        way = "--outtype f64" if abs(value) > 3.4e38 else "--outtype bf16"
        return Unsupported(
            f"tensor {tensor.name!r} is {value:g} at {index}, beyond {limit}, which {to.name.lower()} can't hold; "
            f"use {way}, or --allow-overflow to let it become infinite"
        )


def check_outtype(outtype: str) -> None:
    """`UsageError` unless it is one of `OUTTYPES`; it says how to get a type that only `quantize` makes."""
    if outtype in OUTTYPES:
        return
    if outtype.upper() in {*FILE_TYPES, *ALIASES, *block.names()}:
        kind = outtype.upper()
        raise UsageError(
            f"a conversion rounds to {', '.join(OUTTYPES[1:])}; for {kind}: llmconv quantize MODEL -t {kind}"
        )
    raise UnknownName("output type", outtype, OUTTYPES, meant=_MEANT)


def cast(
    checkpoint: Checkpoint, outtype: str, rounding: Rounding, *, to: str, from_document: bool = False
) -> Checkpoint:
    """The checkpoint in `outtype`: "auto", "f64", "f32", "f16" or "bf16".

    to: the dialect of the container it is meant for ("gguf", "hf", "json", ...).
    from_document: whether it comes from JSON or MessagePack; then "auto" means f32.
    """
    check_outtype(outtype)
    if outtype == "auto":
        if not from_document or to == "json":
            return _described(checkpoint, to)
        outtype = "f32"
    target, projector = _BY_NAME[outtype], _projector(checkpoint)
    out = dataclasses.replace(checkpoint, tensors={}, metadata=dict(checkpoint.metadata))
    for name, tensor in checkpoint.tensors.items():
        kind = stored_in(tensor, target, projector) if to == "gguf" else target
        out.tensors[name] = rounding.cast(tensor, kind) if tensor.type.is_float else tensor
    return _described(out, to)


def _projector(checkpoint: Checkpoint) -> str:
    """A tower's kind, "" for any other model."""
    return str(checkpoint.metadata.get("clip.projector_type", ""))


def _described(checkpoint: Checkpoint, to: str) -> Checkpoint:
    """With a `general.file_type` that fits the types of the weights, where they are all plain."""
    if to != "gguf":
        return checkpoint
    sizes: Counter[BlockClass] = Counter()
    projector = _projector(checkpoint)
    for tensor in checkpoint.tensors.values():
        if not tensor.type.is_plain():
            return checkpoint
        if is_typical(tensor, projector):
            sizes[tensor.type] += tensor.n_elements
    main = sizes.most_common(1)[0][0] if sizes else plain.F32
    key = "general.file_type"
    if key not in checkpoint.metadata and checkpoint.format == "gguf":
        return checkpoint  # somebody's file stays as it is
    metadata = {k: v for k, v in checkpoint.metadata.items() if k != key}
    if (number := number_of(main.name)) is not None:
        place = "general.name" if "general.name" in metadata else "general.architecture"
        ordered: dict[str, Any] = {}
        for k, v in metadata.items():
            ordered[k] = v
            if k == place:
                ordered[key] = np.uint32(number)
        metadata = ordered
    return dataclasses.replace(checkpoint, metadata=metadata)


def stated_rounding(before: Checkpoint, after: Checkpoint) -> str:
    """What a cast rounds, in words: "F64 to F32", or "none"."""
    pairs = {(t.type, after.tensors[name].type) for name, t in before.tensors.items() if name in after.tensors}
    lossy = sorted(f"{a.name} to {b.name}" for a, b in pairs if a is not b and (a, b) not in _EXACT)
    return ", ".join(lossy) or "none"
