"""Codes and scales carried into GGUF's block types, where a type says the same numbers: nothing is decoded or rounded.

| type | what it can say | where scales stand for |
|---|---|---|
| TQ2_0 | integers -1 … 1, one scale | whole blocks of 256 |
| Q4_0, Q5_0, Q8_0 | integers -8 … 7, -16 … 15, -128 … 127, one scale | whole blocks of 32 |
| Q4_1, Q5_1 | 0 … 15, 0 … 31, a scale and a sum | whole blocks of 32 |
| MXFP4 | E2M1, a power of two | blocks of 32 |
| NVFP4 | E2M1, an E4M3 | blocks of 16 |

Scales and sums must be float16 numbers.  An integer is a code less its zero point, so that asymmetric codes of four
bits go into five.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from llmconv.convert.scaled.coded import Coded
from llmconv.convert.scaled.four_bit_floats import E2M1
from llmconv.convert.scaled.grid import Grid
from llmconv.convert.scaled.kept import in_chunks
from llmconv.convert.scaled.ordered import settled
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import block
from llmconv.quant.block import Bytes
from llmconv.quant.kernels import codes as kernels

__all__ = ["WIDER", "Carried", "are_said", "bits_of", "carried", "most_groups", "spread"]

WIDER = ("TQ2_0", "Q4_0", "Q5_0", "Q8_0")
"""Types of integers under a scale, each of which says all that the ones before it say."""
_RANGES = {"TQ2_0": (-1, 1, 256), "Q4_0": (-8, 7, 32), "Q5_0": (-16, 15, 32), "Q8_0": (-128, 127, 32)}
_SLAB = 1 << 20
_AT_ONCE = 1 << 21
"""Weights that are carried at a time, so that what they pass through stays in the processor's cache."""


@dataclass(frozen=True)
class Carried:
    """A weight in a block type that says the same numbers.

    type: the smallest such type.   alike: those of `WIDER` that say them too, where the type is one of these.
    factor: a float32 that GGUF keeps beside the weight; None where there is none.
    rounded: how far off the sums are at most, in steps, where they were rounded to float16; 0 where nothing was.
    """

    coded: Coded
    type: BlockClass
    alike: tuple[str, ...] = ()
    factor: NDArray[np.float32] | None = None
    rounded: float = 0.0

    def tensor(self, kind: BlockClass | None = None) -> Tensor:
        """The weight in its type, or in another one of `alike`."""
        kind = kind or self.type
        return Tensor(self.coded.weight, self.coded.shape, kind, _PACKERS[kind.name](self.coded, kind))

    def floats(self) -> Tensor:
        """What the bytes decode to: the weight without the factor beside it."""
        return dataclasses.replace(self.coded, factor=None, divisor=None).floats()


def carried(coded: Coded, round_sums: bool = False) -> Carried | str:
    """The weight in the smallest type that says it, or why there is none, in a few words.  Its scales are read.

    round_sums: zero points of four bits may become sums, rounded to float16 (Q4_1), where only a larger type is exact.
    """
    coded = settled(coded)
    scale = coded.scale
    k = coded.shape[-1]
    if not isinstance(scale, Grid) or coded.after is not None:
        return "scales of another kind than GGUF's"
    if scale.order is not None:
        return "columns out of their groups' order (act-order)"
    if scale.columns < k and k % scale.columns:
        return f"groups of {scale.columns} in rows of {k}"
    if coded.table is not None:
        return _floats(coded, scale)
    if coded.factor is not None or coded.divisor is not None:
        return "a factor over its scales"
    if not _all(scale, _are_halves):
        return "scales that float16 can't say"
    whole = scale.columns if scale.columns < k else k
    if coded.bias is not None:
        return _affine(coded, whole)
    if not isinstance(coded.zero, int) and not (isinstance(coded.zero, Grid) and _all(coded.zero, _is_integer)):
        return "zero points that are no integers"
    if isinstance(coded.zero, Grid) and not _lies_as(coded.zero, whole, k):
        return "zero points that lie otherwise than the scales"
    found = _integers(coded, whole)
    small = not isinstance(found, str) and found.type.name in ("TQ2_0", "Q4_0")
    if not round_sums or small or isinstance(coded.zero, int) or coded.high - coded.low > 15 or whole % 32:
        return found
    return _with_sums(coded) or found


def _lies_as(zero: Grid, whole: int, k: int) -> bool:
    """Whether zero points are shared by the columns that share a scale, or by whole blocks."""
    span = zero.span(k)
    return span == whole or (span > 0 and span % 32 == 0 and (span % whole == 0 or whole % span == 0))


def _with_sums(coded: Coded) -> Carried | None:
    """Codes under scales and sums, -zero * scale as float16 says it; None where it says infinity."""
    scale, zero, shift = coded.scale, coded.zero, np.uint8(-coded.low)
    assert isinstance(scale, Grid) and isinstance(zero, Grid)
    if (zero.rows, zero.columns, zero.stacked) != (scale.rows, scale.columns, scale.stacked):
        return None
    given = coded.codes

    def sums(start: int, stop: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        s, z = (g.values.rows(start, stop).astype(np.float32) for g in (scale, zero))
        exact: NDArray[np.float32] = -(z + np.float32(shift)) * s
        with np.errstate(over="ignore"):
            return exact.astype(np.float16).astype(np.float32), exact, s

    worst = 0.0
    for slab in _slabs(scale.values.n_rows, scale.values.row_len):
        half, exact, s = sums(*slab)
        if not np.isfinite(half).all():
            return None
        steps = np.abs(half - exact) / np.where(s == 0, np.float32(1), np.abs(s))
        worst = max(worst, float(steps.max(initial=0)))
    values = scale.values
    lazy = Tensor(values.name, values.shape, block.by_name("F32"), lambda a, b: sums(a, b)[0].view(np.uint8))
    made = dataclasses.replace(
        coded, codes=lambda a, b: given(a, b).view(np.uint8) + shift, low=0, high=coded.high - coded.low, zero=0,
        bias=dataclasses.replace(scale, values=lazy),
    )  # fmt: skip
    return Carried(made, block.by_name("Q4_1"), rounded=worst)


def _integers(coded: Coded, whole: int) -> Carried | str:
    """Integers under a scale; `whole`: columns that share it."""
    low, high = _bounds(coded)
    if not any(lo <= low and high <= hi and whole % span == 0 for lo, hi, span in _RANGES.values() if hi < 100):
        low, high = _extremes(coded)
    fitting = tuple(n for n, (lo, hi, span) in _RANGES.items() if lo <= low and high <= hi and whole % span == 0)
    if not fitting:
        return f"groups of {whole}" if whole % 32 else f"integers from {low} to {high}"
    return Carried(coded, block.by_name(fitting[0]), fitting)


def _affine(coded: Coded, whole: int) -> Carried | str:
    """code * scale + bias: where all biases are whole numbers of scales, integers under a scale."""
    bias = coded.bias
    assert isinstance(coded.scale, Grid)
    if not isinstance(bias, Grid) or (bias.rows, bias.columns, bias.stacked) != (
        coded.scale.rows, coded.scale.columns, coded.scale.stacked
    ):  # fmt: skip
        return "biases that lie otherwise than the scales"
    zero = _zeros_of(coded.scale, bias, (coded.high + 1) // 2)
    if zero is not None:
        found = _integers(dataclasses.replace(coded, zero=zero, bias=None), whole)
        if not isinstance(found, str) and (found.type.name != "Q8_0" or coded.high > 31):
            return found
    if coded.low:
        return "sums beside codes that have a sign"
    if whole % 32 or coded.high > 31 or not _all(bias, _are_halves):
        return "biases beside codes of more than 5 bits" if coded.high > 31 else "biases that float16 can't say"
    return Carried(coded, block.by_name("Q4_1" if coded.high < 16 else "Q5_1"))


def _floats(coded: Coded, scale: Grid) -> Carried | str:
    """Floats of four bits."""
    if coded.table is not E2M1 or scale.rows != 1:
        return "floats of eight bits" if coded.table is not E2M1 else "scales over rows"
    factor = coded.factor if coded.divisor is None else np.float32(1) / coded.divisor
    if scale.columns == 32 and factor is None and _all(scale, _is_power):
        return Carried(coded, block.by_name("MXFP4"))
    if scale.columns == 16 and coded.shape[-1] % 64 == 0 and _all(scale, _is_e4m3):
        return Carried(coded, block.by_name("NVFP4"), factor=None if factor is None else np.asarray(factor))
    return "groups or scales that MXFP4 and NVFP4 can't say"


# What numbers are.


def _slabs(rows: int, width: int) -> Iterator[tuple[int, int]]:
    step = max(1, _SLAB // max(1, width))
    return ((start, min(rows, start + step)) for start in range(0, rows, step))


def _all(grid: Grid, test: Callable[[NDArray[np.float32]], Any]) -> bool:
    """Whether all numbers pass."""
    tensor = grid.values
    return all(np.all(test(tensor.rows(*slab).astype(np.float32))) for slab in _slabs(tensor.n_rows, tensor.row_len))


def are_said(x: NDArray[np.float32], dtype: np.dtype[Any]) -> bool:
    """Whether a type of 16 bits says all of these numbers, and they are finite.

    Converting there and back takes long: where no bit is lost and all are 0 or normal numbers, they are.
    """
    lost, least, most = (0x1FFF, 0x38800000, 0x477FE000) if dtype == np.float16 else (0xFFFF, 0x00800000, 0x7F7F0000)
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    if not bits.size:
        return True
    size = bits & np.uint32(0x7FFFFFFF)
    if not (bits & np.uint32(lost)).any() and size.max() <= most and (size - np.uint32(1)).min() >= least - 1:
        return True
    with np.errstate(over="ignore"):
        return bool((np.isfinite(x) & (x.astype(dtype).astype(np.float32) == x)).all())


def _are_halves(x: NDArray[np.float32]) -> bool:
    return are_said(x, np.dtype(np.float16))


def _is_integer(x: NDArray[np.float32]) -> Any:
    return (np.abs(x) < 1 << 15) & (np.rint(x) == x)


def _is_power(x: NDArray[np.float32]) -> Any:
    return np.isfinite(x) & (np.frexp(x)[0] == 0.5)


def _is_e4m3(x: NDArray[np.float32]) -> Any:
    with np.errstate(over="ignore"):
        return ~np.signbit(x) & (x.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) == x)


def _bounds(coded: Coded) -> tuple[int, int]:
    """The least and the largest integer that there could be, by the zero points alone."""
    if isinstance(coded.zero, int):
        return coded.low - coded.zero, coded.high - coded.zero
    assert isinstance(coded.zero, Grid)
    tensor = coded.zero.values
    ends = [(rows.min(), rows.max()) for rows in (tensor.rows(*s) for s in _slabs(tensor.n_rows, tensor.row_len))]
    return coded.low - int(max(high for _, high in ends)), coded.high - int(min(low for low, _ in ends))


def _extremes(coded: Coded) -> tuple[int, int]:
    """The least and the largest integer that there is."""
    rows, k = coded.shape[0] if len(coded.shape) == 2 else int(np.prod(coded.shape[:-1])), coded.shape[-1]
    ends = [(part.min(), part.max()) for part in (_numbers(coded, *slab) for slab in _slabs(rows, k))]
    return int(min(low for low, _ in ends)), int(max(high for _, high in ends))


def _zeros_of(scale: Grid, bias: Grid, middle: int) -> Grid | None:
    """The zero points that say the same as these biases; None where some don't."""

    def zeros(start: int, stop: int) -> NDArray[np.float32]:
        s, b = (g.values.rows(start, stop).astype(np.float32) for g in (scale, bias))
        with np.errstate(all="ignore"):
            whole: NDArray[np.float32] = np.nan_to_num(np.rint(-b / s), nan=middle, posinf=1e9, neginf=1e9)
        return whole  # the middle where all weights of a group are 0, whatever their codes

    tensor = scale.values
    for slab in _slabs(tensor.n_rows, tensor.row_len):
        found = zeros(*slab)
        s, b = (g.values.rows(*slab).astype(np.float32) for g in (scale, bias))
        if np.abs(found).max(initial=0) > 128 or (found * s != -b).any():
            return None
    lazy = Tensor(tensor.name, tensor.shape, block.by_name("F32"), lambda a, b: zeros(a, b).view(np.uint8))
    return dataclasses.replace(scale, values=lazy)


# Bytes of blocks.


def _numbers(coded: Coded, start: int, stop: int) -> NDArray[np.int16]:
    """The integers, codes less zero points."""
    codes = coded.codes(start, stop).astype(np.int16)
    if isinstance(coded.zero, int):
        return codes - np.int16(coded.zero)
    assert isinstance(coded.zero, Grid)
    return codes - coded.zero.for_rows(start, stop).astype(np.int16)


def _shared(grid: Grid, start: int, stop: int, span: int) -> NDArray[np.float32]:
    """A number for each block of `span` columns: (rows, blocks)."""
    own = grid.by_group(start, stop)
    blocks = grid.k // span
    return np.broadcast_to(own, (len(own), blocks)) if own.shape[1] == 1 else np.repeat(own, grid.columns // span, 1)


def _filled(
    kind: BlockClass,
    fill: Callable[[NDArray[np.void], int, int], None],
    shape: tuple[int, ...],
) -> Callable[[int, int], Bytes]:
    """Rows of blocks, whose fields `fill` writes."""
    blocks = shape[-1] // kind.block_size

    def read(start: int, stop: int) -> Bytes:
        out = np.empty((stop - start, blocks), kind.layout)
        step = max(1, _AT_ONCE // max(1, shape[-1]))
        for low in range(start, stop, step):
            high = min(stop, low + step)
            fill(out[low - start : high - start], low, high)
        return out.view(np.uint8).reshape(stop - start, blocks * kind.layout.itemsize)

    return read


def _halves(q: NDArray[np.uint8], span: int = 32) -> NDArray[np.uint8]:
    """(rows, k) numbers of four bits -> (rows, blocks, span / 2): number j low, number j + span / 2 high."""
    pairs = q.reshape(len(q), q.shape[1] // span, 2, span // 2)
    return pairs[:, :, 0] | pairs[:, :, 1] << np.uint8(4)


def bits_of(numbers: NDArray[np.float32], groups: int) -> NDArray[np.int32]:
    """(rows, 1) or (rows, groups) numbers that float16 says -> its bits, flat, one for each group."""
    found = np.empty(numbers.size, np.int32)
    kernels.half_bits(np.ascontiguousarray(numbers, np.float32).reshape(-1), found)
    return spread(found.reshape(numbers.shape), groups)


def spread(numbers: NDArray[Any], groups: int) -> NDArray[np.int32]:
    """(rows, 1), or fewer groups, or as many -> integers, flat, one for each group."""
    if numbers.shape[1] != groups:
        numbers = np.repeat(numbers, groups // numbers.shape[1], axis=1)
    return np.ascontiguousarray(numbers, np.int32).reshape(-1)


def _quants(coded: Coded, kind: BlockClass) -> Callable[[int, int], Bytes]:
    """Q4_0, Q5_0, Q8_0, Q4_1, Q5_1."""
    width, k = int(kind.name[1]), coded.shape[-1]
    scale, bias, zero = coded.scale, coded.bias, coded.zero
    assert isinstance(scale, Grid) and (bias is None or isinstance(bias, Grid))
    none = np.empty(0, np.int32)
    groups = most_groups(coded) if coded.words is not None else k // 32

    def points(start: int, stop: int) -> NDArray[np.int32]:
        """The zero point of each group; of words, less the least code."""
        less = np.int32(coded.low if coded.words is not None else 0)
        if isinstance(zero, int):
            return np.full((stop - start) * groups, zero - less, np.int32)
        assert isinstance(zero, Grid)
        return spread(zero.by_group(start, stop), groups) - less

    def shared(start: int, stop: int) -> tuple[NDArray[np.int32], ...]:
        """Scales, and zero points or sums."""
        scales = bits_of(scale.by_group(start, stop), groups)
        return scales, points(start, stop) if bias is None else bits_of(bias.by_group(start, stop), groups)

    numbers = in_chunks(shared, coded.shape)

    def fill(out: NDArray[np.void], start: int, stop: int) -> None:
        raw = out.reshape(-1).view(np.uint8)
        scales, beside = numbers(start, stop)
        if coded.words is not None:
            zeros, sums = (beside, none) if bias is None else (none, beside)
            words = coded.words(start, stop).reshape(-1)
            kernels.words_to_blocks(words, k // groups, zeros, scales, sums, width, raw)
            return
        codes = np.ascontiguousarray(coded.codes(start, stop))
        flip, given = 128 if codes.dtype == np.int8 else 0, codes.view(np.uint8).reshape(-1)
        if bias is not None:
            kernels.to_affine(given, scales, beside, width, raw)
            return
        kernels.to_blocks(given, flip, beside, scales, width, raw)

    return _filled(kind, fill, coded.shape)


def most_groups(coded: Coded) -> int:
    """How many groups a row has, by what has most."""
    shared = (coded.scale, coded.zero, coded.bias)
    return max(numbers.values.row_len for numbers in shared if isinstance(numbers, Grid))


def _ternary(coded: Coded, kind: BlockClass) -> Callable[[int, int], Bytes]:
    """TQ2_0."""
    scale = coded.scale
    assert isinstance(scale, Grid)

    def fill(out: NDArray[np.void], start: int, stop: int) -> None:
        out["d"] = _shared(scale, start, stop, 256)
        q = (_numbers(coded, start, stop) + np.int16(1)).astype(np.uint8).reshape(*out.shape, 2, 4, 32)
        parts = q[..., 0, :] | q[..., 1, :] << 2 | q[..., 2, :] << 4 | q[..., 3, :] << 6
        out["qs"] = parts.reshape(*out.shape, 64)

    return _filled(kind, fill, coded.shape)


def _mxfp4(coded: Coded, kind: BlockClass) -> Callable[[int, int], Bytes]:
    scale = coded.scale
    assert isinstance(scale, Grid)

    def fill(out: NDArray[np.void], start: int, stop: int) -> None:
        out["e"] = np.frexp(_shared(scale, start, stop, 32))[1] + 126
        out["qs"] = _halves(coded.codes(start, stop))

    return _filled(kind, fill, coded.shape)


def _nvfp4(coded: Coded, kind: BlockClass) -> Callable[[int, int], Bytes]:
    scale = coded.scale
    assert isinstance(scale, Grid)

    def fill(out: NDArray[np.void], start: int, stop: int) -> None:
        small = _shared(scale, start, stop, 16).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
        out["d"] = small.reshape(*out.shape, 4)
        out["qs"] = _halves(coded.codes(start, stop), 16).reshape(*out.shape, 4, 8)

    return _filled(kind, fill, coded.shape)


_PACKERS = {
    "TQ2_0": _ternary, "Q4_0": _quants, "Q5_0": _quants, "Q4_1": _quants, "Q5_1": _quants, "Q8_0": _quants,
    "MXFP4": _mxfp4, "NVFP4": _nvfp4,
}  # fmt: skip
