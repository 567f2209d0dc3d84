"""`Times`: weights that a GGUF stores multiplied by numbers of the configuration (Falcon-H1's, Jais's).

The factors are keys of ours, `scaled_by.NAME`: a GGUF says by what its weights were multiplied, one of somebody else's
that has none was multiplied by nothing.  A product rounds.  Dividing finds the original among the few neighbours that
give the stored number; where more than one does, a bit says which, and what neither tells is written out.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.tables.keys import SCALED_BY
from llmconv.convert.tables.ops import Dims, Op, Parts, Rounds, Size, evaluate
from llmconv.errors import Unsupported
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import plain
from llmconv.quant.block import Bytes

__all__ = ["Filled", "Halved", "Times"]

_HEAD = np.dtype([("crc", "<u4"), ("others", "<u4")])
_OTHER = np.dtype([("index", "<u8"), ("bits", "<u4")])
_NEAR = 2  # steps on either side of the quotient that are tried
_SIGN = {2: 0x8000, 4: 0x80000000}


@dataclass(frozen=True)
class Times(Op):
    """A tensor times each of the factors in turn, in float32, then runs of its rows times those of `runs`.

    factors: names of `scaled_by`; "mlp.1" is the second number of a list.   runs: (how many rows, factor), in order.
    """

    exact = False
    factors: tuple[str, ...] = ()
    runs: tuple[tuple[Size, str], ...] = ()

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        return tuple(self._moved(p, dims, np.multiply, _made(p)) for p in parts)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        return tuple(self._moved(p, dims, np.divide, plain.F32) for p in parts)

    def _moved(self, tensor: Tensor, dims: Dims, how: Any, to: BlockClass) -> Tensor:
        steps = self._steps(dims, tensor.shape[0])
        if not steps:
            return tensor
        each = tensor.shape[0] / tensor.n_rows  # a vector is one row

        def read(start: int, stop: int) -> Bytes:
            part = slice(int(start * each), int(stop * each))
            return to.encode(_through(tensor.rows(start, stop), steps, part, how))

        return dataclasses.replace(tensor, type=to, read=read, extent=None)

    def _steps(self, dims: Dims, rows: int) -> tuple[NDArray[np.float32], ...]:
        """The factors, one for each row; those that are 1 left out."""
        steps = [np.full(rows, _factor(dims, name), np.float32) for name in self.factors]
        if self.runs:
            counts = [evaluate(size, dims) for size, _ in self.runs]
            steps.append(np.repeat([_factor(dims, name) for _, name in self.runs], counts))
        return tuple(step.astype(np.float32) for step in steps if np.any(step != 1))

    def lost(self, tensor: Tensor, dims: Dims) -> NDArray[np.uint8] | None:
        """A check of the product's bytes, numbers that are none of two neighbours, and a bit for each that is."""
        steps = self._steps(dims, tensor.shape[0])
        if not steps or tensor.type.dtype is None or tensor.type.dtype.itemsize not in _SIGN:
            return None
        kind, made = tensor.type.dtype, self.apply((tensor,), dims)[0]
        crc, at, bits, others = 0, 0, [], []
        for start, stop in made.slabs():
            stored, originals = made.rows(start, stop), _bits(tensor.rows(start, stop)).reshape(-1)
            crc = zlib.crc32(np.ascontiguousarray(stored).tobytes(), crc)
            low, high = _neighbours(stored, steps, _part(made, start, stop), kind)
            two = low != high
            bits.append((originals == high)[two])
            wrong = np.flatnonzero((originals != low) & (originals != high))
            other = np.empty(wrong.size, _OTHER)
            other["index"], other["bits"] = wrong + at, originals[wrong]
            others.append(other)
            at += originals.size
        flags, rest = np.concatenate(bits), np.concatenate(others)
        if not flags.size and not rest.size:
            return None
        head = np.array([(crc, rest.size)], _HEAD)
        return np.concatenate([head.view(np.uint8), rest.view(np.uint8), np.packbits(flags)])

    def restored(self, tensor: Tensor, moved: Tensor, record: Any, dims: Dims) -> Tensor:
        """The originals, unless the stored numbers are others by now."""
        steps = self._steps(dims, moved.shape[0])
        sizes = tensor.type.dtype and tensor.type.dtype.itemsize, moved.type.dtype and moved.type.dtype.itemsize
        fits = isinstance(record, np.ndarray) and record.dtype == np.uint8 and record.size >= _HEAD.itemsize
        if not steps or not fits or any(size not in _SIGN for size in sizes):
            return tensor
        kept = _Kept(tensor, moved, steps, record)
        return dataclasses.replace(tensor, read=kept.read, extent=None)


@dataclass(frozen=True)
class _Power(Rounds):
    """Values times a power of two, in their own type: exact but for numbers next to zero."""

    factor: float = 1.0

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        return tuple(p if self.factor == 1 else p.map(self.forward, p.type) for p in parts)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        return tuple(p if self.factor == 1 else p.map(self.back, p.type) for p in parts)

    def forward(self, values: NDArray[Any]) -> NDArray[np.float32]:
        return values.astype(np.float32) * np.float32(self.factor)

    def back(self, values: NDArray[Any]) -> NDArray[np.float32]:
        return values.astype(np.float32) / np.float32(self.factor)


@dataclass(frozen=True)
class Halved(Op):
    """Weights halved once for every `rescale_every` layers before theirs (RWKV 6)."""

    exact = False

    @staticmethod
    def _power(dims: Dims) -> _Power:
        every = dims.get("n_rescale", 0)
        return _Power(2.0 ** -(dims["i"] // every) if every else 1.0)

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        return self._power(dims).apply(parts, dims)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        return self._power(dims).undo(parts, dims)

    def lost(self, tensor: Tensor, dims: Dims) -> NDArray[Any] | None:
        """Index and bits of the values that doubling would not give back; None where there are none."""
        power, dtype = self._power(dims), tensor.type.dtype
        if power.factor == 1 or dtype is None or dtype.itemsize not in _SIGN:
            return None
        back = power.undo(power.apply((tensor,), dims), dims)[0]
        bits, other = (_bits(t.rows()).reshape(-1) for t in (tensor, back))
        index = np.flatnonzero(bits != other)
        found = np.stack([index.astype(np.uint32), bits[index].astype(np.uint32)], axis=1)
        return found.reshape(-1) if index.size else None

    def restored(self, tensor: Tensor, moved: Tensor, record: Any, dims: Dims) -> Tensor:
        """The values of a record, where what is stored is still what they give."""
        dtype, fits = tensor.type.dtype, isinstance(record, np.ndarray) and record.dtype == np.uint32
        if dtype is None or dtype.itemsize not in _SIGN or not fits or record.size % 2:
            return tensor
        index, bits = record.reshape(-1, 2).T
        originals = bits.astype(f"u{dtype.itemsize}").view(dtype)
        flat = np.array(tensor.rows()).reshape(-1)
        inside = index < flat.size
        index, originals = index[inside].astype(np.intp), originals[inside]
        stored = moved.rows().reshape(-1)[index].astype(np.float32)
        given = Tensor.from_array("", originals.reshape(1, -1)).map(self._power(dims).forward, moved.type).rows()
        same = stored == given.reshape(-1).astype(np.float32)
        flat[index[same]] = originals[same]
        return Tensor.from_array(tensor.name, flat.reshape(tensor.shape))


@dataclass(frozen=True)
class Filled(Op):
    """A tensor, and beside it vectors of one number each: norms that a model has without weights.

    vectors: (how long, name of the factor that they are filled with; "": ones).
    """

    vectors: tuple[tuple[Size, str], ...] = ()

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        (whole,) = parts
        made = (
            Tensor.from_array(
                f"{whole.name}.{i}", np.full(evaluate(size, dims), _factor(dims, name) if name else 1, np.float32)
            )
            for i, (size, name) in enumerate(self.vectors)
        )
        return (whole, *made)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        whole, *filled = parts
        for vector, (_, name) in zip(filled, self.vectors, strict=True):
            wanted = np.float32(_factor(dims, name) if name else 1)
            if vector.extent is not None and not np.array_equal(vector.numpy(), np.full(vector.shape, wanted)):
                raise Unsupported(
                    f"tensor {vector.name!r} has other numbers than {wanted:g}, and a folder has no place for them; a "
                    "GGUF keeps them"
                )
        return (whole,)


class _Kept:
    """A tensor with the originals of a record; what is stored is looked through when the first rows are asked for."""

    def __init__(self, tensor: Tensor, moved: Tensor, steps: tuple[NDArray[np.float32], ...], record: Any):
        self.tensor, self.moved, self.steps = tensor, moved, steps
        assert tensor.type.dtype is not None
        self.kind = tensor.type.dtype
        self.crc, count = (int(n) for n in record[: _HEAD.itemsize].view(_HEAD)[0])
        rest = record[_HEAD.itemsize :]
        self.others = rest[: count * _OTHER.itemsize].view(_OTHER) if rest.size >= count * _OTHER.itemsize else None
        self.flags = rest[count * _OTHER.itemsize :]

    @functools.cached_property
    def before(self) -> dict[int, int] | None:
        """How many flags stand before each slab's, by its first row; None where the record is not of these numbers."""
        crc, seen, found = 0, 0, {}
        for start, stop in self.slabs():
            stored = self.moved.rows(start, stop)
            crc = zlib.crc32(np.ascontiguousarray(stored).tobytes(), crc)
            found[start] = seen
            low, high = self._two(start, stop, stored)
            seen += int(np.count_nonzero(low != high))
        whole = self.others is not None and self.flags.size == -(-seen // 8)
        return found if whole and crc == self.crc else None

    def slabs(self) -> Iterator[tuple[int, int]]:
        return self.moved.slabs()

    def _two(self, start: int, stop: int, stored: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        return _neighbours(stored, self.steps, _part(self.moved, start, stop), self.kind)

    def read(self, start: int, stop: int) -> Bytes:
        if self.before is None:
            return self.tensor.read(start, stop)
        rows = [
            self._slab(a, b)[max(start, a) - a : min(stop, b) - a] for a, b in self.slabs() if a < stop and b > start
        ]
        return np.concatenate(rows) if rows else np.empty((0, self.tensor.row_bytes), np.uint8)

    def _slab(self, start: int, stop: int) -> Bytes:
        assert self.before is not None and self.others is not None
        low, high = self._two(start, stop, self.moved.rows(start, stop))
        two = np.flatnonzero(low != high)
        first = self.before[start]
        bits = np.unpackbits(self.flags[first // 8 : (first + two.size + 7) // 8])[first % 8 :][: two.size]
        low[two[bits == 1]] = high[two[bits == 1]]
        at = start * self.moved.row_len
        here = self.others[(self.others["index"] >= at) & (self.others["index"] < at + low.size)]
        low[(here["index"] - at).astype(np.intp)] = here["bits"].astype(low.dtype)
        return low.reshape(stop - start, -1).view(np.uint8)


def _made(tensor: Tensor) -> BlockClass:
    """How a product is stored: vectors in F32, as GGUF has them, others as they were."""
    return plain.F32 if len(tensor.shape) == 1 or tensor.type.dtype is None else tensor.type


def _factor(dims: Dims, name: str) -> float:
    all_of_them: Any = dims.get(SCALED_BY, {})
    name, _, index = name.partition(".")
    value = all_of_them.get(name, 1.0)
    if isinstance(value, tuple):
        value = value[int(index or 0)] if int(index or 0) < len(value) else 1.0
    if not value:
        raise Unsupported(f"factor {name!r} is 0, which leaves nothing of the weights; not known here")
    return float(value)


def _part(tensor: Tensor, start: int, stop: int) -> slice:
    return slice(0, tensor.shape[0]) if len(tensor.shape) == 1 else slice(start, stop)


def _through(values: NDArray[Any], steps: Any, part: slice, how: Any) -> NDArray[np.float32]:
    """Values (n, row_len), or a vector's in one row, times (or by) each factor; float16 is rounded at every step."""
    out = values.astype(np.float32)
    for step in steps if how is np.multiply else reversed(steps):
        factors = step[part]
        out = how(out, factors if len(factors) == out.shape[-1] and len(out) == 1 else factors[:, None])
        if values.dtype == np.float16 and how is np.multiply:
            out = out.astype(np.float16).astype(np.float32)
    return out


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")


def _neighbours(
    stored: NDArray[Any], steps: Any, part: slice, kind: np.dtype[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Bits of the least and second number of a type whose product is the stored one; twice the same where one is."""
    if kind.itemsize != 2 or stored.dtype != kind:
        return _tried(stored, steps, part, kind)
    low = np.empty(stored.shape, np.uint16)
    high, bits = low.copy(), _bits(stored)
    combined, which = np.unique(np.stack([step[part] for step in steps], 1), axis=0, return_inverse=True)
    for i, factors in enumerate(combined):
        rows = which.reshape(-1) == i
        first, second = _table(tuple(float(f) for f in factors), kind)
        low[rows], high[rows] = first[bits[rows]], second[bits[rows]]
    return low.reshape(-1), high.reshape(-1)


@functools.lru_cache(16)
def _table(factors: tuple[float, ...], kind: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The neighbours of every number of two bytes."""
    steps = tuple(np.full(1, factor, np.float32) for factor in factors)
    every = np.arange(1 << 16, dtype=np.uint16).view(kind)[None]
    return _tried(every, steps, slice(0, 1), kind)


def _tried(stored: NDArray[Any], steps: Any, part: slice, kind: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    top = np.array(_SIGN[kind.itemsize], f"u{kind.itemsize}")
    with np.errstate(all="ignore"):
        near = _bits(_through(stored.astype(np.float32), steps, part, np.divide).astype(kind))
        sign, size = near & top, (near & ~top).astype(np.int64)
        low, high, found = near.copy(), near.copy(), np.zeros(near.shape, np.int8)
        for step in range(-_NEAR, _NEAR + 1):
            tried = np.maximum(size + step, 0).astype(near.dtype) | sign
            product = _through(tried.view(kind), steps, part, np.multiply).astype(stored.dtype)
            fits = (_bits(product) == _bits(stored)) & (size + step >= 0)
            low = np.where(fits & (found == 0), tried, low)
            high = np.where(fits & (found == 1), tried, high)
            found += fits
    return low.reshape(-1), np.where(found > 1, high, low).reshape(-1)
