"""Block types: how a row of weights is laid out in bytes, and the registry of all of them.

A *block* is the unit of a type: `block_size` weights in `layout.itemsize` bytes.  Plain types (F32, I8, ...)
have blocks of one weight.  A row is a whole number of blocks; rows never share a block.

One class is one type and one file is one family.  Subclassing `BlockType` with a `name` registers it, and
every generic test (golden bytes, round trip, hostile values, speed) then runs on it.  Another package names its classes
as entry points of the group `llmconv.types`; they are imported when a name or number is not known, or all are listed.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from llmconv.errors import UnknownName, UsageError
from llmconv.quant import entry_points
from llmconv.quant.kernels import flat

__all__ = ["BlockType", "Bytes", "Floats", "by_ggml_id", "by_name", "names", "types"]

Floats = NDArray[Any]
"""Weights: float64, float32, float16 or bfloat16 (`ml_dtypes.bfloat16`)."""
Bytes = NDArray[np.uint8]

KERNEL_DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
"""What a kernel may be handed: it widens each value to float32, exactly, as it loads."""

_BY_NAME: dict[str, type[BlockType]] = {}
_BY_GGML: dict[int, type[BlockType]] = {}


class BlockType:
    """One way of storing a row of weights.  Never instantiated: the class is the type.

    A subclass sets `name`, `layout` and, where they apply, the other attributes, and either `kernels`, or implements
    `_encode` and `_decode` (or leaves `_encode` out: a type that can only be read).
    """

    name: ClassVar[str]
    ggml_id: ClassVar[int | None] = None
    """The type's number in GGUF files; None for a type GGUF does not have, which no GGUF can hold."""
    block_size: ClassVar[int] = 1
    """Weights in a block."""
    layout: ClassVar[np.dtype[Any]]
    """The block's bytes, little-endian, field by field."""
    dtype: ClassVar[np.dtype[Any] | None] = None
    """For plain types: the numpy dtype of one element."""
    is_float: ClassVar[bool] = True
    """False for integers and booleans, which are carried but never quantized."""
    kernels: Any = None  # no ClassVar: mypy would not let a module be one
    """Where the type's kernels are, of `llmconv.quant.kernels`: `encode_q8_0` and `decode_q8_0` for a type Q8_0."""
    finite_by_scales: ClassVar[bool] = False
    """Whether all weights of a block are finite where all float16 numbers of its layout are."""
    uses_importance: ClassVar[bool] = False
    """Whether importance weights change the encoded bytes."""
    needs_importance: ClassVar[bool] = False
    """Whether the reference refuses to encode without importance weights."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            return  # a family's common base
        if cls.name in _BY_NAME:
            raise TypeError(f"block type {cls.name} is defined twice")
        _BY_NAME[cls.name] = cls
        if cls.ggml_id is not None:
            if cls.ggml_id in _BY_GGML:
                raise TypeError(f"ggml type {cls.ggml_id} is defined twice")
            _BY_GGML[cls.ggml_id] = cls

    @classmethod
    def row_bytes(cls, n: int) -> int:
        """Bytes that a row of `n` weights takes; `UsageError` when it is not whole blocks."""
        if n % cls.block_size:
            raise UsageError(f"a row of {n} weights is not a multiple of {cls.name}'s block of {cls.block_size}")
        return n // cls.block_size * cls.layout.itemsize

    @classmethod
    def is_plain(cls) -> bool:
        """True for types whose elements stand alone (F32, I8, ...), False for blocks with shared scales."""
        return cls.dtype is not None

    @classmethod
    def can_encode(cls) -> bool:
        own = cls._encode.__func__ is not BlockType._encode.__func__  # type: ignore[attr-defined]
        return cls.is_plain() or cls.kernels is not None or own

    @classmethod
    def encode(cls, rows: Floats, importance: NDArray[np.float32] | None = None, out: Bytes | None = None) -> Bytes:
        """Rows of weights -> their bytes.

        rows: (n, k) float32, float16, bfloat16 (widened exactly) or float64 (rounded to float32 first,
            as the reference would, unless the type is F64), k a multiple of `block_size`; finite.
        importance: (k,) float32, one weight per column, or None.
        out: (n, row_bytes(k)) uint8 to write into, C-contiguous; made when None.

        Returns `out`.  Raises `UsageError` when the type can't be encoded or needs importance weights.
        """
        if rows.ndim != 2:
            raise UsageError(f"{cls.name}.encode takes rows of shape (n, k), not {rows.shape}")
        if not cls.can_encode():
            raise UsageError(f"{cls.name} can be read but not written; choose another type")
        if cls.needs_importance and importance is None:
            raise UsageError(
                f"{cls.name} needs importance weights; give an importance matrix (--imatrix; llmconv imatrix makes one)"
            )
        n, k = rows.shape
        size = cls.row_bytes(k)
        if out is None:
            out = np.empty((n, size), np.uint8)
        elif out.shape != (n, size) or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise UsageError(f"{cls.name}.encode needs an `out` of shape {(n, size)}, uint8, contiguous")
        if importance is not None:
            importance = np.ascontiguousarray(importance, np.float32)
            if importance.shape != (k,):
                raise UsageError(f"importance has shape {importance.shape}, expected ({k},), one weight per column")
        if not cls.is_plain() and rows.dtype not in KERNEL_DTYPES:
            rows = rows.astype(np.float32)
        if n and k:
            cls._encode(np.ascontiguousarray(rows), importance if cls.uses_importance else None, out)
        return out

    @classmethod
    def decode(cls, blocks: Bytes, out: NDArray[np.float32] | None = None) -> NDArray[Any]:
        """Bytes of rows -> weights.

        blocks: (n, row_bytes) uint8, C-contiguous.
        out: (n, k) float32 to write into; made when None.

        Returns (n, k) float32; for plain types without `out`, a view in the type's own dtype.
        """
        if blocks.ndim != 2 or blocks.dtype != np.uint8:
            raise UsageError(
                f"{cls.name}.decode takes uint8 rows of shape (n, bytes), not {blocks.dtype} {blocks.shape}"
            )
        n, size = blocks.shape
        if size % cls.layout.itemsize:
            raise UsageError(f"{size} bytes are not whole {cls.name} blocks of {cls.layout.itemsize}")
        k = size // cls.layout.itemsize * cls.block_size
        blocks = np.ascontiguousarray(blocks)
        if cls.dtype is not None:
            values = blocks.view(cls.dtype)
            if out is None:
                return values
            out[...] = values
            return out
        if out is None:
            out = np.empty((n, k), np.float32)
        elif out.shape != (n, k) or out.dtype != np.float32 or not out.flags.c_contiguous:
            raise UsageError(f"{cls.name}.decode needs an `out` of shape {(n, k)}, float32, contiguous")
        if n and k:
            cls._decode(blocks, out)
        return out

    @classmethod
    def _encode(cls, rows: Floats, importance: NDArray[np.float32] | None, out: Bytes) -> None:
        """Fill `out`; arguments are checked, contiguous and not empty (rows: one of KERNEL_DTYPES)."""
        cls._kernel("encode")(flat(rows), out.reshape(-1))

    @classmethod
    def _decode(cls, blocks: Bytes, out: NDArray[np.float32]) -> None:
        """Fill `out`; arguments are checked, contiguous and not empty."""
        cls._kernel("decode")(blocks.reshape(-1), out.reshape(-1))

    @classmethod
    def _kernel(cls, what: str) -> Any:
        return getattr(cls.kernels, f"{what}_{cls.name.lower()}")


def types() -> list[type[BlockType]]:
    """Every registered type, in the order of definition; those of other packages last."""
    _import_others()
    return list(_BY_NAME.values())


def names() -> list[str]:
    return [t.name for t in types()]


def by_name(name: str) -> type[BlockType]:
    """The type called `name`, whatever its case; `UnknownName` names the nearest one otherwise."""
    found = _known(name)
    if found is None:
        _import_others()
        found = _known(name)
    if found is None:
        raise UnknownName("type", name, _BY_NAME)
    return found


def by_ggml_id(number: int) -> type[BlockType] | None:
    """The type with that number in GGUF files, or None."""
    if number not in _BY_GGML:
        _import_others()
    return _BY_GGML.get(number)


def _known(name: str) -> type[BlockType] | None:
    return _BY_NAME.get(name) or _BY_NAME.get(name.upper())


@functools.cache
def _import_others() -> None:
    """Import the types of other packages, once; being imported registers them."""
    entry_points.load("llmconv.types")
