"""What one thread does to a slab of rows: read it, look at it, encode it to every type asked for, write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llmconv.errors import BadWeight, UsageError
from llmconv.formats.files import open_regular
from llmconv.formats.places.remote import RemotePath
from llmconv.formats.source import read_into, reading
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.formats.writing.target import Item, Target
from llmconv.quant.block import Bytes
from llmconv.quant.nonfinite import first_nonfinite

__all__ = ["Worker"]


class Worker:
    """What one thread needs: buffers that are used again, and the source file that is open.

    check: refuse weights that are not finite, or overflow their type, by tensor and index.
    """

    def __init__(self, check: bool):
        self._check = check
        self._buffers: dict[str, Bytes] = {}
        self._open: tuple[Path, BinaryIO] | None = None

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def encode(self, item: Item, start: int, stop: int) -> int:
        """Rows start..stop to all targets; the bytes read."""
        tensor = item.tensor
        blocks = self._read(tensor, start, stop)
        values: NDArray[Any] | None = None
        if item.encodes or (self._check and tensor.type.is_float and not _has_finite_scales(tensor.type, blocks)):
            values = self._values(tensor, blocks)
            if self._check:
                self._refuse_nonfinite(item, values, start)
        made: dict[tuple[str, int], Bytes] = {}
        for target in item.targets:
            key = (target.type.name, id(target.importance))
            if key not in made:
                made[key] = self._encoded(item, target, blocks, values, start, len(made))
            data = made[key] if target.change is None else target.change(tensor, made[key])
            if data.size:
                data = np.ascontiguousarray(data)
                target.sink.write(data.reshape(-1).data, target.offset + start * data.shape[1])
        if item.written is not None:
            item.written(start, stop)
        return blocks.nbytes

    def _encoded(
        self, item: Item, target: Target, blocks: Bytes, values: NDArray[Any] | None, start: int, index: int
    ) -> Bytes:
        tensor, kind = item.tensor, target.type
        if kind is tensor.type or values is None:
            return blocks
        importance = target.importance
        if importance is not None:
            importance = importance[min(start // max(1, item.stacked_rows), len(importance) - 1)]
            importance = importance if importance.any() else None
        n, row = len(blocks), kind.row_bytes(tensor.row_len)
        out = kind.encode(values, importance, self._buffer(f"out{index}", n * row).reshape(n, row))
        if self._check and values.dtype != np.float16:  # a scale of float16 weights can't overflow
            self._refuse_overflow(item, kind, out, start)
        return out

    def _buffer(self, name: str, nbytes: int) -> Bytes:
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < nbytes:
            buffer = self._buffers[name] = np.empty(nbytes, np.uint8)
        return buffer[:nbytes]

    def _values(self, tensor: Tensor, blocks: Bytes) -> NDArray[Any]:
        if tensor.type.is_plain():
            return tensor.type.decode(blocks)
        out = self._buffer("values", len(blocks) * tensor.row_len * 4).view(np.float32)
        return tensor.type.decode(blocks, out.reshape(len(blocks), tensor.row_len))

    def _read(self, tensor: Tensor, start: int, stop: int) -> Bytes:
        extent, row = tensor.extent, tensor.row_bytes
        if extent is None or isinstance(extent.path, RemotePath):
            return _checked(tensor, start, stop, tensor.read(start, stop))
        out = self._buffer("in", (stop - start) * row)
        if len(out):
            descriptor = self._source(extent.path)
            with reading(descriptor, extent.path, extent.stamp):
                read_into(descriptor, out.data, extent.offset + start * row)
        return out.reshape(stop - start, row)

    def _source(self, path: Path) -> int:
        if self._open is None or self._open[0] != path:
            self.close()
            self._open = path, open_regular(path)
        return self._open[1].fileno()

    def _refuse_nonfinite(self, item: Item, values: NDArray[Any], start: int) -> None:
        index = first_nonfinite(values, compiled=any(not target.type.is_plain() for target in item.targets))
        if index is None:
            return
        tensor, value = item.tensor, values.reshape(-1)[index]
        place = np.unravel_index(start * tensor.row_len + index, tensor.shape) if tensor.shape else ()
        index_of = [int(i) for i in place]
        raise BadWeight(
            f"{_of(item)}: weight {index_of} is {value}; repair the model, or let it through with --allow-nonfinite",
            tensor=tensor.name,
            index=index_of,
            value=float(value),
        )

    def _refuse_overflow(self, item: Item, kind: BlockClass, out: Bytes, start: int) -> None:
        if kind.dtype is not None:
            index = first_nonfinite(kind.decode(out)) if kind.dtype.itemsize < 4 else None
            row = None if index is None else index // item.tensor.row_len
        else:
            row = _overflowed_row(kind, out)
        if row is not None:
            raise BadWeight(
                f"{_of(item)}: row {start + row} is too large for {kind.name}; "
                "choose another type for it (--tensor-type), or let it through with --allow-nonfinite",
                tensor=item.tensor.name,
                index=[start + row],
                type=kind.name,
            )


def _checked(tensor: Tensor, start: int, stop: int, blocks: Bytes) -> Bytes:
    """What a tensor made elsewhere gave, if it is what it says it is."""
    if blocks.shape != (stop - start, tensor.row_bytes) or blocks.dtype != np.uint8:
        raise UsageError(
            f"tensor {tensor.name!r} gave rows {start}..{stop} as {blocks.dtype} {blocks.shape}, "
            f"expected uint8 {(stop - start, tensor.row_bytes)}"
        )
    return blocks


def _of(item: Item) -> str:
    name = f"tensor {item.tensor.name!r}"
    return f"{item.where}: {name}" if item.where else name


def _has_finite_scales(kind: BlockClass, blocks: Bytes) -> bool:
    """Whether the scales alone say that all weights are finite: they needn't be decoded to be looked at."""
    return kind.finite_by_scales and _overflowed_row(kind, blocks) is None


def _overflowed_row(kind: BlockClass, out: Bytes) -> int | None:
    """The first row with a float16 scale that is infinite or not a number."""
    blocks = out.reshape(-1).view(kind.layout)
    for name in kind.layout.names or ():
        if kind.layout[name] == np.float16:
            bits = blocks[name].view(np.uint16) & np.uint16(0x7C00)
            if len(bits) and bits.max() == 0x7C00:
                return int(np.argmax(bits)) // (len(blocks) // len(out))
    return None
