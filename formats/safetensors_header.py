"""One safetensors file: its header to tensors and back, every rule of the format checked.

Layout (the safetensors README): 8 bytes little-endian header length, a JSON object of name -> {dtype, shape,
data_offsets} plus `__metadata__` (str -> str), then the tensors' bytes without holes, row-major, little-endian.
A block type (Q4_K, ...), which the format does not have, is stored as U8 rows and recorded in `llmconv.types`.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmconv.errors import BadFile, LlmconvError, Unsupported, at
from llmconv.formats import guests, limits
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.gguf.gguf_types import CARRIED, carried, ggml_type
from llmconv.formats.source import Source
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import by_name

__all__ = ["DTYPES", "header_of", "ordered", "read_json", "read_tensors"]

TYPES = "llmconv.types"

# fmt: off
_PLAIN = (
    "BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I16", "U16", "F16", "BF16",
    "I32", "U32", "F32", "C64", "F64", "I64", "U64",
)
# fmt: on
DTYPES: dict[str, BlockClass] = {
    "F4": carried("F4", 2, 1),
    "F6_E2M3": carried("F6_E2M3", 4, 3),
    "F6_E3M2": carried("F6_E3M2", 4, 3),
} | {name: by_name(name) for name in _PLAIN}
"""Every dtype of the format (`Dtype` in safetensors/src/tensor.rs) -> how it is stored here."""


def read_json(raw: bytes, path: Path) -> dict[str, Any]:
    """A JSON object, strictly: unique keys, finite numbers, UTF-8, bounded nesting."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            seen: set[str] = set()
            twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
            raise BadFile(f"{at(path)}: key {twice!r} is there twice; the file is damaged")
        return out

    def constant(text: str) -> Any:
        raise BadFile(f"{at(path)}: holds {text}, which is no JSON number; the file is damaged")

    try:
        found = json.loads(raw.decode(), object_pairs_hook=unique, parse_constant=constant)
    except UnicodeDecodeError as error:
        raise BadFile(f"{at(path)}: is not valid UTF-8 at byte {error.start}; the file is damaged") from None
    except json.JSONDecodeError as error:
        raise BadFile(f"{at(path)}: is not valid JSON ({error.msg} at {error.pos}); the file is damaged") from None
    except (RecursionError, ValueError):
        raise BadFile(f"{at(path)}: nests too deep or holds an endless number; the file is damaged") from None
    if not isinstance(found, dict):
        raise BadFile(f"{at(path)}: is a JSON {type(found).__name__}, expected an object; the file is damaged")
    level: list[Any] = [found]
    for _ in range(limits.JSON_DEPTH):
        level = [v for x in level for v in (x.values() if isinstance(x, dict) else x) if isinstance(v, dict | list)]
        if not level:
            return found
    raise BadFile(f"{at(path)}: nests too deep, expected at most {limits.JSON_DEPTH} levels; the file is damaged")


def read_tensors(
    checkpoint: Checkpoint, path: Path, listed: Mapping[str, str] | None = None, passed: dict[str, str] | None = None
) -> dict[str, str]:
    """Add the tensors of one file; its `__metadata__`.

    listed: the files of tensors by an index: those that it has elsewhere are passed by, their names put in `passed`.
    """
    listed, passed = listed or {}, {} if passed is None else passed
    source = Source.of(path)
    head = source.read(0, min(source.size, 200)).tobytes()
    guests.check(path, head)
    guests.misnamed(path, head)
    if source.size < 8:
        raise BadFile(f"{at(path)}: is {source.size} bytes long, expected at least 8; fetch it again")
    length = int.from_bytes(source.read(0, 8).tobytes(), "little")
    if length > limits.SAFETENSORS_HEADER_BYTES or 8 + length > source.size:
        most = min(limits.SAFETENSORS_HEADER_BYTES, source.size - 8)
        raise BadFile(f"{at(path)}: claims a header of {length:,} bytes, expected at most {most:,}; it is damaged")
    raw = source.read(8, length).tobytes()
    if raw[:1] != b"{":
        raise BadFile(f"{at(path)}: its header begins with {raw[:1]!r}, expected '{{'; it is no safetensors file")
    header = read_json(raw, path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise BadFile(f"{at(path)}: its __metadata__ is not a map of strings to strings; the file is damaged")
    for text in (*header, *metadata, *metadata.values()):
        if not is_text(text):
            raise BadFile(f"{at(path)}: {text[:40]!r} in its header is no valid Unicode; the file is damaged")
    if len(header) > limits.MAX_TENSORS:
        raise BadFile(f"{at(path)}: holds {len(header):,} tensors, expected at most {limits.MAX_TENSORS:,}")
    entries = [_entry(name, info, path) for name, info in header.items()]
    stored_as = _stored_types(metadata, path)
    end = 0
    for entry in sorted(entries, key=lambda e: (e.begin, e.end)):
        what = f"tensor {entry.name!r}"
        if entry.begin != end:
            kind = "leaves a hole" if entry.begin > end else "shares bytes with the tensor before it"
            raise BadFile(f"{at(path, what)} begins at {entry.begin:,}, expected {end:,}: it {kind}; it is damaged")
        end = entry.end
        tensor = source.tensor(entry.name, entry.shape, entry.type, 8 + length + entry.begin)
        if entry.name in stored_as:
            tensor = _as_blocks(tensor, *stored_as[entry.name], source, 8 + length + entry.begin)
        if listed.get(entry.name, path.name) != path.name:
            passed[entry.name] = path.name
            continue
        if entry.name in checkpoint.tensors:
            raise BadFile(f"{at(path, what)} is in another file of the model too; remove one")
        checkpoint.add(tensor)
    if 8 + length + end != source.size:
        raise BadFile(
            f"{at(path)}: is {source.size:,} bytes long, expected {8 + length + end:,} by its header; "
            "it is cut short or damaged, fetch it again"
        )
    return metadata


@dataclass(frozen=True)
class _Entry:
    name: str
    type: BlockClass
    shape: tuple[int, ...]
    begin: int
    end: int


def is_text(text: str) -> bool:
    """Whether UTF-8 can hold it: JSON's escapes can spell halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _entry(name: str, info: Any, path: Path) -> _Entry:
    """One checked line of the header."""
    what = f"tensor {name[:200]!r}"
    if not name:
        raise BadFile(f"{at(path, what)} has no name; give it one, or leave it out, with the program that wrote it")
    if len(name.encode()) > limits.MAX_NAME_BYTES:
        raise BadFile(f"{at(path, what)} has a name longer than {limits.MAX_NAME_BYTES:,} bytes")
    if not isinstance(info, dict) or set(info) != {"dtype", "shape", "data_offsets"}:
        raise BadFile(f"{at(path, what)} is not described by exactly dtype, shape and data_offsets; it is damaged")
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    type = DTYPES.get(dtype) if isinstance(dtype, str) else None
    if type is None:
        raise Unsupported(f"{at(path, what)} has dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > limits.MAX_DIMS or not all(map(_is_size, shape)):
        raise BadFile(f"{at(path, what)} has a bad shape, expected up to {limits.MAX_DIMS} whole numbers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise BadFile(f"{at(path, what)} has bad data_offsets, expected two whole numbers; it is damaged")
    begin, end = offsets
    if limits.too_large(shape):
        raise BadFile(f"{at(path, what)} has shape {shape}, more elements than any file holds; it is damaged")
    row = shape[-1] if shape else 1
    if row % type.block_size:
        raise Unsupported(f"{at(path, what)} has rows of {row} {dtype} elements, which are not whole bytes")
    size = math.prod(shape[:-1]) * type.row_bytes(row)
    if end - begin != size:
        raise BadFile(
            f"{at(path, what)} takes {end - begin:,} bytes, expected {size:,} for {dtype} {shape}; it is damaged"
        )
    return _Entry(name, type, tuple(shape), begin, end)


def _stored_types(metadata: dict[str, str], path: Path) -> dict[str, tuple[BlockClass, tuple[int, ...]]]:
    """Block types that were stored as U8 rows: name -> (type, shape)."""
    if TYPES not in metadata:
        return {}
    out: dict[str, tuple[BlockClass, tuple[int, ...]]] = {}
    for name, entry in read_json(metadata.pop(TYPES).encode(), path).items():
        try:
            type_name, *shape = entry
            type = _block_type(type_name)
            if not all(map(_is_size, shape)):
                raise TypeError
        except (TypeError, ValueError, LlmconvError):
            raise BadFile(f"{at(path)}: its {TYPES} has a bad entry for {name!r}; remove that metadata key") from None
        out[name] = type, tuple(shape)
    return out


def _block_type(name: str) -> BlockClass:
    number = next((n for n, (known, _, _) in CARRIED.items() if known == name), None)
    return (ggml_type(number) if number is not None else None) or by_name(name)


def _as_blocks(stored: Tensor, type: BlockClass, shape: tuple[int, ...], source: Source, offset: int) -> Tensor:
    row = shape[-1] if shape else 1
    if row % type.block_size or stored.shape != (*shape[:-1], type.row_bytes(row)):
        raise BadFile(
            f"{at(source.path, f'tensor {stored.name!r}')} has {stored.type.name} {list(stored.shape)}, which is not "
            f"{type.name} {list(shape)} as its metadata says; it is damaged"
        )
    return source.tensor(stored.name, shape, type, offset)


def ordered(tensors: list[Tensor]) -> list[Tensor]:
    offset = 0
    for tensor in tensors:
        if tensor.nbytes and offset % _width(tensor):
            return sorted(tensors, key=_width, reverse=True)  # stable
        offset += tensor.nbytes
    return tensors


def _width(tensor: Tensor) -> int:
    return tensor.type.layout.itemsize if tensor.type.is_plain() else 1


def header_of(tensors: list[Tensor], metadata: dict[str, str]) -> tuple[bytes, list[int]]:
    """The length, the JSON and its padding; and where each tensor begins in the data."""
    entries: dict[str, Any] = {}
    types: dict[str, list[Any]] = {}
    offset, offsets = 0, []
    for tensor in tensors:
        dtype, shape = tensor.type.name, list(tensor.shape)
        if DTYPES.get(dtype) is not tensor.type:
            types[tensor.name] = [dtype, *shape]
            dtype, shape = "U8", [*shape[:-1], tensor.row_bytes]
        entries[tensor.name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + tensor.nbytes]}
        offsets.append(offset)
        offset += tensor.nbytes
    if types:
        metadata = metadata | {TYPES: json.dumps(types, separators=(",", ":"), ensure_ascii=False)}
    for text in (*entries, *metadata, *metadata.values()):
        if not is_text(text):
            raise Unsupported(f"{text[:40]!r} is no valid Unicode text, which safetensors needs; rename it")
    if "__metadata__" in entries:
        raise Unsupported("a tensor is called '__metadata__', which safetensors keeps for itself; rename it")
    document = ({"__metadata__": metadata} if metadata else {}) | entries
    raw = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    if len(raw) > limits.SAFETENSORS_HEADER_BYTES:
        raise Unsupported(
            f"the header takes {len(raw):,} bytes, safetensors allows {limits.SAFETENSORS_HEADER_BYTES:,}; "
            "write a folder, which keeps side files apart"
        )
    return struct.pack("<Q", len(raw)) + raw, offsets
