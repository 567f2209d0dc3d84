"""numpy's `.npy` (one array) and `.npz` (a zip of them, stored or deflated).  Nothing is unpickled.

A file begins with "\\x93NUMPY", a version, and a Python literal {'descr', 'fortran_order', 'shape'}; then the numbers.
Layout: numpy/lib/format.py.  An array of texts is no tensor: it is kept in the metadata, as JSON, under its name.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmconv.errors import BadFile, LlmconvError, Unsupported, at, cut
from llmconv.formats import limits
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.foreign import numpy_writing
from llmconv.formats.foreign.zipped import entries
from llmconv.formats.format import Format
from llmconv.formats.source import Source
from llmconv.formats.tensor import BlockClass, Tensor, type_of_dtype
from llmconv.quant import plain
from llmconv.quant.block import Bytes

NAME = "numpy"

_MAGIC = b"\x93NUMPY"
_FIELDS = {"descr", "fortran_order", "shape"}


def sniff(path: Path, head: bytes) -> bool:
    if head.startswith(_MAGIC):
        return True
    if not head.startswith(b"PK\x03\x04"):
        return False
    size = int.from_bytes(head[26:28], "little")
    name = head[30 : 30 + size]
    return name.endswith(b".npy") or (len(name) < size and path.suffix == ".npz")


def open(path: Path) -> Checkpoint:
    """The array, named as the file, or those of the archive; `Unsupported` for objects and structured arrays."""
    out = Checkpoint(format=NAME, source=path, dialect="plain", parts=[path])
    source = Source.of(path)
    if source.read(0, min(source.size, 6)).tobytes() == _MAGIC:
        _add(out, path.stem or "array", _Lump(source.size, source.read, (source, 0)))
        return out
    for name, entry in entries(path, source).items():
        if not name.endswith(".npy"):
            out.notes.append(f"{cut(name)} in the archive is no array: it is left out")
            continue
        try:
            _add(out, name.removesuffix(".npy"), _Lump(entry.size, entry.read, entry.stored))
        except _Objects as error:
            out.notes.append(f"{str(error).removeprefix(out.where + ': ')}; it is left out")
    if not out.tensors:
        raise BadFile(f"{at(path)}: holds no array of numbers, so there is nothing to convert")
    return out


@dataclass(frozen=True)
class _Lump:
    """The bytes of an array's file.   stored: where they lie as they are."""

    size: int
    read: Callable[[int, int], Bytes]
    stored: tuple[Source, int] | None


class _Objects(Unsupported):
    """An array of Python objects."""


@dataclass(frozen=True)
class _Header:
    """What stands before an array's numbers: their type, whether first indices vary fastest, the shape, their start."""

    descr: Any
    fortran: bool
    shape: tuple[int, ...]
    start: int


def _read_header(lump: _Lump, where: str) -> _Header:
    """The header of an array's file; `BadFile` when it is none."""
    head = lump.read(0, min(12, lump.size)).tobytes()
    if not head.startswith(_MAGIC) or len(head) < 10 or head[6] not in (1, 2, 3):
        raise BadFile(f"{where} has no header of numpy's format 1 to 3; save it again")
    width = 2 if head[6] == 1 else 4
    length, start = int.from_bytes(head[8 : 8 + width], "little"), 8 + width
    if length > limits.NPY_HEADER_BYTES or start + length > lump.size:
        raise BadFile(f"{where} has a header of {length:,} bytes, more than there are; it is cut short or damaged")
    text = lump.read(start, length).tobytes().decode("latin1")
    try:
        stated = ast.literal_eval(text.strip())
        shape = tuple(stated["shape"])
        assert set(stated) == _FIELDS and isinstance(stated["fortran_order"], bool) and len(shape) <= limits.MAX_DIMS
        assert all(type(n) is int and n >= 0 for n in shape) and not limits.too_large(shape)
    except (AssertionError, ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        raise BadFile(
            f"{where} has no header {{descr, fortran_order, shape}} that can be read; save it again"
        ) from None
    return _Header(stated["descr"], stated["fortran_order"], shape, start + length)


def _number_type(descr: Any, where: str) -> tuple[np.dtype[Any], BlockClass]:
    """The numpy type of an array's file, in its own byte order, and ours; `Unsupported` for all but plain numbers."""
    if isinstance(descr, list):
        names = [str(field[0]) for field in descr if isinstance(field, tuple | list) and field]
        raise Unsupported(f"{where} is a structured array of the fields {cut(', '.join(names))}; save each on its own")
    if descr in ("|V2", "<V2"):
        return np.dtype("V2"), plain.BF16  # how numpy saves ml_dtypes' bfloat16
    if isinstance(descr, str) and re.fullmatch(r"\|O\d?", descr):
        raise _Objects(f"{where} holds Python objects (a pickle), which are not read")
    try:
        if not isinstance(descr, str) or not re.fullmatch(r"[<>|=]?[biufcSUVmM]\d{1,6}(\[\w+\])?", descr):
            raise TypeError
        dtype = np.dtype(descr)
        return dtype, type_of_dtype(dtype)
    except (TypeError, ValueError, LlmconvError):
        raise Unsupported(f"{where} is of numpy's type {cut(descr)}, which no tensor type stores") from None


def _add(out: Checkpoint, name: str, lump: _Lump) -> None:
    where = f"{out.where}: array {cut(name)}"
    found = _read_header(lump, where)
    if isinstance(found.descr, str) and re.fullmatch(r"[<>|=][US]\d{1,6}", found.descr):
        out.metadata[name] = json.dumps(_texts(lump, found, where), ensure_ascii=False)
        return
    if len(name) > limits.MAX_NAME_BYTES:
        raise BadFile(f"{where} has a name of {len(name):,} letters, expected at most {limits.MAX_NAME_BYTES:,}")
    dtype, kind = _number_type(found.descr, where)
    needed = math.prod(found.shape) * dtype.itemsize
    if found.start + needed != lump.size:
        raise BadFile(
            f"{where} has {lump.size - found.start:,} bytes, expected {needed:,} by its shape and type; "
            "it is cut short or damaged"
        )
    if kind is plain.BF16:
        out.notes.append(f"array {cut(name)} has items of two bytes without a type: they are taken as bfloat16")
    if name in out.tensors:
        raise BadFile(f"{where} is there twice; save it again")
    out.add(_tensor(name, found, dtype, kind, lump))


def _tensor(name: str, found: _Header, dtype: np.dtype[Any], kind: BlockClass, lump: _Lump) -> Tensor:
    """The tensor over an array's bytes: in the file where they are as ours, else put in order when read."""
    columns = found.fortran and sum(n != 1 for n in found.shape) > 1
    if lump.stored is not None and not columns and dtype == kind.dtype:
        source, offset = lump.stored
        return source.tensor(name, found.shape, kind, offset + found.start)
    row = (found.shape[-1] if found.shape else 1) * dtype.itemsize

    def ours(raw: Bytes) -> Any:
        return raw.view(dtype) if dtype.kind == "V" else raw.view(dtype).astype(dtype.newbyteorder("<"), copy=False)

    def read(start: int, stop: int) -> Bytes:
        if not columns:
            raw = lump.read(found.start + start * row, (stop - start) * row)
            return np.ascontiguousarray(ours(raw)).view(np.uint8).reshape(stop - start, row)
        whole = ours(lump.read(found.start, math.prod(found.shape) * dtype.itemsize)).reshape(found.shape[::-1]).T
        rows = np.ascontiguousarray(whole).reshape(-1, found.shape[-1])[start:stop]
        return np.ascontiguousarray(rows).view(np.uint8).reshape(stop - start, row)

    return Tensor(name, found.shape, kind, read)


def _texts(lump: _Lump, found: _Header, where: str) -> Any:
    """An array of texts as lists."""
    dtype = np.dtype(found.descr)
    needed = math.prod(found.shape) * dtype.itemsize
    if needed > limits.SIDE_FILE_BYTES or found.start + needed != lump.size:
        raise BadFile(f"{where} has {lump.size - found.start:,} bytes of text, expected {needed:,} by its shape")
    try:
        values = np.frombuffer(lump.read(found.start, needed).tobytes(), dtype) if needed else np.empty(0, dtype)
        shaped = values.reshape(found.shape, order="F" if found.fortran else "C")
        return (np.char.decode(shaped, "utf-8") if dtype.kind == "S" else shaped).tolist()
    except (ValueError, UnicodeDecodeError):
        raise BadFile(f"{where} holds text that can't be read; save it again") from None


FORMAT = Format(
    name=NAME,
    dialect="program",
    sniff=sniff,
    open=open,
    write=numpy_writing.save_npz,
    suffixes=(".npz",),
)
