"""GGUF: versions 1 to 3 read, in either byte order, whole or split; version 3 written.

Layout (ggml/docs/gguf.md): magic `GGUF`, version, number of tensors, number of keys; the keys, each a string and a
typed value; the tensors' descriptions, each a name, its dimensions from the fastest on, its type and its offset;
zeros up to a multiple of `general.alignment` (32 when absent); the tensors' bytes, each padded to that multiple.
Version 1 has 32 bits for counts, lengths and dimensions, the later ones 64.

A checkpoint opened from GGUF is in dialect "gguf"; shapes are in row-major order, the reverse of the file's.
Tolerated beyond the specification: more than 4 dimensions, holes between tensors, a last tensor without padding.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmconv.errors import BadFile, Unsupported, UsageError, at, cut
from llmconv.formats import limits
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.format import Format
from llmconv.formats.gguf.gguf_types import REMOVED, ggml_type, swap_bytes, swapped
from llmconv.formats.gguf.gguf_values import Cursor, encode_string, encode_value
from llmconv.formats.moving.experts import stacked
from llmconv.formats.places import names as places
from llmconv.formats.source import Source
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.formats.writing.outputs import Outputs
from llmconv.formats.writing.stream import write_tensors
from llmconv.progress import Meter

NAME = "gguf"
SUFFIXES = (".gguf",)
MAGIC = b"GGUF"
ALIGNMENT = 32
PADDING = "llmconv.padding"
"""The key that fills a header up to its old length, where metadata was edited."""
SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS = SPLIT = "split.no", "split.count", "split.tensors.count"
_SHARD = re.compile(r"(?P<stem>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def sniff(path: Path, head: bytes) -> bool:
    return head[:4] == MAGIC


# Reading


@dataclass
class _Part:
    """One file of a model."""

    path: Path
    metadata: dict[str, Any]
    tensors: list[Tensor] = field(default_factory=list)
    version: int = 3
    big: bool = False
    alignment: int = ALIGNMENT


def open(path: Path) -> Checkpoint:
    """A GGUF file, or all parts of a split one given any of them.  Lazy: tensors and string arrays stay in the file.

    Experts that an old file has in tensors of their own are stacked, as they are since (see `moving.experts`).
    """
    return stacked(open_alone(path))


def open_within(source: Source) -> Checkpoint:
    """A GGUF that lies inside another file."""
    return stacked(_opened(source.path, _read(source.path, source)))


def open_alone(path: Path) -> Checkpoint:
    """The same with its tensors as they are in the file."""
    return _opened(path, _read(path))


def _opened(path: Path, part: _Part) -> Checkpoint:
    count = _split_number(part, SPLIT_COUNT, path)
    if count == 0 and _split_number(part, SPLIT_TENSORS, path) != len(part.tensors):  # 0 where parts were merged again
        raise BadFile(f"{at(path)}: key '{SPLIT_COUNT}' is 0, expected the number of its parts; the file is damaged")
    no = _split_number(part, SPLIT_NO, path) or 0
    if no and no >= (count or 1):
        raise BadFile(f"{at(path)}: is part {no + 1} of {count or 1} by its keys; the file is damaged, fetch it again")
    parts = [part] if count is None or count <= 1 else _read_split(path, part, count)
    checkpoint = Checkpoint(format=NAME, source=path, dialect="gguf", metadata=parts[0].metadata)
    checkpoint.parts = [part.path for part in parts]
    for part in parts:
        for key, value in part.metadata.items():
            checkpoint.metadata.setdefault(key, value)
        for tensor in part.tensors:
            if tensor.name in checkpoint.tensors:
                raise BadFile(f"{at(path)}: two tensors are called {tensor.name!r}; the file is damaged")
            checkpoint.add(tensor)
    for key in SPLIT:
        checkpoint.metadata.pop(key, None)
    first = parts[0]
    checkpoint.info = {
        "version": first.version,
        "byte_order": "big" if first.big else "little",
        "alignment": first.alignment,
        "shards": len(parts),
    }
    return checkpoint


def _read(path: Path, source: Source | None = None) -> _Part:
    """Keys and tensors of one file.   source: its bytes, where they lie inside another."""
    cursor = Cursor(source or Source.of(path))
    if bytes(cursor.data[:4]) != MAGIC:
        raise BadFile(f"{at(path)}: does not begin with 'GGUF'; it is no GGUF file")
    cursor.pos = 4
    version = cursor.number("u4", "the version")
    if version & 0xFFFF == 0 and version:
        cursor.big, version = True, int.from_bytes(version.to_bytes(4, "little"), "big")
    if version not in (1, 2, 3):
        raise Unsupported(f"{at(path)}: is GGUF version {version}, expected 1 to 3; convert the original model again")
    cursor.count = "u4" if version == 1 else "u8"
    n_tensors, n_keys = (cursor.number(cursor.count, f"the {what} count") for what in ("tensor", "key"))
    for n, most, least, what in (
        (n_tensors, limits.MAX_TENSORS, 20, "tensors"),
        (n_keys, limits.GGUF_KEYS, 9, "keys"),
    ):
        if n > most or n * least > cursor.source.size:
            raise BadFile(
                f"{at(path)}: claims {n:,} {what}, more than {min(most, cursor.source.size // least):,} that it could "
                "hold; the file is damaged"
            )
    part = _Part(path, {}, version=version, big=cursor.big)
    for i in range(n_keys):
        key = cursor.text(f"key {i}", limits.MAX_NAME_BYTES)
        if not key:
            raise BadFile(f"{at(path)}: key {i} has no name; the file is damaged")
        if key in part.metadata:
            raise BadFile(f"{at(path)}: key {key!r} is there twice; the file is damaged")
        part.metadata[key] = cursor.value(f"key {key!r}")
    try:
        part.alignment = _alignment(part.metadata)
    except ValueError as error:
        raise BadFile(f"{at(path)}: {error}; the file is damaged") from None
    described = [_describe(cursor, i) for i in range(n_tensors)]
    start = -(-cursor.pos // part.alignment) * part.alignment if described else cursor.pos
    part.tensors = _place(cursor, described, start, part.alignment)
    return part


def _alignment(metadata: dict[str, Any]) -> int:
    """The stated alignment; `ValueError` with a sentence's end when it is none."""
    value = metadata.get("general.alignment", np.uint32(ALIGNMENT))
    if not isinstance(value, np.uint32) or not 0 < value <= limits.GGUF_ALIGNMENT or value & (value - 1):
        most = f"{limits.GGUF_ALIGNMENT:,}"
        raise ValueError(f"key 'general.alignment' is {cut(value)}, expected a uint32 power of two up to {most}")
    return int(value)


def _describe(cursor: Cursor, i: int) -> tuple[str, tuple[int, ...], BlockClass, int]:
    """Name, shape (row-major), type and offset of one tensor."""
    path = cursor.source.path
    name = cursor.text(f"tensor {i}'s name", limits.MAX_NAME_BYTES)
    what = f"tensor {name!r}"
    n_dims = cursor.number("u4", what)
    if n_dims > limits.GGUF_DIMS:
        raise BadFile(f"{at(path, what)} has {n_dims} dimensions, expected at most {limits.GGUF_DIMS}")
    shape = tuple(cursor.number(cursor.count, what) for _ in range(n_dims))[::-1]
    number, offset = cursor.number("u4", what), cursor.number("u8", what)
    if limits.too_large(shape):
        raise BadFile(f"{at(path, what)} has shape {shape}, more elements than any file holds; the file is damaged")
    type = ggml_type(number)
    if type is None and number in REMOVED:
        raise Unsupported(
            f"{at(path, what)} is of type {REMOVED[number]}, which ggml dropped; convert the original again"
        )
    if type is None:
        raise Unsupported(f"{at(path, what)} is of ggml type {number}, unknown here; a newer version may know it")
    row = shape[-1] if shape else 1
    if row % type.block_size:
        raise BadFile(
            f"{at(path, what)} has rows of {row}, expected a multiple of {type.name}'s block {type.block_size}"
        )
    return name, shape, type, offset


def _place(
    cursor: Cursor, described: list[tuple[str, tuple[int, ...], BlockClass, int]], start: int, alignment: int
) -> list[Tensor]:
    """Tensors over the file's bytes; refuses those that are outside, not aligned, or share bytes."""
    source, tensors, ranges = cursor.source, [], []
    for name, shape, type, offset in described:
        what = f"tensor {name!r}"
        if offset % alignment:
            raise BadFile(f"{at(source.path, what)} lies at offset {offset}, expected a multiple of {alignment}")
        size = math.prod(shape[:-1]) * type.row_bytes(shape[-1] if shape else 1)
        if start + offset + size > source.size:
            raise BadFile(
                f"{at(source.path, what)} takes {size:,} bytes at {start + offset:,} but the file ends at "
                f"{source.size:,}; it is cut short or damaged, fetch it again"
            )
        tensor = source.tensor(name, shape, type, start + offset)
        tensors.append(swapped(tensor) if cursor.big else tensor)
        ranges.append((offset, offset + size, name))
    end = 0
    last = ""
    for begin, stop, name in sorted(r for r in ranges if r[0] < r[1]):
        if begin < end:
            raise BadFile(f"{at(source.path)}: tensors {last!r} and {name!r} share bytes; the file is damaged")
        end, last = stop, name
    if source.size > start + -(-end // alignment) * alignment + (alignment if not described else 0):
        raise BadFile(
            f"{at(source.path)}: goes on after its last tensor, to byte {source.size:,} where {start + end:,} "
            "was expected; it is damaged or two files in one"
        )
    return tensors


def _split_number(part: _Part, key: str, path: Path) -> int | None:
    value = part.metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, np.integer) or value < 0:
        raise BadFile(f"{at(path)}: key {key!r} is {cut(value)}, expected a whole number")
    return int(value)


def _read_split(path: Path, part: _Part, count: int) -> list[_Part]:
    """All parts of a split model, in order, given one of them."""
    match = _SHARD.fullmatch(path.name)
    if not match or int(match["count"]) != count or int(match["no"]) - 1 != _split_number(part, SPLIT_NO, path):
        raise BadFile(
            f"{at(path)}: is part {part.metadata.get(SPLIT_NO, 0) + 1} of {count} of a split model, "
            f"expected a name that ends in -NNNNN-of-{count:05d}.gguf; rename it"
        )
    parts = []
    for i in range(count):
        name = path.with_name(shard_name(match["stem"], i, count))
        if name != path and not name.exists():
            raise BadFile(f"{at(path)}: part {name.name} of {count} is missing; fetch it")
        other = part if name == path else _read(name)
        if _split_number(other, SPLIT_NO, name) != i or _split_number(other, SPLIT_COUNT, name) != count:
            raise BadFile(f"{at(name)}: says it is another part than its name; the parts are mixed up")
        parts.append(other)
    total = _split_number(parts[0], SPLIT_TENSORS, path)
    found = sum(len(p.tensors) for p in parts)
    if total is not None and total != found:
        raise BadFile(f"{at(path)}: its parts hold {found} tensors, expected {total}; fetch them again")
    return parts


def shard_name(stem: str, no: int, count: int) -> str:
    return f"{stem}-{no + 1:05d}-of-{count:05d}.gguf"


# Writing


@dataclass
class _Layout:
    """A file to be written: its header and where each tensor goes."""

    head: bytes
    plan: list[tuple[Tensor, int]]
    size: int


def save(
    checkpoint: Checkpoint,
    path: Path,
    *,
    force: bool = False,
    split_max_size: int = 0,
    split_max_tensors: int = 0,
    byte_order: str = "little",
    jobs: int | None = None,
    meter: Meter | None = None,
) -> list[Path]:
    """Write GGUF version 3, byte for byte as llama.cpp's own writer lays the same content out.

    split_max_size, split_max_tensors: begin a new file `STEM-00001-of-0000N.gguf` when the next tensor would
        exceed that many bytes or tensors (0: never); keys are in the first one.
    byte_order: "little" or "big".

    Returns the files written.  Raises `Unsupported` for a tensor type or metadata value that GGUF does not have.
    """
    path = Path(path)
    if byte_order not in ("little", "big"):
        raise UsageError(f"byte order {byte_order!r} is not 'little' or 'big'")
    big = byte_order == "big"
    groups = _groups(checkpoint, split_max_size, split_max_tensors)
    alignment = _wanted_alignment(checkpoint)
    layouts = []
    for i, tensors in enumerate(groups):
        metadata = _keys(checkpoint) if i == 0 else {}
        if i and alignment != ALIGNMENT:
            metadata["general.alignment"] = np.uint32(alignment)  # each part is read by itself
        if len(groups) > 1:
            metadata[SPLIT_NO], metadata[SPLIT_COUNT] = np.uint16(i), np.uint16(len(groups))
            metadata[SPLIT_TENSORS] = np.int32(len(checkpoint.tensors))
        layouts.append(_lay_out(metadata, tensors, alignment, big))
    paths = [path]
    if len(groups) > 1:
        match = _SHARD.fullmatch(path.name)
        stem = match["stem"] if match else path.name.removesuffix(".gguf")
        paths = [path.with_name(shard_name(stem, i, len(groups))) for i in range(len(groups))]
    sizes = {target: layout.size for target, layout in zip(paths, layouts, strict=True)}
    with Outputs(sizes, force=force, inputs=_inputs(checkpoint)) as outputs:
        for target, layout in zip(paths, layouts, strict=True):
            if outputs.has(target, layout.head):
                continue
            with outputs.open(target) as out:
                out.file.write(layout.head)
                out.reserve(layout.size)
                write_tensors(out, layout.plan, jobs=jobs, meter=meter, change=swap_bytes if big else None)
    return paths


def _keys(checkpoint: Checkpoint) -> dict[str, Any]:
    """The metadata without what belongs to the files it came from."""
    return {key: value for key, value in checkpoint.metadata.items() if key not in SPLIT}


def _wanted_alignment(checkpoint: Checkpoint) -> int:
    try:
        return _alignment(checkpoint.metadata)
    except ValueError as error:
        raise UsageError(f"{error}; change the metadata") from None


def _inputs(checkpoint: Checkpoint) -> list[Path]:
    """Files that the checkpoint may still be read from, all parts of a split one among them."""
    return [*checkpoint.inputs(), *(parts_beside(checkpoint.source) if checkpoint.source is not None else ())]


def parts_beside(path: Path) -> list[Path]:
    """Names of all parts of the split model that `path` is named as a part of."""
    match = _SHARD.fullmatch(path.name)
    count = int(match["count"]) if match else 0
    return [path.with_name(shard_name(match["stem"], i, count)) for i in range(count)] if match else []


def _groups(checkpoint: Checkpoint, max_size: int, max_tensors: int) -> list[list[Tensor]]:
    """The tensors of each file, in order (the rule of the gguf package: sizes are counted without padding)."""
    groups: list[list[Tensor]] = [[]]
    size = 0
    for tensor in checkpoint.tensors.values():
        full = (max_tensors and len(groups[-1]) >= max_tensors) or (max_size and size + tensor.nbytes > max_size)
        if groups[-1] and full:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    return groups


def _lay_out(metadata: dict[str, Any], tensors: list[Tensor], alignment: int, big: bool) -> _Layout:
    order = ">" if big else "<"
    head = [MAGIC, struct.pack(f"{order}IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        head += [encode_string(key, big), encode_value(value, f"key {key!r}", big)]
    offset, offsets = 0, []
    for tensor in tensors:
        number = tensor.type.ggml_id
        if number is None:
            raise Unsupported(
                f"tensor {tensor.name!r} is of type {tensor.type.name}, which GGUF does not have; "
                "choose another (--outtype)"
            )
        head.append(encode_string(tensor.name, big))
        shape = tensor.shape[::-1]
        if len(shape) > limits.GGUF_DIMS:
            raise Unsupported(
                f"tensor {cut(tensor.name)} has {len(shape)} dimensions, a GGUF's have at most {limits.GGUF_DIMS}; "
                "write safetensors"
            )
        head.append(struct.pack(f"{order}I{len(shape)}QIQ", len(shape), *shape, number, offset))
        offsets.append(offset)
        offset += -(-tensor.nbytes // alignment) * alignment
    raw = b"".join(head)
    start = -(-len(raw) // alignment) * alignment if tensors else len(raw)
    return _Layout(raw, [(t, start + o) for t, o in zip(tensors, offsets, strict=True)], start + offset)


def header(checkpoint: Checkpoint) -> tuple[bytes, list[int], int]:
    """A file of exactly these keys: the bytes before the data, where each tensor would begin, and the file's size."""
    alignment = _wanted_alignment(checkpoint)
    layout = _lay_out(dict(checkpoint.metadata), list(checkpoint.tensors.values()), alignment, False)
    return layout.head, [offset for _, offset in layout.plan], layout.size


def planned_size(checkpoint: Checkpoint) -> int:
    """Bytes of the file that `save` would write, exactly; no tensor is read."""
    return header(Checkpoint(checkpoint.tensors, _keys(checkpoint)))[2]


def _refit(checkpoint: Checkpoint, offsets: list[int]) -> bytes | None:
    """A header of the checkpoint's keys before tensors that lie at `offsets`; see `Format.refit`."""
    if checkpoint.info.get("version") != 3:
        return None
    start = min(offsets)
    metadata = {key: value for key, value in checkpoint.metadata.items() if key != PADDING}
    head, planned, _ = header(Checkpoint(checkpoint.tensors, metadata))
    if min(planned) < start:
        empty, _, _ = header(Checkpoint(checkpoint.tensors, metadata | {PADDING: ""}))
        room = start - len(empty)
        if room < 0:  # less than the padding key itself takes: no header of that length exists
            return None
        head, planned, _ = header(Checkpoint(checkpoint.tensors, metadata | {PADDING: " " * room}))
    return head.ljust(start, b"\0") if planned == offsets else None


def _split(
    checkpoint: Checkpoint, target: Path | None, *, max_size: int, max_tensors: int, force: bool, meter: Meter | None
) -> list[Path]:
    """`TARGET-00001-of-0000N.gguf` and so on, by default beside the source under its own stem."""
    source = checkpoint.source
    if target is None:
        if source is None or len(checkpoint.parts) > 1:
            raise UsageError(f"{checkpoint.where}: is split already; give a name for the new parts")
        target = places.beside(source) / f"{places.called(source)}.gguf"
    fits = checkpoint.nbytes <= (max_size or checkpoint.nbytes)
    if fits and len(checkpoint.tensors) <= (max_tensors or len(checkpoint.tensors)):
        raise UsageError(f"{checkpoint.where}: fits one part of that size; nothing to split")
    return save(checkpoint, target, force=force, split_max_size=max_size, split_max_tensors=max_tensors, meter=meter)


FORMAT = Format(
    name=NAME,
    dialect="gguf",
    sniff=sniff,
    open=open,
    write=save,
    suffixes=SUFFIXES,
    options=("split_max_size", "split_max_tensors", "byte_order"),
    split=_split,
    refit=_refit,
    open_alone=open_alone,
)
