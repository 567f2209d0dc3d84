"""GPTQ: integers packed down the columns, their scales and zero points by groups of rows of the stored matrix.

A layer of weights (n, k): `qweight` I32 (k * bits / 32, n), 2, 3, 4 or 8 bits, lowest first, each column one stream of
bits; `scales` floats (groups, n); `qzeros` I32 (groups, n * bits / 32); perhaps `g_idx` (k,), the group of each column
of weights where their order was changed.  Source: AutoGPTQ's and gptqmodel's linear layers.

Format "gptq" (v1) stores zero points less one, "gptq_v2" as they are.  Some files in the second way name the first:
those of symmetric codes, whose zero point is half of their range, are told by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.scaled.bits import columns, transposed, unpacked
from llmconv.convert.scaled.coded import Coded
from llmconv.convert.scaled.grid import Grid
from llmconv.convert.scaled.scheme import Layer, Scheme, Settings
from llmconv.convert.scaled.stored import factors
from llmconv.errors import BadFile, MissingTensor, Unsupported, cut, shown
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain

__all__ = ["Gptq", "group_of", "is_awq", "ordered", "part"]

_BITS = (2, 3, 4, 8)


def is_awq(parts: Mapping[str, Tensor], settings: Settings) -> bool:
    """Whose `qweight` it is: by the configuration, else by the side on which it is packed."""
    said = str(settings.values.get("packing_format", "")).lower()
    if settings.method == "awq" or "awq" in said:
        return True
    if settings.method or ".g_idx" in parts or ".scales" not in parts:
        return False
    return parts[".qweight"].shape[-1:] != parts[".scales"].shape[-1:]


class Gptq(Scheme):
    """Eight numbers of four bits, one below the other, in a word."""

    name = "GPTQ"
    methods = ("gptq", "autoround", "auto-round", "auto_round", "intel/auto-round")
    marks = (".qweight",)
    parts = (".scales", ".qzeros", ".g_idx")

    def weight(self, stem: str) -> str:
        return f"{stem}.weight"

    def fits(self, parts: Mapping[str, Tensor], settings: Settings) -> bool:
        return not is_awq(parts, settings)

    def coded(self, layer: Layer) -> Coded:
        settings = layer.settings
        packed, scales, zeros = (part(layer, end) for end in (".qweight", ".scales", ".qzeros"))
        form = str(settings.values.get("checkpoint_format") or settings.values.get("packing_format") or "gptq").lower()
        known = any(end in form for end in ("gptq", "auto_round:")) and "marlin" not in form
        if not known or packed.type is not plain.I32 or zeros.type is not plain.I32:
            raise Unsupported(
                f"{settings.where}: tensor {cut(packed.name)} is GPTQ in the format {cut(form)}, {packed.type.name}, "
                "which can't be read, only gptq and gptq_v2 in words of 32 bits; give the original model"
            )
        factors(layer, scales)
        bits, k = self._bits(layer, packed, scales, zeros)
        n, groups = packed.shape[1], scales.shape[0]
        order = ordered(layer, k, groups)
        group = group_of(layer, k, groups) if order is None else 1
        one = 0 if "v2" in form else 1
        other = _other_way(zeros, bits, n, one, settings.values.get("sym"))
        one = 1 - one if other else one

        def codes(start: int, stop: int) -> NDArray[np.uint8]:
            words = columns(packed, start, stop)
            return unpacked(words.view(np.uint8).reshape(stop - start, words.shape[1] * 4), bits, k)

        def zero_rows(start: int, stop: int) -> NDArray[Any]:
            first, last = start * bits // 32, -(-stop * bits // 32)
            if bits == 3:  # whole runs of 32 numbers in three words
                first, last = first // 3 * 3, min(-(-last // 3) * 3, zeros.shape[1])
            words = np.ascontiguousarray(columns(zeros, first, last).T)
            skip = start - first * 32 // bits
            found = unpacked(words.view(np.uint8), bits, skip + stop - start)[:, skip:]
            numbers = (found + np.uint8(one)) & np.uint8((1 << bits) - 1)
            return np.ascontiguousarray(numbers.T).astype(np.float32).view(np.uint8)

        scale = Grid(transposed(scales), n, k, 1, group, order=order)
        zero = Grid(Tensor(zeros.name, (n, groups), plain.F32, zero_rows), n, k, 1, group, order=order)
        rows = None if bits != 4 or k % 8 else lambda a, b: columns(packed, a, b)
        note = "have zero points of symmetric codes in the other of GPTQ's two ways than said, and were read so"
        said = note if other else ""
        return Coded(layer.weight, (n, k), codes, 0, (1 << bits) - 1, scale, zero, note=said, words=rows)

    def _bits(self, layer: Layer, packed: Tensor, scales: Tensor, zeros: Tensor) -> tuple[int, int]:
        """Bits of a number, and columns of the weight: those that fit the shapes, and the configuration."""
        stated, where = layer.settings.bits(layer.weight), layer.settings.where
        if stated is not None and stated not in _BITS:
            raise Unsupported(f"{where}: is GPTQ in {stated} bits, only 2, 3, 4 or 8 can be read; give another model")
        shapes = [t.shape for t in (packed, scales, zeros)]
        if all(len(shape) == 2 for shape in shapes) and shapes[1][0] == shapes[2][0] and shapes[0][1] == shapes[1][1]:
            rows, n = packed.shape
            order = layer.parts.get(".g_idx")
            for bits in _BITS if stated is None else (stated,):
                k = rows * 32 // bits if order is None else order.n_elements
                if zeros.shape[1] == -(-n * bits // 32) and rows == -(-k * bits // 32):
                    return bits, k
        raise BadFile(
            f"{where}: tensor {cut(packed.name)} of shape {shown(packed.shape)} does not go with scales of shape "
            f"{shown(scales.shape)} and zero points of shape {shown(zeros.shape)}"
            + (f" in {stated} bits" if stated else "")
            + "; the model is damaged"
        )


def _other_way(zeros: Tensor, bits: int, n: int, one: int, symmetric: Any) -> bool:
    """Whether zero points, stored less `one` by what is said, are those of symmetric codes in the other way."""
    if symmetric is False or (symmetric is not True and not one) or not zeros.n_elements:
        return False
    first = unpacked(zeros.rows(0, 1).reshape(1, -1).view(np.uint8), bits, n)
    return bool((first == (1 << bits - 1) - (1 - one)).all())


def part(layer: Layer, end: str) -> Tensor:
    """A tensor that a layer must have."""
    found = layer.parts.get(end)
    if found is None:
        stem = next(tensor.name.removesuffix(known) for known, tensor in layer.parts.items())
        raise MissingTensor(layer.settings.where, stem + end, f"{cut(layer.weight)} needs it; fetch the model again")
    return found


def ordered(layer: Layer, k: int, groups: int, end: str = ".g_idx") -> NDArray[np.intp] | None:
    """The group of each column, or None where they follow each other as they would without saying so."""
    given = layer.parts.get(end)
    if given is None:
        if groups > 1 and layer.settings.values.get("desc_act") is True:
            stem = next(tensor.name.removesuffix(known) for known, tensor in layer.parts.items())
            why = "config.json says that columns have an order of their own (desc_act); fetch the model again"
            raise MissingTensor(layer.settings.where, stem + end, why)
        return None
    if given.type.is_float:
        raise BadFile(
            f"{layer.settings.where}: tensor {cut(given.name)} is {given.type.name}, expected the numbers of groups; "
            "the model is damaged"
        )
    order = given.numpy().reshape(-1).astype(np.intp)
    if order.shape != (k,) or (order.size and not 0 <= order.min() <= order.max() < groups):
        raise BadFile(f"{layer.settings.where}: tensor {given.name!r} does not name a group for each column")
    stated = layer.settings.group()
    known = stated is not None and -(-k // stated) == groups
    size = stated if stated is not None and known else -(-k // max(groups, 1))
    usual = np.arange(k) // size
    counts, expected = (np.bincount(each, minlength=groups) for each in (order, usual))
    if (known or k % max(groups, 1) == 0) and (counts != expected).any():
        group = int(np.flatnonzero(counts != expected)[0])
        raise BadFile(
            f"{layer.settings.where}: tensor {cut(given.name)} puts {counts[group]} columns into group {group}, "
            f"expected {expected[group]}; it is no order of {cut(layer.weight)}'s columns, the model is damaged"
        )
    return None if (order == usual).all() else order


def group_of(layer: Layer, k: int, groups: int) -> int:
    """Columns that share a scale, where there are so many groups: as the configuration says, or all alike."""
    stated = layer.settings.group()
    if stated is not None and -(-k // stated) == groups:
        return stated
    if groups and k % groups == 0:
        return k // groups
    raise BadFile(
        f"{layer.settings.where}: {groups} groups of scales don't divide the {k} columns of {cut(layer.weight)}; "
        "the model is damaged"
    )
