"""bitsandbytes: four bits under a table (NF4, FP4) by blocks of the flat weight, and LLM.int8 by rows.

| stored as | a layer's tensors |
|---|---|
| 4 bits | `weight` (flat bytes, the first number in the high half), `weight.absmax`, `weight.quant_map` (16 floats), `weight.quant_state.bitsandbytes__nf4` (JSON: shape, blocksize, ...) |
| 4 bits, nested | the same, `absmax` U8 as places in `weight.nested_quant_map` (256 floats), times `weight.nested_absmax` by blocks, plus the JSON's nested_offset |
| LLM.int8 | `weight` I8 (n, k), `SCB` (n,): 127 stands for its number |

Source: the bitsandbytes package (`functional.QuantState`, `dequantize_blockwise`, `int8_vectorwise_dequant`).
"""  # noqa: E501

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.scaled.coded import Coded, Numbers
from llmconv.convert.scaled.scheme import Layer, Scheme, Settings
from llmconv.errors import BadFile, MissingTensor, Unsupported, cut, shown
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain

__all__ = ["FourBits", "LlmInt8"]

_STATES = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")
_MOST_JSON = 1 << 16
_PER_STEP = np.float32(1 / 127)


class FourBits(Scheme):
    """NF4 and FP4."""

    name = "bitsandbytes (4 bits)"
    methods = ("bitsandbytes",)
    marks = (".absmax",)
    parts = ("", ".quant_map", ".nested_absmax", ".nested_quant_map", *_STATES)

    def fits(self, parts: Mapping[str, Tensor], settings: Settings) -> bool:
        return "" in parts

    def coded(self, layer: Layer) -> Coded:
        where, packed, state = layer.settings.where, layer.parts[""], _state(layer)
        shape, block = state.get("shape"), state.get("blocksize")
        right = isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)
        n, k = shape if isinstance(shape, list) and right else (0, 0)
        if not right or type(block) is not int or block < 1 or not n * k <= packed.nbytes * 2 <= n * k + 8:
            raise BadFile(
                f"{where}: tensor {cut(packed.name)} of {packed.nbytes:,} bytes does not hold weights of shape "
                f"{cut(shape)} in blocks of {cut(block)}, as its quant_state says; the model is damaged"
            )
        table = np.zeros(256, np.float32)
        table[:16] = _table(layer, ".quant_map", 16)
        raw, width, size = packed.reshaped((packed.n_elements, 1)), packed.row_bytes // packed.row_len, packed.nbytes

        def codes(start: int, stop: int) -> NDArray[np.uint8]:
            first, last = start * k // 2, min(-(-stop * k // 2), size)
            low, high = first // width, -(-last // width)
            found = raw.blocks(low, high).reshape(-1)[first - low * width :]
            pairs = np.stack([found >> 4, found & 15], axis=-1).reshape(-1)
            skip = start * k - 2 * first
            return pairs[skip : skip + (stop - start) * k].reshape(stop - start, k)

        return Coded(
            layer.weight, (n, k), codes, 0, 15, _Blocks(_absmax(layer, state, n * k, block), k, block), table=table
        )


class LlmInt8(Scheme):
    """Integers with the largest of each row."""

    name = "bitsandbytes (LLM.int8)"
    methods = ("bitsandbytes",)
    marks = (".SCB",)
    parts = (".weight", ".weight_format")

    def weight(self, stem: str) -> str:
        return f"{stem}.weight"

    def fits(self, parts: Mapping[str, Tensor], settings: Settings) -> bool:
        return ".weight" in parts and parts[".weight"].type is plain.I8

    def coded(self, layer: Layer) -> Coded:
        stored, largest, form = layer.parts[".weight"], layer.parts[".SCB"], layer.parts.get(".weight_format")
        where = layer.settings.where
        if form is not None and form.n_elements == 1 and int(form.numpy().reshape(())) != 0:
            raise Unsupported(
                f"{where}: tensor {cut(stored.name)} is stored in the order of a GPU's kernel; save the model again "
                "with a newer bitsandbytes"
            )
        if len(stored.shape) != 2 or largest.n_elements != stored.shape[0] or not largest.type.is_float:
            raise BadFile(
                f"{where}: tensor {cut(largest.name)} of shape {shown(largest.shape)} does not scale the rows of "
                f"{cut(stored.name)} of shape {shown(stored.shape)}; the model is damaged"
            )
        rows = _Rows(largest.reshaped((stored.shape[0], 1)))

        def codes(start: int, stop: int) -> NDArray[np.int8]:
            return stored.blocks(start, stop).view(np.int8)

        return Coded(layer.weight, stored.shape, codes, -128, 127, rows, after=_PER_STEP)


@dataclass(frozen=True)
class _Rows(Numbers):
    """A number a row."""

    values: Tensor

    def for_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        return self.values.rows(start, stop).astype(np.float32)

    def span(self, k: int) -> int:
        return k


@dataclass(frozen=True)
class _Blocks(Numbers):
    """A number for each block of the flat weight, wherever rows end."""

    values: NDArray[np.float32]
    k: int
    block: int

    def for_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        flat = np.arange(start * self.k, stop * self.k) // self.block
        return self.values[flat].reshape(stop - start, self.k)

    def by_group(self, start: int, stop: int) -> NDArray[np.float32]:
        each = self.k // self.block
        return self.values[start * each : stop * each].reshape(stop - start, each)

    def span(self, k: int) -> int:
        return self.block if k % self.block == 0 else 0


def _state(layer: Layer) -> Mapping[str, Any]:
    """What the JSON among a layer's tensors says."""
    where = layer.settings.where
    states = [layer.parts[end] for end in _STATES if end in layer.parts]
    if len(states) > 1:
        names = " and ".join(cut(state.name) for state in states)
        raise BadFile(f"{where}: {names} both say how one weight is stored; the model is damaged, save it again")
    found = next(iter(states), None)
    if found is None:
        raise MissingTensor(where, layer.weight + _STATES[0], "it says the weight's shape; save the model again")
    if found.type is plain.U8 and found.nbytes <= _MOST_JSON:
        try:
            state = json.loads(found.blocks().tobytes())
        except (ValueError, RecursionError):
            state = None
        if isinstance(state, dict):
            return state
    raise BadFile(f"{where}: tensor {cut(found.name)} does not hold a JSON object in bytes; the model is damaged")


def _table(layer: Layer, end: str, size: int) -> NDArray[np.float32]:
    found = layer.parts.get(end)
    if found is None:
        raise MissingTensor(layer.settings.where, layer.weight + end, "its codes stand in it; fetch the model again")
    if found.n_elements != size or not found.type.is_float:
        raise BadFile(
            f"{layer.settings.where}: tensor {cut(found.name)} has shape {shown(found.shape)}, expected {size} floats"
        )
    return found.numpy().reshape(-1).astype(np.float32)


def _absmax(layer: Layer, state: Mapping[str, Any], size: int, block: int) -> NDArray[np.float32]:
    """The largest weight of every block."""
    found, where = layer.parts[".absmax"], layer.settings.where
    count = -(-size // block)
    if found.n_elements != count:
        raise BadFile(
            f"{where}: tensor {cut(found.name)} has {found.n_elements} numbers, expected {count}, one for each {block} "
            f"of {size:,} weights; the model is damaged"
        )
    values = found.numpy().reshape(-1)
    if found.type is not plain.U8:
        return values.astype(np.float32)
    each, offset = state.get("nested_blocksize"), state.get("nested_offset")
    if type(each) is not int or each < 1 or not isinstance(offset, int | float):
        raise BadFile(f"{where}: {cut(layer.weight)}'s quant_state says nothing of its nested scales; save it again")
    scales = _table(layer, ".nested_absmax", -(-count // each))
    nested: NDArray[np.float32] = _table(layer, ".nested_quant_map", 256)[values] * scales[np.arange(count) // each]
    return nested + np.float32(offset)
