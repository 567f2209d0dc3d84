"""A table's rows against the tensors of a model folder: which are there, and are they what config.json says?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llmconv.convert.tables.architecture import SERIES, Architecture, Form, Slot
from llmconv.convert.tables.ops import PackMxfp4
from llmconv.errors import BadFile, LlmconvError
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import by_name, plain

__all__ = ["check_shapes", "check_types", "find", "first_missing", "left_out", "more", "prefix_of", "shown"]


def prefix_of(arch: Architecture, dims: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The prefix under which most of the first layer's tensors are."""

    def score(prefix: str) -> int:
        first = arch.slots({**dims, "n_layer": min(1, dims["n_layer"])})
        return sum(find(slot, prefix, tensors) is not None for slot in first)

    return max(arch.prefixes, key=score)  # the first of equals


def find(slot: Slot, prefix: str, tensors: Mapping[str, Tensor]) -> tuple[int, tuple[str, ...]] | None:
    """The first form of the row whose tensors are all there."""
    for number, form in enumerate(slot.row.forms):
        if _too_many(slot, form, len(tensors)):
            continue  # a count that the file can't have
        names = slot.hf(number, prefix)
        if names and all(name in tensors for name in names):
            return number, names
    return None


def first_missing(slot: Slot, prefix: str, tensors: Mapping[str, Tensor]) -> str:
    """The tensor to name where no form of a row is there whole."""
    if _too_many(slot, slot.row.forms[0], len(tensors)):
        return slot.row.forms[0].hf[0].replace("{p}", prefix).replace("{i}", str(slot.dims["i"]))
    return next((name for name in slot.hf(0, prefix) if name not in tensors), slot.gguf[0])


def _too_many(slot: Slot, form: Form, count: int) -> bool:
    return any(series in name and slot.dims.get(n, 0) > count for name in form.hf for series, n in SERIES.items())


def check_shapes(where: str, slot: Slot, form: int, parts: tuple[Tensor, ...]) -> None:
    """Whether the tensors have the shapes that undoing the ops on the expected GGUF shapes would give."""
    ops = slot.row.forms[form].ops
    kind = by_name("MXFP4") if any(isinstance(op, PackMxfp4) for op in ops) else plain.F32
    expected = _shadow(slot, kind)
    try:
        for op in reversed(ops):
            expected = op.undo(expected, slot.dims)
    except LlmconvError as error:
        raise BadFile(f"{where}: config.json contradicts itself about {parts[0].name!r}: {error}") from None
    for part, want in zip(parts, expected, strict=True):
        if part.shape != want.shape:
            raise BadFile(
                f"{where}: tensor {part.name!r} has shape {shown(part.shape)}, expected {shown(want.shape)} "
                "by config.json"
            )


def check_types(where: str, slot: Slot, form: int, parts: tuple[Tensor, ...]) -> None:
    """Whether the weights are floats: whole numbers mean nothing without scales, which `packed` has looked for."""
    if any(isinstance(op, PackMxfp4) for op in slot.row.forms[form].ops):
        return
    for part in parts:
        if part.type.is_plain() and not part.type.is_float:
            raise BadFile(
                f"{where}: tensor {part.name!r} is {part.type.name}, expected floats: nothing says what its numbers "
                "stand for; give the original model"
            )


def _shadow(slot: Slot, kind: BlockClass) -> tuple[Tensor, ...]:
    def read(start: int, stop: int) -> Any:
        raise AssertionError("a shape has no bytes")

    return tuple(Tensor(name, shape, kind, read) for name, shape in zip(slot.gguf, slot.shapes, strict=True))


def left_out(where: str, arch: Architecture, extra: list[str], strict: bool) -> list[str]:
    """Notes about tensors that are not converted; `BadFile` in strict mode for those that the table does not drop."""
    derived = [n for n in extra if any(re.fullmatch(pattern, n) for pattern in arch.dropped)]
    known = set(derived)
    unknown = [n for n in extra if n not in known]
    if unknown and strict:
        raise BadFile(
            f"{where}: tensor {unknown[0]!r}{more(unknown)} is none that a {arch.gguf} model has; "
            "--no-strict leaves such tensors out"
        )
    notes = [f"left out, unknown to {arch.gguf}: {n}" for n in unknown]
    if derived:
        notes.append(f"left out, computed from the configuration: {derived[0]}{more(derived)}")
    return notes


def shown(shape: tuple[int, ...]) -> str:
    """A shape in a message: [4, 8]."""
    return "[" + ", ".join(map(str, shape)) + "]"


def more(names: list[str]) -> str:
    """What follows the first of several names in a message."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
