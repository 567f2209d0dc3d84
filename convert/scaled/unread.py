"""Schemes that are recognised but not read, so that nobody takes their codes for weights."""

from __future__ import annotations

from collections.abc import Mapping

from llmconv.convert.scaled.scheme import Scheme, Settings
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import plain

__all__ = ["UNREAD"]


def _scheme(
    called: str, methods: tuple[str, ...], mark: str, beside: str, types: tuple[BlockClass, ...], ending: str = ""
) -> Scheme:
    """A scheme known by a tensor that ends in `mark`, with one that ends in `beside`, which is of one of `types`.

    ending: what the weight's name has behind the stem.
    """

    class Unread(Scheme):
        name = called
        marks = (mark,)
        parts = (beside,)

        def weight(self, stem: str) -> str:
            return stem + ending

        def fits(self, parts: Mapping[str, Tensor], settings: Settings) -> bool:
            return beside in parts and (not types or parts[beside].type in types)

    Unread.methods = methods
    return Unread()


UNREAD: tuple[Scheme, ...] = (
    _scheme("EETQ", ("eetq",), ".weight_scales", ".weight", (plain.I8,), ".weight"),
    _scheme("AQLM", ("aqlm",), ".codebooks", ".codes", (), ".weight"),
    _scheme("EXL2", ("exl2",), ".q_weight", ".q_scale", (), ".weight"),
    _scheme("EXL3", ("exl3",), ".trellis", ".trellis", (), ".weight"),
    _scheme("VPTQ", ("vptq",), ".centroids.weight", ".indices", (), ".weight"),
    _scheme("torchao in 4 bits", ("torchao",), "_qdata", "_qdata", ()),
)
