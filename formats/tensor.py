"""A lazy tensor: a name, a shape, a block type, and a way to read rows of its bytes.

This is the only laziness in the house.  Whatever transforms a tensor (a cast, a permutation, a rename) makes
a new `Tensor` whose `read` calls the old one's, so that nothing is in memory before somebody asks for rows.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from llmconv.errors import UsageError, cut, shown
from llmconv.formats import limits
from llmconv.quant import plain
from llmconv.quant.block import BlockType, Bytes

__all__ = ["SLAB_BYTES", "BlockClass", "Extent", "Tensor", "folded", "type_of_dtype"]

SLAB_BYTES = 8 << 20
"""How many bytes of a tensor are worked on at a time, where there is no reason for another number."""

BlockClass: TypeAlias = type[BlockType]
"""A block type is a class, never instantiated."""

_BY_DTYPE: dict[Any, BlockClass] = {
    cls.dtype: cls
    for cls in vars(plain).values()
    if isinstance(cls, type) and issubclass(cls, BlockType) and getattr(cls, "dtype", None) is not None
}


def type_of_dtype(dtype: np.dtype[Any]) -> BlockClass:
    """The plain type that stores this numpy dtype; `UsageError` when there is none."""
    dtype = np.dtype(dtype)
    found = _BY_DTYPE.get(dtype.newbyteorder("<") if dtype.itemsize > 1 and dtype.byteorder != "|" else dtype)
    if found is None:
        raise UsageError(f"no tensor type stores numpy's {dtype}; cast the array first")
    return found


def _is_torch(value: Any) -> bool:
    torch = sys.modules.get("torch")  # whoever has a torch tensor has loaded torch
    return torch is not None and isinstance(value, torch.Tensor)


def _of_torch(value: Any) -> NDArray[Any]:
    """A torch tensor's values as a numpy array of the same dtype; ml_dtypes has those that numpy lacks."""
    if value.layout != sys.modules["torch"].strided or value.is_quantized or value.is_meta:
        raise UsageError(f"a torch tensor without values of its own can't be stored ({value.layout}, {value.device})")
    value = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
    name = str(value.dtype).removeprefix("torch.")
    try:
        return value.numpy()  # type: ignore[no-any-return]
    except TypeError:  # bfloat16, float8: the same bytes under a name of numpy's
        own = getattr(ml_dtypes, name, None)
        if own is None:
            raise UsageError(f"no tensor type stores torch's {name}; cast it first") from None
        raw = sys.modules["torch"].uint8
        return np.asarray(value.reshape(-1).view(raw).numpy().view(own).reshape(tuple(value.shape)))


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a tensor's bytes lie, whole and unchanged, in a file: what the kernel may copy by itself."""

    path: Path
    offset: int
    nbytes: int
    stamp: tuple[int, int, int] | None = None
    """The file's size, time of change and inode when it was opened; a copier refuses a file that differs."""


@dataclass(frozen=True, slots=True, repr=False)
class Tensor:
    """A named array of shape `shape` (row-major: the last dimension is the row), stored as `type`.

    `read(start, stop)` gives the bytes of rows start..stop as a C-contiguous uint8 array of shape
    (stop - start, row_bytes), possibly a read-only view of a mapped file.  A scalar is one row of one element.
    """

    name: str
    shape: tuple[int, ...]
    type: BlockClass
    read: Callable[[int, int], Bytes] = dataclasses.field(repr=False)
    extent: Extent | None = dataclasses.field(default=None, repr=False)
    begins: tuple[Path, int] | None = dataclasses.field(default=None, repr=False)
    """Where its first bytes come from, as far as anybody knows: for the order in which tensors are read."""

    @property
    def row_len(self) -> int:
        """Elements in a row: the last dimension."""
        return self.shape[-1] if self.shape else 1

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        return self.type.row_bytes(self.row_len)

    @property
    def nbytes(self) -> int:
        return self.n_rows * self.row_bytes

    def blocks(self, start: int = 0, stop: int | None = None) -> Bytes:
        """Stored bytes of rows start..stop: (n, row_bytes) uint8."""
        return self.read(start, self.n_rows if stop is None else stop)

    def rows(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Values of rows start..stop: (n, row_len), in the type's own dtype if plain, else decoded to float32."""
        return self.type.decode(self.blocks(start, stop))

    def numpy(self) -> NDArray[Any]:
        """All values, in `shape`."""
        return self.rows().reshape(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """For `np.asarray(tensor)`: all values, decoded."""
        return np.array(self.numpy(), dtype, copy=copy)

    def __getitem__(self, key: Any) -> Any:
        """Values, chosen as numpy does: `tensor[3]`, `tensor[10:20, :4]`, `tensor[..., 0]`.

        An index or slice of the first dimension reads (and decodes) those rows alone, any other the whole tensor.
        """
        first, *rest = key if isinstance(key, tuple) else (key,)
        simple = isinstance(first, int | np.integer | slice) and not isinstance(first, bool)
        if len(self.shape) < 2 or not simple:
            return self.numpy()[key]
        wanted = range(self.shape[0])[first]  # an IndexError beyond the end
        low, high = (
            (wanted, wanted + 1) if isinstance(wanted, int) else (min(wanted, default=0), max(wanted, default=-1) + 1)
        )
        inner = math.prod(self.shape[1:-1])
        part = self.rows(low * inner, high * inner).reshape(high - low, *self.shape[1:])
        return part[(0 if isinstance(wanted, int) else slice(None, None, wanted.step), *rest)]

    def __repr__(self) -> str:
        return f"<Tensor {cut(self.name)} {self.type.name} {shown(self.shape)}>"

    def slabs(self, max_bytes: int = SLAB_BYTES) -> Iterator[tuple[int, int]]:
        """Row ranges (start, stop) that cover the tensor, each of about `max_bytes` stored bytes."""
        n = self.n_rows
        step = max(1, max_bytes // max(1, self.row_bytes))
        for start in range(0, n, step):
            yield start, min(n, start + step)

    def renamed(self, name: str) -> Tensor:
        return dataclasses.replace(self, name=name)

    def reshaped(self, shape: tuple[int, ...]) -> Tensor:
        """The same bytes under another shape.

        Any shape of as many elements for a plain type; a block type must keep whole blocks in its rows.
        """
        if math.prod(shape) != self.n_elements:
            raise UsageError(f"tensor {self.name!r} of shape {self.shape} can't become {shape}: other element count")
        old, new_row = self, shape[-1] if shape else 1
        if new_row == self.row_len:
            return dataclasses.replace(self, shape=shape)
        size = self.type.row_bytes(new_row)  # raises when blocks would be cut

        def read(start: int, stop: int) -> Bytes:
            lo, hi = start * size, stop * size
            if hi <= lo:
                return np.empty((0, size), np.uint8)
            first, last = lo // old.row_bytes, -(-hi // old.row_bytes)
            flat = old.read(first, last).reshape(-1)
            return flat[lo - first * old.row_bytes : hi - first * old.row_bytes].reshape(-1, size)

        return dataclasses.replace(self, shape=shape, read=read)

    def map(
        self,
        fn: Callable[[NDArray[Any]], NDArray[Any]],
        to: BlockClass,
        importance: NDArray[np.float32] | None = None,
    ) -> Tensor:
        """`fn` on each slab of values, stored as `to`; same shape.  `fn` must work row by row."""
        source = self

        def read(start: int, stop: int) -> Bytes:
            return to.encode(fn(source.rows(start, stop)), importance)

        return dataclasses.replace(self, type=to, read=read, extent=None)

    def astype(self, to: BlockClass, importance: NDArray[np.float32] | None = None) -> Tensor:
        """This tensor stored as another type (itself when it is that type already)."""
        return self if to is self.type else self.map(lambda rows: rows, to, importance)

    @staticmethod
    def shadow(name: str, shape: tuple[int, ...], type: BlockClass) -> Tensor:
        """A tensor that has a shape and no bytes: to ask what a tensor of that shape would become."""
        return Tensor(name, shape, type, _no_bytes)

    @staticmethod
    def from_array(name: str, array: Any, type: BlockClass | None = None) -> Tensor:
        """A tensor over an array in memory, of the type that stores its dtype (or cast to `type`).

        array: a numpy array or what numpy makes one of; or a torch tensor or parameter, on any device.
        `UsageError` when no type stores its dtype.
        """
        array = _of_torch(array) if _is_torch(array) else np.asarray(array)
        own = type_of_dtype(array.dtype)
        shape = array.shape
        little = np.ascontiguousarray(array, own.dtype)
        data = little.reshape(math.prod(shape[:-1]), shape[-1] if shape else 1).view(np.uint8)
        tensor = Tensor(name, shape, own, lambda start, stop: data[start:stop])
        return tensor if type is None else tensor.astype(type)


def _no_bytes(start: int, stop: int) -> Bytes:
    raise AssertionError("a shadow has no bytes")


def folded(tensor: Tensor, most: int = limits.GGUF_DIMS) -> Tensor:
    """The tensor with at most so many dimensions, the first ones made one where there are more."""
    extra = len(tensor.shape) - most + 1
    return tensor if extra < 2 else tensor.reshaped((math.prod(tensor.shape[:extra]), *tensor.shape[extra:]))
