"""Whether two ways of storing say the same weights, code by code and scale by scale: nothing is decoded.

A *record* of a row is its integers, and for each 16 or 32 columns a scale, and where there are sums a sum, in float32.
That two records are equal, byte by byte, says that the weights are, by this argument:

- Integers under a scale: a record has code - zero, and every decoder computes float32(code - zero) * scale.  The same
  two operands give the same product, whatever it rounds to.  A record holds eight bits of an integer; where one could
  have more, there is no record.
- Codes under a scale and a sum: every decoder computes code * scale + sum, the same operations on the same operands.
- A zero point on one side and a sum on the other: the record has -zero * scale for the sum, if the scale has 16
  significant bits at most (float16 and bfloat16 have 11 and 8) and the zero point eight.  With a code of eight bits
  code * scale, zero * scale and their difference, (code - zero) * scale, have 24 then: none of them is rounded, and
  both decoders give that number.  The same where a sum is a whole number of scales and becomes a zero point.
- Codes of four-bit floats under a scale: table[code] * scale, and there is but one such table.

Records that differ prove nothing: weights of a scale 0 are equal whatever their codes.  Then, and where there is no
record, the weights are decoded and compared as floats.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from llmconv.convert.quantizing.folder_layers import BLOCKS, FLOATS, TERNARY, of_ternary
from llmconv.convert.quantizing.proving.by_words import Same, compared, require_exact, zeros_of
from llmconv.convert.scaled.coded import Coded
from llmconv.convert.scaled.four_bit_floats import E2M1
from llmconv.convert.scaled.grid import Grid
from llmconv.convert.scaled.ordered import settled
from llmconv.errors import Unsupported
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant.block import BlockType, Bytes
from llmconv.quant.kernels import codes as kernels

__all__ = ["Same", "both", "is_record", "record", "record_for", "same"]

_AT_ONCE = 1 << 19
"""Weights of which records are compared at a time, so that what they pass through stays in the processor's cache."""

Filled = Callable[[NDArray[np.void], int, int], None]


class _Record(BlockType):
    """A row is a block: integers `q`, scales `d`, perhaps sums `m`.  Translating moves it whole, or not at all."""

    @classmethod
    def decode(cls, blocks: Bytes, out: Any = None) -> Any:
        raise Unsupported("the columns of a record can't be moved")


@functools.cache
def _type(k: int, span: int, affine: bool) -> BlockClass:
    numbers = [("d", "<f4", (k // span,)), ("m", "<f4", (k // span,))]
    fields = np.dtype([("q", "u1", (k,)), *numbers[: 1 + affine]])

    class Record(_Record):
        block_size, layout = k, fields

    Record.name = "a record"
    return Record


@dataclass(frozen=True)
class _Read:
    """Reads records of a weight, which `fill` makes."""

    given: Coded | Tensor
    layout: np.dtype[Any]
    fill: Filled

    def __call__(self, start: int, stop: int) -> Bytes:
        out = np.empty(stop - start, self.layout)
        self.fill(out, start, stop)
        return out.view(np.uint8).reshape(stop - start, self.layout.itemsize)


def is_record(tensor: Tensor) -> bool:
    return issubclass(tensor.type, _Record)


def record_for(given: Coded | Tensor, kind: BlockClass) -> Tensor | None:
    """The record of a weight that is to be compared with one in a block type; None where there is none."""
    return record(given, 16 if kind.name == "NVFP4" else 32, kind.name.endswith("_1"))


def both(one: Coded | Tensor, other: Coded | Tensor) -> tuple[Tensor, Tensor] | None:
    """The records of two weights in the form that they have in common; None where there is none."""
    kinds = {given.type.name if isinstance(given, Tensor) else "" for given in (one, other)}
    small = "NVFP4" in kinds or any(isinstance(g, Coded) and getattr(g.scale, "columns", 0) == 16 for g in (one, other))
    affine = bool(kinds & {"Q4_1", "Q5_1"}) or any(isinstance(g, Coded) and g.bias is not None for g in (one, other))
    found = [record(given, 16 if small else 32, affine) for given in (one, other)]
    return None if found[0] is None or found[1] is None else (found[0], found[1])


def same(one: Tensor, other: Tensor) -> Same:
    """What says of rows start..stop of two records whether they are the same; a False says nothing of the weights."""
    if one.type is not other.type:
        return lambda start, stop: False
    found = None
    if isinstance(one.read, _Read) and isinstance(other.read, _Read):  # neither was moved
        found = compared(one.read.given, other.read.given)
    ask = found or functools.partial(_equal, one, other)

    def asked(start: int, stop: int) -> bool:
        try:
            return ask(start, stop)
        except Unsupported:
            return False

    return asked


def _equal(one: Tensor, other: Tensor, start: int, stop: int) -> bool:
    step, found = max(1, _AT_ONCE // max(1, one.row_len)), np.zeros(1, np.uint8)
    for low in range(start, stop, step):
        slab = low, min(stop, low + step)
        records = (np.ascontiguousarray(t.blocks(*slab)).reshape(-1).view(np.int32) for t in (one, other))
        kernels.differ(*records, found)
        if found[0]:
            return False
    return True


def record(given: Coded | Tensor, span: int, affine: bool) -> Tensor | None:
    """The record of a weight, from its codes or blocks; None where there is none.

    span: columns for which there is a scale.   affine: codes and sums, not codes less zero points.
    """
    k = given.shape[-1]
    if k % span or not k:
        return None
    fill = _of_coded(given, span, affine) if isinstance(given, Coded) else _of_blocks(given, span, affine)
    if fill is None:
        return None
    kind = _type(k, span, affine)
    name = given.weight if isinstance(given, Coded) else given.name
    return Tensor(name, given.shape, kind, _Read(given, kind.layout, fill))


def _of_coded(given: Coded, span: int, affine: bool) -> Filled | None:
    coded = settled(given)
    scale, zero, bias, k = coded.scale, coded.zero, coded.bias, coded.shape[-1]
    shared = [numbers for numbers in (scale, zero, bias) if not isinstance(numbers, int | None)]
    if coded.after is not None or not all(isinstance(n, Grid) and n.span(k) and n.span(k) % span == 0 for n in shared):
        return None
    if coded.table is not None and (coded.table is not E2M1 or affine or len(shared) > 1 or zero):
        return None
    low, high = coded.low, coded.high
    if bias is not None and low:
        return None

    def spread(numbers: NDArray[np.float32]) -> NDArray[np.float32]:
        groups = k // span
        if numbers.shape[1] == 1:
            return np.broadcast_to(numbers, (len(numbers), groups))
        return np.repeat(numbers, groups // numbers.shape[1], axis=1)

    def fill(out: NDArray[np.void], start: int, stop: int) -> None:
        d = spread(coded.by_group(start, stop))
        out["d"] = d
        if coded.table is not None or (bias is not None and affine):
            _put(out, coded, start, stop, low if coded.table is None else 0)
            if bias is not None:
                out["m"] = spread(bias.by_group(start, stop))
            return
        z: NDArray[np.float32] | np.float32
        if bias is not None:
            z = zeros_of(d, spread(bias.by_group(start, stop)))
        else:
            z = np.float32(zero) if isinstance(zero, int) else zero.by_group(start, stop)
        least, largest = (float(z), float(z)) if np.ndim(z) == 0 else (float(z.min()), float(z.max()))
        if least == largest:
            z = np.float32(least)
        if (np.rint(z) != z).any():
            raise Unsupported("zero points that are no integers")
        if affine:
            require_exact(d, largest - low, least - low)
            _put(out, coded, start, stop, low)
            out["m"] = (np.float32(low) - (z if np.ndim(z) == 0 else spread(np.asarray(z)))) * d
            return
        if high - least > 127 or low - largest < -128:
            raise Unsupported("integers of more than eight bits")
        _put(out, coded, start, stop, z)

    return fill


def _put(out: NDArray[np.void], coded: Coded, start: int, stop: int, zero: Any) -> None:
    """The codes of rows start..stop into their records, each less its zero point: one, or one for each group."""
    q, k = out["q"], coded.shape[-1]
    if coded.words is not None:
        span = k if np.ndim(zero) == 0 else k // np.shape(zero)[1]
        zeros = np.broadcast_to(np.asarray(zero).astype(np.int32) - np.int32(coded.low), (stop - start, k // span))
        words, flat = coded.words(start, stop).reshape(-1), np.ascontiguousarray(zeros).reshape(-1)
        kernels.of_words(words, span, flat, k, out.itemsize, out.view(np.uint8))
        return
    codes = np.ascontiguousarray(coded.codes(start, stop)).view(np.uint8)
    if np.ndim(zero) == 0:
        np.subtract(codes, np.uint8(int(zero) & 255), out=q)
    else:
        taken = np.asarray(zero).astype(np.int16).astype(np.uint8)
        np.subtract(codes.reshape(*taken.shape, -1), taken[:, :, None], out=q.reshape(*taken.shape, -1))


def _of_blocks(tensor: Tensor, span: int, affine: bool) -> Filled | None:
    kind, k = tensor.type, tensor.row_len
    if kind.name in TERNARY and span == 32:
        return _of_ternary(tensor, affine)
    if kind.name in FLOATS and not affine:
        return _of_small_floats(tensor) if (kind.name == "NVFP4") is (span == 16) else None
    width, zero = BLOCKS.get(kind.name, (0, 0))
    if not width or span != 32 or (zero is None and not affine):
        return None
    fields, middle = (4, 0) if zero is None else (2, zero)
    offset = -middle if not affine else 0
    if width == 8:  # whose integers lie about 0
        offset = 128 if affine else 0

    def fill(out: NDArray[np.void], start: int, stop: int) -> None:
        raw = np.ascontiguousarray(tensor.blocks(start, stop))
        own = raw.view(kind.layout)
        kernels.of_blocks(raw.reshape(-1), width, fields, offset, k, out.itemsize, out.view(np.uint8))
        out["d"] = own["d"]
        if affine:
            out["m"] = own["m"] if zero is None else np.float32(-middle) * own["d"].astype(np.float32)

    return fill


def _of_ternary(tensor: Tensor, affine: bool) -> Filled:
    layer = of_ternary(tensor)

    def fill(out: NDArray[np.void], start: int, stop: int) -> None:
        d = np.repeat(layer.scale(start, stop), 8, axis=1)
        out["q"], out["d"] = layer.codes(start, stop) - np.uint8(0 if affine else 1), d
        if affine:
            out["m"] = -d

    return fill


def _of_small_floats(tensor: Tensor) -> Filled:
    kind, k, small = tensor.type, tensor.row_len, tensor.type.name == "NVFP4"

    def fill(out: NDArray[np.void], start: int, stop: int) -> None:
        raw = np.ascontiguousarray(tensor.blocks(start, stop))
        own = raw.view(kind.layout)
        scales = own["d" if small else "e"].reshape(stop - start, -1)
        if scales.max(initial=0) > (126 if small else 254):
            raise Unsupported("scales that are no numbers")
        if small:
            pairs = own["qs"].reshape(stop - start, k // 16, 8)
            out["q"] = np.concatenate([pairs & 15, pairs >> 4], axis=-1).reshape(stop - start, k)
            out["d"] = scales.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
            return
        kernels.of_blocks(raw.reshape(-1), 4, 1, 0, k, out.itemsize, out.view(np.uint8))
        out["d"] = np.ldexp(np.float32(1), scales.astype(np.int32) - 127)

    return fill
