"""Causal masks that a document keeps beside its weights: said in a word instead of kept, and written out again."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from llmconv.formats.documents.document import Ref, Slot, inline
from llmconv.formats.limits import too_large
from llmconv.formats.tensor import Tensor

__all__ = ["again", "said"]

_TRIANGLE = "triangle "


def said(slot: Slot, tensor: Tensor) -> Ref | None:
    """What stands for a lower triangle of ones in a document's text; None for any other array."""
    if len(tensor.shape) < 2 or tensor.shape[-1] != tensor.shape[-2]:
        return None
    values = tensor.numpy()
    if not np.array_equal(values, np.broadcast_to(np.tri(tensor.shape[-1]), values.shape)):
        return None
    if getattr(slot, "raw", "") or (not isinstance(slot.ints, str) and slot.ints):
        return None  # bytes, or numbers written in more ways than one
    return Ref(_TRIANGLE + json.dumps([tensor.shape, slot.shape, slot.form, slot.ints, slot.kind]))


def again(text: str) -> Any:
    """The numbers that `said` stands for; None for another reference.  `ValueError` where it would not say so."""
    if not text.startswith(_TRIANGLE):
        return None
    shape, nested, form, ints, kind = json.loads(text.removeprefix(_TRIANGLE))
    if too_large(shape) or int(np.prod(shape)) > 1 << 24 or shape[-1] != shape[-2]:
        raise ValueError("a mask of impossible size")
    values = np.broadcast_to(np.tri(shape[-1]), shape)
    slot = Slot("", tuple(nested), form, ints if isinstance(ints, str) else tuple(ints), kind)
    return inline(slot, Tensor.from_array("", np.ascontiguousarray(values)))
