"""A pickle of numpy arrays: names and arrays, nested as the program had them.  Read as data: nothing is run.

The machine here knows the few names that pickled arrays need and builds its own inert records for them; a pickle that
asks for anything else is refused with that name.  Layout: numpy's `ndarray.__reduce__` and `__reduce_ex__`.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llmconv.errors import BadFile, LlmconvError, at
from llmconv.formats import limits
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.foreign import numpy_writing
from llmconv.formats.foreign.mappings import StrangePickle, chosen, count_items, keep_rest
from llmconv.formats.format import Format
from llmconv.formats.source import Source
from llmconv.formats.tensor import Tensor, type_of_dtype

NAME = "pickle"

_MACHINE: Any = pickle._Unpickler  # in Python: a hostile count costs it nothing
_REFUSED = (
    *(pickle.PERSID, pickle.BINPERSID, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.INST, pickle.OBJ),
    *(pickle.NEWOBJ_EX, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
)


def sniff(path: Path, head: bytes) -> bool:
    """Protocol 2 to 5 by the first two bytes (and what may follow them), the older ones by the ending too."""
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and len(head) > 2:
        framed = head[1] >= 4 and head[2:3] == b"\x95"
        return framed or head[2:3] in b"}](c\x8cX" or path.suffix in (".pkl", ".pickle", ".p")
    return path.suffix in (".pkl", ".pickle") and head[:1] in (b"(", b"}", b"]", b"c")


def open(path: Path, key: str | None = None) -> Checkpoint:
    """The arrays by their names; what else the pickle holds is kept in the metadata.

    key: which of several mappings of arrays to take.   `BadFile` for a pickle that asks for more than arrays.
    """
    source = Source.of(path)
    if source.size > limits.PICKLED_ARRAYS_BYTES:
        raise BadFile(
            f"{at(path)}: is {source.size:,} bytes, expected at most {limits.PICKLED_ARRAYS_BYTES:,} of pickle"
        )
    try:
        value = loads(source.read(0, source.size).tobytes())
    except LlmconvError:
        raise
    except StrangePickle as error:
        raise BadFile(f"{at(path)}: its pickle {error!s:.120}; only arrays of numpy are read, save an .npz") from None
    except Exception:  # a pickle can fail in any way
        raise BadFile(f"{at(path)}: its pickle can't be read, it is damaged or cut short; fetch it again") from None
    count_items(value, lambda x: False, at(path))
    value = _settled(value)
    if isinstance(value, np.ndarray):
        value = {path.stem or "array": value}
    found = chosen(value, lambda x: isinstance(x, np.ndarray), at(path), key)
    out = Checkpoint(format=NAME, source=path, dialect="plain", notes=found.notes, parts=[path])
    for name, array in found.tensors.items():
        out.add(Tensor.from_array(name, array))
    keep_rest(out, found)
    return out


def loads(data: bytes) -> Any:
    """Data and arrays (as records that `_settled` resolves); fails in any way on a pickle of anything else."""
    return _Reader(io.BytesIO(data)).load()


class DType:
    """numpy's dtype as the pickle states it."""

    def __init__(self, code: Any, *_: Any):
        if not isinstance(code, str) or not code[:1].isalpha() or len(code) > 8:
            raise StrangePickle("names a type that is none of numpy's")
        self.code = code
        self.order: Literal["<", ">"] = "<"

    def __setstate__(self, state: Any) -> None:
        order, fields = state[1], state[3]
        if fields is not None:
            raise StrangePickle(f"holds a structured array of the fields {', '.join(map(str, fields))[:60]}")
        self.order = ">" if order == ">" else "<"

    @property
    def numpy(self) -> np.dtype[Any]:
        if self.code.startswith("O"):
            raise StrangePickle("holds an array of Python objects")
        dtype = np.dtype(self.code).newbyteorder(self.order)
        if dtype.kind not in "USMm":
            type_of_dtype(dtype)
        return dtype


class Array:
    """An array before its state is known."""

    value: np.ndarray[Any, Any] | None = None

    @property
    def numeric(self) -> bool:
        return self.value is not None and self.value.dtype.kind not in "USMm"

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if isinstance(dtype, DType) and dtype.code.startswith("O"):
            raise StrangePickle("holds an array of Python objects")
        if isinstance(data, str):  # protocol 2 and Python 2
            data = data.encode("latin1")
        self.value = _shaped(data, dtype, shape, "F" if fortran else "C")


def _shaped(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    sizes = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape) and len(shape) <= limits.MAX_DIMS
    if not isinstance(dtype, DType) or not sizes or not isinstance(data, bytes) or order not in ("C", "F"):
        raise StrangePickle("holds an array that is none of numpy's")
    kind = dtype.numpy
    if len(data) != math.prod(shape) * kind.itemsize or limits.too_large(shape):
        raise StrangePickle(f"holds an array of shape {list(shape)} with {len(data):,} bytes")
    values = np.frombuffer(data, kind) if data else np.empty(0, kind)
    return values.reshape(shape, order=order).astype(kind.newbyteorder("="), copy=False)


def _scalar(dtype: Any, data: Any = b"") -> Any:
    data = data.encode("latin1") if isinstance(data, str) else data
    return _shaped(data, dtype, (), "C").item()


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise StrangePickle("holds bytes that are none of an array")
    return text.encode("latin1")


NUMPY: dict[tuple[str, str], Any] = {("numpy", "ndarray"): Array, ("numpy", "dtype"): DType}
"""What numpy's arrays and numbers ask for -> what answers instead of it."""
for _core in ("numpy.core", "numpy._core"):
    NUMPY[f"{_core}.multiarray", "_reconstruct"] = lambda *_: Array()
    NUMPY[f"{_core}.multiarray", "scalar"] = _scalar
    NUMPY[f"{_core}.numeric", "_frombuffer"] = _shaped
_CALLS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encoded,
    ("__builtin__", "bytes"): lambda: b"",  # how the older protocols write no bytes at all
    **NUMPY,
}


class _Reader(_MACHINE):  # type: ignore[misc]
    """A pickle machine that can build dictionaries, lists, numbers, texts and arrays, and nothing else."""

    dispatch = {
        code: action for code, action in _MACHINE.dispatch.items() if code not in {name[0] for name in _REFUSED}
    }

    def _bytes_of_array(self) -> None:
        """BYTEARRAY8, without believing its count: protocol 5 keeps the arrays' bytes so."""
        count = int.from_bytes(self.read(8), "little")
        data = self.read(count) if count < limits.PICKLED_ARRAYS_BYTES else b""
        if len(data) != count:
            raise StrangePickle("ends too early, it is cut short")
        self.append(data)

    dispatch[pickle.BYTEARRAY8[0]] = _bytes_of_array

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _CALLS:
            return _CALLS[module, name]
        raise StrangePickle(f"asks for {module}.{name}, which no array needs")


def _settled(value: Any, depth: int = 0) -> Any:
    """The value with numpy's arrays in place of the records; arrays of text as lists."""
    if depth > limits.JSON_DEPTH:
        raise StrangePickle("nests too deep, no model file does")
    if isinstance(value, Array):
        value = value.value
    if isinstance(value, np.ndarray):
        return value.tolist() if value.dtype.kind in "USMm" else value
    if isinstance(value, dict):
        return {k: _settled(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_settled(v, depth + 1) for v in value]
    return value


FORMAT = Format(
    name=NAME,
    dialect="program",
    sniff=sniff,
    open=open,
    write=numpy_writing.save_pickle,
    suffixes=(".pkl", ".pickle"),
    keyed=True,
)
