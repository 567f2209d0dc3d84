"""AWQ: integers of four bits packed along the rows of the stored matrix, with scales and zero points by group.

| version | a layer of weights (n, k) |
|---|---|
| gemm | `qweight` I32 (k, n / 8), `qzeros` I32 (groups, n / 8), `scales` (groups, n); nibble i of a word is column 0, 2, 4, 6, 1, 3, 5, 7 of its eight |
| gemv | `qweight` I32 (n, k / 8), `qzeros` I32 (n, words), `scales` (n, 8 * words), of which the first `groups` count; in order |

Source: AutoAWQ's linear layers (`awq/modules/linear/gemm`, `gemv`).
"""  # noqa: E501

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.scaled.bits import across, columns, stored_words, transposed, unpacked
from llmconv.convert.scaled.coded import Coded
from llmconv.convert.scaled.gptq import group_of, is_awq, part
from llmconv.convert.scaled.grid import Grid
from llmconv.convert.scaled.scheme import Layer, Scheme, Settings
from llmconv.convert.scaled.stored import factors
from llmconv.errors import BadFile, Unsupported, cut, shown
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain

__all__ = ["Awq"]

_PLACE = np.array([0, 4, 1, 5, 2, 6, 3, 7])
"""Nibble of a word in which each of its eight columns is (gemm)."""
_COLUMN = np.array([0, 2, 4, 6, 1, 3, 5, 7], np.int32)
"""Column of its eight in which each nibble of a word is."""
_BITS, _EACH = 4, 8


class Awq(Scheme):
    """Eight numbers of four bits, side by side, in a word."""

    name = "AWQ"
    methods = ("awq",)
    marks = (".qweight",)
    parts = (".scales", ".qzeros")

    def weight(self, stem: str) -> str:
        return f"{stem}.weight"

    def fits(self, parts: Mapping[str, Tensor], settings: Settings) -> bool:
        return is_awq(parts, settings)

    def coded(self, layer: Layer) -> Coded:
        settings = layer.settings
        packed, scales, zeros = (part(layer, end) for end in (".qweight", ".scales", ".qzeros"))
        version = str(settings.values.get("version") or "gemm").lower()
        bits = settings.bits(layer.weight)
        if version not in ("gemm", "gemv", "exllama") or bits not in (None, _BITS) or packed.type is not plain.I32:
            raise Unsupported(
                f"{settings.where}: tensor {cut(packed.name)} is AWQ of version {cut(version)} in {bits or _BITS} bits "
                f"as {packed.type.name}, only gemm and gemv in 4 bits can be read; give the original model"
            )
        factors(layer, scales)
        shapes = [t.shape for t in (packed, scales, zeros)]
        if all(len(shape) == 2 for shape in shapes) and zeros.type is plain.I32:
            if version != "gemv" and packed.shape[1] == zeros.shape[1] and scales.shape == _wide(zeros):
                return self._gemm(layer, packed, scales, zeros)
            if version != "gemm" and packed.shape[0] == zeros.shape[0] and scales.shape == _wide(zeros):
                return self._gemv(layer, packed, scales, zeros)
        raise BadFile(
            f"{settings.where}: tensor {cut(packed.name)} of shape {shown(packed.shape)} does not go with scales of "
            f"shape {shown(scales.shape)} and zero points of shape {shown(zeros.shape)}; the model is damaged"
        )

    def _gemm(self, layer: Layer, packed: Tensor, scales: Tensor, zeros: Tensor) -> Coded:
        (k, words), groups = packed.shape, scales.shape[0]
        group = group_of(layer, k, groups)
        if not group or k % group:
            raise BadFile(
                f"{layer.settings.where}: groups of {group} don't divide the {k} columns of {cut(layer.weight)}, as "
                "AWQ's do; the model is damaged"
            )

        def side_by_side(source: Tensor, start: int, stop: int) -> NDArray[np.int32]:
            first, last = start // _EACH, -(-stop // _EACH)
            return across(source, first, last, _COLUMN)[start - first * _EACH : stop - first * _EACH]

        def numbers(source: Tensor, start: int, stop: int) -> NDArray[np.uint8]:
            """Rows start..stop of the weight, from the words of the stored matrix that hold them."""
            first, last = start // _EACH, -(-stop // _EACH)
            if source.shape[0] % _EACH == 0:
                return unpacked(side_by_side(source, start, stop).view(np.uint8), _BITS, source.shape[0])
            found = columns(source, first, last).view(np.uint32)  # (words, rows of the stored matrix)
            rows = np.arange(start, stop)
            shifts = (_PLACE[rows % _EACH] * _BITS).astype(np.uint32)[:, None]
            return (found[rows // _EACH - first] >> shifts).astype(np.uint8) & np.uint8(15)

        def zero_rows(start: int, stop: int) -> NDArray[np.uint8]:
            return numbers(zeros, start, stop).astype(np.float32).view(np.uint8)

        n = words * _EACH
        zero = Grid(Tensor(zeros.name, (n, groups), plain.F32, zero_rows), n, k, 1, group)
        scale = Grid(transposed(scales), n, k, 1, group)
        rows = None if k % _EACH else functools.partial(side_by_side, packed)
        return Coded(layer.weight, (n, k), lambda a, b: numbers(packed, a, b), 0, 15, scale, zero, words=rows)

    def _gemv(self, layer: Layer, packed: Tensor, scales: Tensor, zeros: Tensor) -> Coded:
        n, words = packed.shape
        k = words * _EACH
        said = layer.settings.values.get("group_size", layer.settings.values.get("q_group_size"))
        size = layer.settings.group() or (k if said == -1 else 0)
        if not size:
            raise BadFile(
                f"{layer.settings.where}: config.json says no group_size, and the scales of {cut(layer.weight)} are "
                "padded, as AWQ's gemv has them; fetch the model again"
            )
        groups = -(-k // size)
        if groups > scales.shape[1]:
            raise BadFile(
                f"{layer.settings.where}: tensor {cut(scales.name)} has {scales.shape[1]} groups, expected {groups} of "
                f"{size} columns; the model is damaged"
            )

        def codes(start: int, stop: int) -> NDArray[np.uint8]:
            return unpacked(packed.blocks(start, stop), _BITS, k)

        def first(tensor: Tensor) -> Any:
            return lambda a, b: np.ascontiguousarray(tensor.rows(a, b)[:, :groups]).view(np.uint8)

        def zero_rows(start: int, stop: int) -> NDArray[np.uint8]:
            return unpacked(zeros.blocks(start, stop), _BITS, groups).astype(np.float32).view(np.uint8)

        zero = Grid(Tensor(zeros.name, (n, groups), plain.F32, zero_rows), n, k, 1, size)
        scale = Grid(Tensor(scales.name, (n, groups), scales.type, first(scales)), n, k, 1, size)
        rows = stored_words(packed, _BITS, k)
        return Coded(layer.weight, (n, k), codes, 0, 15, scale, zero, words=rows)


def _wide(zeros: Tensor) -> tuple[int, int]:
    """The shape of the scales whose zero points these are."""
    return zeros.shape[0], zeros.shape[1] * _EACH
