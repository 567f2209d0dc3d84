"""Ops that change a tensor's numbers."""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.tables.ops.base import Dims, Op, Parts, Size, evaluate
from llmconv.errors import BadFile, Unsupported, UsageError
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import block, plain
from llmconv.quant.block import Bytes

__all__ = [
    "Backwards",
    "Exp",
    "Narrowed",
    "NegativeExp",
    "Offsets",
    "PackMxfp4",
    "Product",
    "Rounds",
    "Shift",
    "Softplus",
]


class Rounds(Op):
    """A function of each value, computed in float32 and stored as F32.

    It rounds, so `undo` alone does not always give the original bits: Hugging Face's dialect stores what is `lost`.
    """

    exact = False

    def forward(self, values: NDArray[Any]) -> NDArray[np.float32]:
        raise NotImplementedError

    def back(self, values: NDArray[Any]) -> NDArray[np.float32]:
        raise NotImplementedError

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        return tuple(p.map(self.forward, plain.F32) for p in parts)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        return tuple(p.map(self.back, plain.F32) for p in parts)

    def lost(self, tensor: Tensor, dims: Dims) -> NDArray[np.uint32] | None:
        """(n, 2) flattened: index and original bits of every value that `undo`, rounded, would not give back."""
        values = tensor.numpy().reshape(-1)
        if values.dtype.itemsize > 4:
            return None
        back = self.back(self.forward(values)).astype(values.dtype)
        bits = values.view(f"u{values.dtype.itemsize}").astype(np.uint32)
        index = np.flatnonzero(back.view(f"u{values.dtype.itemsize}") != bits)
        return np.stack([index.astype(np.uint32), bits[index]], axis=1).reshape(-1) if index.size else None

    def restored(self, tensor: Tensor, moved: Tensor, record: Any, dims: Dims) -> Tensor:
        """Kept values go back, each only where the stored one is still what its original gives."""
        if tensor.type.dtype is None or not isinstance(record, np.ndarray) or record.size % 2 or not tensor.shape:
            return tensor
        dtype, (index, bits) = tensor.type.dtype, record.reshape(-1, 2).T
        inside = index < tensor.n_elements
        index, bits = index[inside].astype(np.intp), bits[inside]
        originals = bits.astype(f"u{dtype.itemsize}").view(dtype)
        made = self.forward(originals).view(np.uint32)

        def patch(rows: NDArray[Any]) -> NDArray[Any]:
            same = made == moved.rows().reshape(-1)[index].view(np.uint32)
            out = np.array(rows)
            out[0, index[same]] = originals[same]
            return out

        return tensor.reshaped((tensor.n_elements,)).map(patch, tensor.type).reshaped(tensor.shape)


@dataclass(frozen=True)
class Shift(Rounds):
    """Values plus a constant (Gemma's norms, which multiply by 1 + w)."""

    by: float = 1.0

    def forward(self, values: NDArray[Any]) -> NDArray[np.float32]:
        return values.astype(np.float32) + np.float32(self.by)

    def back(self, values: NDArray[Any]) -> NDArray[np.float32]:
        return values.astype(np.float32) - np.float32(self.by)


@dataclass(frozen=True)
class NegativeExp(Rounds):
    """x -> -exp(x): the rates of decay of selective scans, which Hugging Face keeps as logarithms (A_log).

    Computed in float64 and rounded once, so that every machine gets the same bits.
    """

    def forward(self, values: NDArray[Any]) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):
            return (-np.exp(values.astype(np.float64))).astype(np.float32)

    def back(self, values: NDArray[Any]) -> NDArray[np.float32]:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(-values.astype(np.float64)).astype(np.float32)


@dataclass(frozen=True)
class Softplus(Rounds):
    """x -> log(1 + e^x), for scales that may be any number and are used as positive ones; float64, rounded once."""

    def forward(self, values: NDArray[Any]) -> NDArray[np.float32]:
        return np.logaddexp(0.0, values.astype(np.float64)).astype(np.float32)

    def back(self, values: NDArray[Any]) -> NDArray[np.float32]:
        wide = values.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            return (wide + np.log(-np.expm1(-wide))).astype(np.float32)


@dataclass(frozen=True)
class PackMxfp4(Op):
    """(blocks uint8 (..., n/32, 16), scales uint8 (..., n/32)) -> one MXFP4 tensor (..., n); only bits move.

    Source of both layouts: the OCP microscaling format as gpt-oss stores it (element 2i in byte i's low half), and
    ggml's block_mxfp4 (scale byte, then byte j with element j low and j + 16 high).
    """

    stored_as = block.by_name("MXFP4")

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        blocks, scales = parts
        *lead, n_blocks, half = blocks.shape
        if (
            half != 16
            or scales.shape != (*lead, n_blocks)
            or blocks.type is not plain.U8
            or scales.type is not plain.U8
        ):
            raise UsageError(
                f"tensors {blocks.name!r} {blocks.type.name}{list(blocks.shape)} and {scales.name!r} "
                f"{scales.type.name}{list(scales.shape)} are no MXFP4 pair; expected U8 (..., n, 16) and (..., n)"
            )

        def read(start: int, stop: int) -> Bytes:
            packed = blocks.read(start * n_blocks, stop * n_blocks)  # (rows * n_blocks, 16)
            values = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1, 32)
            out = np.empty((stop - start, n_blocks, 17), np.uint8)
            out[..., 0] = scales.read(start, stop)
            out[..., 1:] = (values[:, :16] | (values[:, 16:] << 4)).reshape(stop - start, n_blocks, 16)
            return out.reshape(stop - start, n_blocks * 17)

        return (Tensor(blocks.name, (*lead, n_blocks * 32), self.stored_as, read),)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        (whole,) = parts
        if whole.type is not self.stored_as:
            raise Unsupported(f"tensor {whole.name!r} is {whole.type.name}, expected MXFP4 to unpack it")
        *lead, n = whole.shape
        n_blocks = n // 32

        def block_bytes(start: int, stop: int) -> Bytes:
            lo, hi = start // n_blocks, -(-stop // n_blocks)
            qs = whole.read(lo, hi).reshape(-1, 17)[:, 1:]
            values = np.concatenate([qs & 15, qs >> 4], axis=1)
            packed = values[:, 0::2] | (values[:, 1::2] << 4)
            return np.ascontiguousarray(packed[start - lo * n_blocks : stop - lo * n_blocks])

        def scale_bytes(start: int, stop: int) -> Bytes:
            return np.ascontiguousarray(whole.read(start, stop).reshape(stop - start, n_blocks, 17)[..., 0])

        return (
            Tensor(whole.name, (*lead, n_blocks, 16), plain.U8, block_bytes),
            Tensor(whole.name, (*lead, n_blocks), plain.U8, scale_bytes),
        )


@dataclass(frozen=True)
class Exp(Rounds):
    """x -> exp(x), of rates that a GGUF keeps above zero (Ling 3)."""

    def forward(self, values: NDArray[Any]) -> NDArray[np.float32]:
        return -NegativeExp().forward(values)

    def back(self, values: NDArray[Any]) -> NDArray[np.float32]:
        return NegativeExp().back(-values)


@dataclass(frozen=True)
class Backwards(Op):
    """The second half of each head's rows negated: pairs that turn the other way round.  Needs plain values."""

    heads: Size = 1

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        return tuple(self._negated(p, evaluate(self.heads, dims)) for p in parts)

    undo = apply

    @staticmethod
    def _negated(tensor: Tensor, heads: int) -> Tensor:
        if tensor.type.dtype is None:
            raise Unsupported(f"rows of tensor {tensor.name!r} of type {tensor.type.name} can't be negated; decode it")
        source, size = tensor.read, tensor.n_rows // max(heads, 1)
        last = tensor.type.dtype.itemsize - 1  # the byte with the sign, numbers being little-endian

        def read(start: int, stop: int) -> Bytes:
            values = np.array(source(start, stop)).reshape(stop - start, -1, last + 1)
            second = np.arange(start, stop) % size >= size // 2
            values[second, :, last] ^= 0x80
            return values.reshape(stop - start, -1)

        return dataclasses.replace(tensor, read=read, extent=None)


@dataclass(frozen=True)
class Product(Op):
    """Two vectors -> each number of the one times that of the other, in float32; the second may be a matrix of one row.

    Undone, the first is all ones; the record is the bytes of both, and of a check of what they gave.
    """

    row: bool = False
    stored_as = block.by_name("F32")
    exact = False

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        one, other = parts

        def read(start: int, stop: int) -> Bytes:
            a, b = (part.numpy().reshape(1, -1).astype(np.float32) for part in (one, other))
            return (a * b).view(np.uint8)[start:stop]

        return (Tensor(one.name, one.shape, plain.F32, read),)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        (product,) = parts
        ones = Tensor(
            product.name,
            product.shape,
            plain.F32,
            lambda a, b: np.ones((b - a, product.row_len), np.float32).view("u1"),
        )
        return ones, product.reshaped((1, *product.shape)) if self.row else product

    def all_lost(self, parts: Parts, dims: Dims) -> tuple[Any, ...]:
        check = self._check(self.apply(parts, dims)[0])
        return tuple(
            np.concatenate([check, np.ascontiguousarray(part.blocks()).reshape(-1).view(np.uint8)]) for part in parts
        )

    def restored(self, tensor: Tensor, moved: Tensor, record: Any, dims: Dims) -> Tensor:
        size = 4 + tensor.n_rows * tensor.row_bytes
        fits = isinstance(record, np.ndarray) and record.dtype == np.uint8 and record.size == size
        if not fits or not np.array_equal(record[:4], self._check(moved)):
            return tensor
        kept = record[4:].reshape(tensor.n_rows, -1)
        return dataclasses.replace(tensor, read=lambda a, b: kept[a:b], extent=None)

    @staticmethod
    def _check(product: Tensor) -> NDArray[np.uint8]:
        crc = zlib.crc32(product.numpy().astype("<f4").tobytes())
        return np.frombuffer(crc.to_bytes(4, "little"), np.uint8)


@dataclass(frozen=True)
class Narrowed(Op):
    """Whole numbers of eight bytes -> of four (which experts a word has); what had four comes back with four."""

    stored_as = block.by_name("I32")
    exact = False

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        return tuple(self._cast(p, block.by_name("I32")) for p in parts)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        return tuple(self._cast(p, block.by_name("I64")) for p in parts)

    def lost(self, tensor: Tensor, dims: Dims) -> NDArray[Any] | None:
        return np.zeros(1, np.uint8) if tensor.type is self.stored_as else None

    def restored(self, tensor: Tensor, moved: Tensor, record: Any, dims: Dims) -> Tensor:
        return self._cast(tensor, self.stored_as)

    def _cast(self, tensor: Tensor, kind: BlockClass) -> Tensor:
        if tensor.type.name not in ("I32", "I64"):
            raise Unsupported(f"tensor {tensor.name!r} is {tensor.type.name}, expected whole numbers: I64 or I32")
        own, wanted = tensor.type.dtype, kind.dtype
        assert own is not None and wanted is not None

        def read(start: int, stop: int) -> Bytes:
            values = tensor.read(start, stop).view(own)
            out = values.astype(wanted)
            if (out != values).any():
                raise BadFile(
                    f"tensor {tensor.name!r} holds {values[out != values][0]}, which is no number of an expert"
                )
            return out.view(np.uint8)

        return tensor if kind is tensor.type else dataclasses.replace(tensor, type=kind, read=read, extent=None)


@dataclass(frozen=True)
class Offsets(Op):
    """A vector of whole numbers that count from their own places -> from 0: x[i] + i (which words a draft knows)."""

    stored_as = block.by_name("I64")

    def apply(self, parts: Parts, dims: Dims) -> Parts:
        return tuple(self._moved(p, 1) for p in parts)

    def undo(self, parts: Parts, dims: Dims) -> Parts:
        return tuple(self._moved(p, -1) for p in parts)

    def _moved(self, tensor: Tensor, sign: int) -> Tensor:
        if tensor.type is not self.stored_as:
            raise Unsupported(f"tensor {tensor.name!r} is {tensor.type.name}, expected I64, which words are counted in")

        def read(start: int, stop: int) -> Bytes:
            values = tensor.read(start, stop).view(np.int64)  # a vector is one row
            return (values + sign * np.arange(tensor.row_len)).astype(np.int64).view(np.uint8)

        return dataclasses.replace(tensor, read=read, extent=None)
