"""safetensors: one file, several with an index, or a model folder as Hugging Face lays it out.

Layout (the safetensors README): 8 bytes little-endian header length, a JSON object of name -> {dtype, shape,
data_offsets} plus `__metadata__` (str -> str), then the tensors' bytes without holes, row-major, little-endian.

A folder with config.json opens in dialect "hf", its small side files in `Checkpoint.files`; `model.safetensors`
or a shard named inside such a folder opens the folder.  A lone file is "plain", unless it carries side files
in its own metadata (`llmconv.file.NAME`, binary ones in base64 under `llmconv.file64.NAME`): then it is "hf" too.
A block type (Q4_K, ...) is stored as U8 rows and recorded in `llmconv.types`.
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmconv.errors import BadFile, LlmconvError, Unsupported, UsageError, at
from llmconv.formats import limits
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import Output, regular_size
from llmconv.formats.gguf_types import GGML_TYPES, carried, ggml_type
from llmconv.formats.source import Source
from llmconv.formats.stream import Progress, write_tensors
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import by_name

NAME = "safetensors"
SUFFIXES = (".safetensors",)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FILE, FILE64, TYPES = "llmconv.file.", "llmconv.file64.", "llmconv.types"

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

_NOT_SIDE_FILES = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".ckpt", ".npz"}
_SHARD = re.compile(r"(?P<stem>.*)-\d{5}-of-\d{5}\.safetensors", re.DOTALL)


def sniff(path: Path, head: bytes) -> bool:
    if path.is_dir():
        return (path / INDEX).is_file() or any(path.glob("*.safetensors"))
    if path.name.endswith(".safetensors.index.json"):
        return head[:1] == b"{"
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= limits.SAFETENSORS_HEADER_BYTES


# Reading


def open(path: Path) -> Checkpoint:
    """A file, an index, or a model folder.  Lazy: tensors stay in the files, side files are paths."""
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if path.name.endswith(".safetensors.index.json"):
        return _open_index(path, path)
    folder = path.parent
    if (folder / "config.json").is_file():
        if path.name == WEIGHTS:
            return _open_folder(folder)
        if _SHARD.fullmatch(path.name) and (folder / INDEX).is_file():
            return _open_index(folder / INDEX, folder)
    checkpoint = Checkpoint(format=NAME, source=path, dialect="plain", info={"shards": 1})
    checkpoint.metadata = dict(_read_into(checkpoint, path))
    _unpack_files(checkpoint, path)
    return checkpoint


def _open_folder(folder: Path) -> Checkpoint:
    if (folder / WEIGHTS).is_file():
        return _open_files(folder, [folder / WEIGHTS])
    if (folder / INDEX).is_file():
        return _open_index(folder / INDEX, folder)
    found = sorted(p for p in folder.glob("*.safetensors") if p.is_file())
    if len(found) != 1:
        raise BadFile(
            f"{at(folder)}: holds {len(found)} safetensors files and no {INDEX}, expected {WEIGHTS} or an index; "
            "name one file"
        )
    return _open_files(folder, found)


def _open_index(index: Path, source: Path) -> Checkpoint:
    document = _json(_read_small(index, limits.INDEX_BYTES), index)
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise BadFile(f"{at(index)}: has no 'weight_map' of tensor names to file names; fetch it again")
    names = list(dict.fromkeys(weight_map.values()))
    if len(names) > limits.MAX_SHARDS:
        raise BadFile(f"{at(index)}: names {len(names):,} files, expected at most {limits.MAX_SHARDS:,}")
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name or Path(name).is_absolute():
            raise BadFile(f"{at(index)}: names the file {name!r}, expected one in its own folder; it is not followed")
        if not (index.parent / name).exists():
            raise BadFile(f"{at(index)}: its file {name} is missing; fetch it")
    checkpoint = _open_files(source, [index.parent / name for name in sorted(names)], folder=index.parent)
    where = {t.name: t.extent.path.name for t in checkpoint.tensors.values() if t.extent is not None}
    for name, file in weight_map.items():
        if where.get(name) != file:
            there = where.get(name)
            raise BadFile(
                f"{at(index)}: tensor {name!r} should be in {file} but is "
                f"{'in ' + there if there else 'nowhere'}; fetch the files again"
            )
    if len(where) > len(weight_map):
        extra = next(name for name in where if name not in weight_map)
        raise BadFile(f"{at(index)}: does not list tensor {extra!r} of {where[extra]}; fetch the files again")
    stated = document.get("metadata")
    if isinstance(stated, dict):
        checkpoint.info["index_metadata"] = stated
    return checkpoint


def _open_files(source: Path, files: list[Path], folder: Path | None = None) -> Checkpoint:
    folder = folder or source
    checkpoint = Checkpoint(format=NAME, source=source, dialect="plain", info={"shards": len(files)})
    for file in files:
        for key, value in _read_into(checkpoint, file).items():
            checkpoint.metadata.setdefault(key, value)
    for entry in sorted(folder.iterdir(), key=lambda p: p.name):
        weights = entry.suffix in _NOT_SIDE_FILES or entry.name.endswith(".index.json")
        if entry.name.startswith(".") or weights or not entry.is_file():
            continue
        if entry.stat().st_size <= limits.SIDE_FILE_BYTES:
            checkpoint.files[entry.name] = entry
    if "config.json" in checkpoint.files:
        checkpoint.dialect = "hf"
    return checkpoint


def _read_small(path: Path, limit: int) -> bytes:
    size = regular_size(path)
    if size > limit:
        raise BadFile(f"{at(path)}: is {size:,} bytes, expected at most {limit:,}")
    return Source.of(path).read(0, size).tobytes()


def _json(raw: bytes, path: Path) -> dict[str, Any]:
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
    return found


def _read_into(checkpoint: Checkpoint, path: Path) -> dict[str, str]:
    """Add the tensors of one file; its `__metadata__`."""
    source = Source.of(path)
    if source.size < 8:
        raise BadFile(f"{at(path)}: is {source.size} bytes long, expected at least 8; fetch it again")
    length = int.from_bytes(source.read(0, 8).tobytes(), "little")
    if length > limits.SAFETENSORS_HEADER_BYTES or 8 + length > source.size:
        most = min(limits.SAFETENSORS_HEADER_BYTES, source.size - 8)
        raise BadFile(f"{at(path)}: claims a header of {length:,} bytes, expected at most {most:,}; it is damaged")
    raw = source.read(8, length).tobytes()
    if raw[:1] != b"{":
        raise BadFile(f"{at(path)}: its header begins with {raw[:1]!r}, expected '{{'; it is no safetensors file")
    header = _json(raw, path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise BadFile(f"{at(path)}: its __metadata__ is not a map of strings to strings; the file is damaged")
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


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _entry(name: str, info: Any, path: Path) -> _Entry:
    """One checked line of the header."""
    what = f"tensor {name[:200]!r}"
    if len(name.encode(errors="surrogatepass")) > limits.MAX_NAME_BYTES:
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
    if math.prod(n or 1 for n in shape) > limits.MAX_ELEMENTS:
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
    for name, entry in _json(metadata.pop(TYPES).encode(errors="surrogatepass"), path).items():
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
    for number, (known, _, _) in GGML_TYPES.items():
        if known == name and (found := ggml_type(number)) is not None:
            return found
    return by_name(name)


def _as_blocks(stored: Tensor, type: BlockClass, shape: tuple[int, ...], source: Source, offset: int) -> Tensor:
    row = shape[-1] if shape else 1
    if row % type.block_size or stored.shape != (*shape[:-1], type.row_bytes(row)):
        raise BadFile(
            f"{at(source.path, f'tensor {stored.name!r}')} has {stored.type.name} {list(stored.shape)}, which is not "
            f"{type.name} {list(shape)} as its metadata says; it is damaged"
        )
    return source.tensor(stored.name, shape, type, offset)


def _unpack_files(checkpoint: Checkpoint, path: Path) -> None:
    """Side files out of a lone file's metadata."""
    for key in list(checkpoint.metadata):
        if key.startswith(FILE):
            checkpoint.files[_safe_name(key[len(FILE) :], path)] = checkpoint.metadata.pop(key).encode()
        elif key.startswith(FILE64):
            try:
                raw = base64.b64decode(checkpoint.metadata.pop(key), validate=True)
            except ValueError:
                raise BadFile(f"{at(path)}: metadata {key!r} is not base64; the file is damaged") from None
            checkpoint.files[_safe_name(key[len(FILE64) :], path)] = raw
    if "config.json" in checkpoint.files:
        checkpoint.dialect = "hf"


def _safe_name(name: str, path: Path) -> str:
    if not name or name in (".", "..") or any(c in name for c in "/\\\0"):
        raise BadFile(f"{at(path)}: carries a side file named {name!r}, expected a plain file name; it is not followed")
    return name


# Writing


def save(
    checkpoint: Checkpoint,
    path: Path,
    *,
    force: bool = False,
    max_shard_size: int = 0,
    jobs: int | None = None,
    progress: Progress | None = None,
    **_: Any,
) -> list[Path]:
    """Write a lone file when `path` ends in `.safetensors`, else a model folder.

    A lone file carries the side files in its metadata.  A folder gets `model.safetensors`, or, with
    `max_shard_size` (bytes; 0: never) exceeded, `model-00001-of-0000N.safetensors` and the index, written last.

    The tensors keep their order, unless one would then lie at an offset that is no multiple of its element's
    size: then the wider types go first, as the safetensors library does.  The header is padded with spaces to a
    multiple of 8.

    Returns the files written.
    """
    path = Path(path)
    metadata = {}
    for key, value in checkpoint.metadata.items():
        if not isinstance(value, str):
            raise Unsupported(f"metadata {key!r} is no text, which safetensors can't hold; translate the model first")
        metadata[key] = value
    inputs = (checkpoint.source,) if checkpoint.source else ()
    tensors = _ordered(list(checkpoint.tensors.values()))
    if path.name.endswith(".safetensors"):
        if max_shard_size and checkpoint.nbytes > max_shard_size:
            raise UsageError(f"{at(path)}: one file can't be split; give a folder for several shards")
        for name in checkpoint.files:
            raw = checkpoint.file(name) or b""
            try:
                metadata[FILE + _safe_name(name, path)] = raw.decode()
            except UnicodeDecodeError:
                metadata[FILE64 + name] = base64.b64encode(raw).decode()
        _write(path, tensors, metadata, force, inputs, jobs, progress)
        return [path]
    path.mkdir(exist_ok=True)
    written = []
    for name in checkpoint.files:
        raw = checkpoint.file(name) or b""
        with Output(path / _safe_name(name, path), force=force, size=len(raw), inputs=inputs) as out:
            out.file.write(raw)
        written.append(path / name)
    groups = _groups(tensors, max_shard_size)
    names = [WEIGHTS] if len(groups) == 1 else [shard_name(i, len(groups)) for i in range(len(groups))]
    for name, group in zip(names, groups, strict=True):
        _write(path / name, group, metadata, force, inputs, jobs, progress)
        written.append(path / name)
    if len(groups) > 1:
        weight_map = {t.name: name for name, group in zip(names, groups, strict=True) for t in group}
        stated = {k: v for k, v in checkpoint.info.get("index_metadata", {}).items() if k != "total_size"}
        index = {
            "metadata": {"total_size": checkpoint.nbytes, **stated},
            "weight_map": dict(sorted(weight_map.items())),
        }
        text = json.dumps(index, indent=2, ensure_ascii=False).encode() + b"\n"
        with Output(path / INDEX, force=force, size=len(text), inputs=inputs) as out:
            out.file.write(text)
        written.append(path / INDEX)
    return written


def shard_name(no: int, count: int) -> str:
    return f"model-{no + 1:05d}-of-{count:05d}.safetensors"


def _ordered(tensors: list[Tensor]) -> list[Tensor]:
    offset = 0
    for tensor in tensors:
        if tensor.nbytes and offset % _width(tensor):
            return sorted(tensors, key=_width, reverse=True)  # stable
        offset += tensor.nbytes
    return tensors


def _width(tensor: Tensor) -> int:
    return tensor.type.layout.itemsize if tensor.type.is_plain() else 1


def _groups(tensors: Sequence[Tensor], max_size: int) -> list[list[Tensor]]:
    groups: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if groups[-1] and max_size and size + tensor.nbytes > max_size:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    return groups


def _header(tensors: list[Tensor], metadata: dict[str, str]) -> tuple[bytes, list[int]]:
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


def _write(
    path: Path,
    tensors: list[Tensor],
    metadata: dict[str, str],
    force: bool,
    inputs: tuple[Path, ...],
    jobs: int | None,
    progress: Progress | None,
) -> None:
    head, offsets = _header(tensors, metadata)
    size = len(head) + sum(t.nbytes for t in tensors)
    with Output(path, force=force, size=size, inputs=inputs) as out:
        out.file.write(head)
        out.file.flush()
        os.truncate(out.file.fileno(), size)
        plan = [(t, len(head) + o) for t, o in zip(tensors, offsets, strict=True)]
        write_tensors(out.file.fileno(), plan, jobs=jobs, progress=progress)


def header(checkpoint: Checkpoint) -> tuple[bytes, list[int], int]:
    """What `save` would write before the data of one weights file in a folder: the bytes, where each tensor of the
    checkpoint would begin, and the size of the file."""
    metadata = {key: value for key, value in checkpoint.metadata.items() if isinstance(value, str)}
    ordered = _ordered(list(checkpoint.tensors.values()))
    head, offsets = _header(ordered, metadata)
    begin = {tensor.name: len(head) + offset for tensor, offset in zip(ordered, offsets, strict=True)}
    return head, [begin[name] for name in checkpoint.tensors], len(head) + checkpoint.nbytes


def planned_size(checkpoint: Checkpoint) -> int:
    """Bytes of the one weights file that `save` would write into a folder, exactly; no tensor is read."""
    return header(checkpoint)[2]
