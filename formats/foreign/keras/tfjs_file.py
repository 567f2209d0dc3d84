"""TensorFlow.js models: `model.json` with a `weightsManifest`, and the shards beside it; ml5's `manifest.json`.

A manifest lists groups: file names, whose bytes follow each other, and weights {name, shape, dtype}, one after another
in them.  A quantized weight is stored as uint8 or uint16 codes, value = code * scale + min, or as float16; it becomes
the float32 numbers that TensorFlow.js computes.  ml5's older manifest has one file of float32 for each variable:
{name: {filename, shape}}.  Source: tensorflow/tfjs, tfjs-core/src/io/types.ts and io_utils.ts.

`model.json` and other small texts of the folder are side files: with them the model comes back as it was.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmconv.errors import BadFile, Unsupported, at, cut
from llmconv.formats import limits
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import open_regular, regular_size
from llmconv.formats.foreign.keras import tfjs_writing
from llmconv.formats.format import Format
from llmconv.formats.source import Source
from llmconv.formats.tensor import Tensor, type_of_dtype
from llmconv.quant import plain
from llmconv.quant.block import Bytes

NAME = "tfjs"

MODEL, MANIFEST = "model.json", "manifest.json"
_SIDE_FILES = (".json", ".txt", ".jinja", ".md", ".model")
_ML5 = re.compile(rb'\{\s*"[^"]{1,200}"\s*:\s*\{[^{}]{0,400}"(filename|shape)"')

DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "int32": np.int32,
    "int16": np.int16,
    "uint16": np.uint16,
    "int8": np.int8,
    "uint8": np.uint8,
    "bool": np.bool_,
    "complex64": np.complex64,
}


def sniff(path: Path, head: bytes) -> bool:
    if path.is_dir():
        return any(_is_manifest(path / name) for name in (MODEL, MANIFEST) if (path / name).is_file())
    return head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{" and _is_manifest(path)


def _is_manifest(path: Path) -> bool:
    if regular_size(path) > limits.MANIFEST_BYTES:
        return False
    with open_regular(path) as file:
        head = file.read(4096)
        if _ML5.match(head.lstrip(b"\xef\xbb\xbf \t\r\n")) and b'"filename"' in head and b'"shape"' in head:
            return True
        return b'"weightsManifest"' in head + file.read()


def open(path: Path) -> Checkpoint:
    """A folder, or its model.json; tensors stay in the shards."""
    file = next((path / n for n in (MODEL, MANIFEST) if (path / n).is_file()), path) if path.is_dir() else path
    stated = _json(file)
    out = Checkpoint(format=NAME, source=path, dialect="plain")
    groups = _groups(stated, file)
    for group in groups:
        _add(out, group, file)
    if not out.tensors:
        raise BadFile(f"{at(file)}: its manifest lists no weights, so there is nothing to convert")
    out.parts = [file, *(shard for group in groups for shard in group.files)]
    shards = {shard.name for shard in out.parts[1:]}
    if stated.get("generatedBy") != tfjs_writing.OURS:
        out.files[file.name] = file
    for entry in sorted(file.parent.iterdir(), key=lambda p: p.name) if path.is_dir() else ():
        wanted = entry.suffix in _SIDE_FILES and entry.name not in {*shards, file.name} and entry.is_file()
        if wanted and regular_size(entry) <= limits.SIDE_FILE_BYTES:
            out.files[entry.name] = entry
    ours = stated.get("userDefinedMetadata")
    texts = ours.get(tfjs_writing.OURS) if isinstance(ours, dict) else None
    if isinstance(texts, dict) and all(isinstance(v, str) for v in texts.values()):
        out.metadata |= texts
    if "config.json" in out.files:
        out.dialect = "hf"
    return out


@dataclass(frozen=True)
class _Group:
    """Files whose bytes follow each other, and the weights in them."""

    files: list[Path]
    weights: list[Any]


def _json(file: Path) -> dict[str, Any]:
    if regular_size(file) > limits.MANIFEST_BYTES:
        raise BadFile(f"{at(file)}: is larger than {limits.MANIFEST_BYTES:,} bytes, expected a manifest")
    try:
        found = json.loads(file.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{at(file)}: is no JSON ({str(error)[:80]}); fetch it again") from None
    if not isinstance(found, dict):
        raise BadFile(f"{at(file)}: is no JSON object, expected a TensorFlow.js model")
    return found


def _groups(stated: dict[str, Any], file: Path) -> list[_Group]:
    """What a manifest of either kind says, its file names checked."""
    if "weightsManifest" not in stated:
        groups: Any = [
            {"paths": [v.get("filename")], "weights": [{"name": k, "shape": v.get("shape"), "dtype": "float32"}]}
            for k, v in stated.items()
            if isinstance(v, dict)
        ]
    else:
        groups = stated["weightsManifest"]
    if not isinstance(groups, list):
        raise BadFile(f"{at(file)}: its weightsManifest is no list of groups; fetch it again")
    out = []
    for i, group in enumerate(groups):
        paths, weights = (group.get("paths"), group.get("weights")) if isinstance(group, dict) else (None, None)
        if not isinstance(paths, list) or not isinstance(weights, list) or len(paths) > limits.MAX_SHARDS:
            raise BadFile(f"{at(file)}: group {i} of its manifest has no lists paths and weights; fetch it again")
        for name in paths:
            parts = Path(name).parts if isinstance(name, str) and "\0" not in name else ("..",)
            if not parts or ".." in parts or "\\" in name or Path(name).is_absolute():
                raise BadFile(
                    f"{at(file)}: names the file {cut(name)}, expected one in its own folder; it is not followed"
                )
            if not (file.parent / name).is_file():
                raise BadFile(f"{at(file)}: its file {cut(name)} is missing; fetch it")
        out.append(_Group([file.parent / name for name in paths], weights))
    return out


class _Joined:
    """Files whose bytes follow each other."""

    def __init__(self, files: list[Path]):
        self.sources = [Source.of(file) for file in files]
        self.size = sum(source.size for source in self.sources)

    def place(self, offset: int, nbytes: int) -> tuple[Source, int] | None:
        """The file that holds all of a range, and where in it; None when it goes over several."""
        for source in self.sources:
            if offset < source.size or (not nbytes and offset == source.size):
                return (source, offset) if offset + nbytes <= source.size else None
            offset -= source.size
        return None

    def read(self, offset: int, nbytes: int) -> Bytes:
        out = np.empty(nbytes, np.uint8)
        done = 0
        for source in self.sources:
            if offset < source.size and done < nbytes:
                n = min(source.size - offset, nbytes - done)
                source.fill(offset, out[done : done + n].data)
                done, offset = done + n, offset + n
            offset -= source.size
        return out


def _add(out: Checkpoint, group: _Group, file: Path) -> None:
    """The weights of a group."""
    joined, offset = _Joined(group.files), 0
    for weight in group.weights:
        name = weight.get("name") if isinstance(weight, dict) else None
        if not isinstance(name, str) or not 0 < len(name) <= limits.MAX_NAME_BYTES:
            raise BadFile(f"{at(file)}: its manifest has a weight without a name; fetch it again")
        where = f"{at(file)}: weight {cut(name)}"
        if name in out.tensors:
            raise BadFile(f"{where} is listed twice; fetch it again")
        shape = _shape(weight.get("shape"), where)
        if weight.get("dtype") == "string":
            texts, used = _strings(joined, offset, math.prod(shape), where)
            out.metadata[f"tfjs.{name}"] = json.dumps(texts, ensure_ascii=False)
            offset += used
            continue
        stored, decode, dtype = _kind(weight, where)
        needed = math.prod(shape) * stored.itemsize
        if offset + needed > joined.size:
            raise BadFile(
                f"{where} takes {needed:,} bytes at {offset:,} but its files end at {joined.size:,}; fetch them again"
            )
        out.add(_tensor(name, shape, joined, offset, stored, decode, dtype))
        offset += needed
    if offset != joined.size:
        names = ", ".join(p.name for p in group.files[:2])
        raise BadFile(f"{at(file)}: {cut(names)} has {joined.size:,} bytes, expected {offset:,} by the manifest")


def _shape(stated: Any, where: str) -> tuple[int, ...]:
    sizes = (
        isinstance(stated, list) and len(stated) <= limits.MAX_DIMS and all(type(n) is int and n >= 0 for n in stated)
    )
    if not sizes or limits.too_large(stated):
        raise BadFile(f"{where} has shape {cut(stated)}, expected whole numbers; fetch it again")
    return tuple(stated)


Decoder = tfjs_writing.Recode


def _kind(weight: dict[str, Any], where: str) -> tuple[np.dtype[Any], Decoder | None, np.dtype[Any]]:
    """(type of the stored items, what decodes them, type of the numbers)."""
    dtype, packed = weight.get("dtype"), weight.get("quantization")
    if dtype not in DTYPES:
        raise Unsupported(f"{where} is of type {cut(dtype)}; known: {', '.join(DTYPES)}, string")
    if packed is None:
        return np.dtype(DTYPES[dtype]), None, np.dtype(DTYPES[dtype])
    kind = packed.get("dtype") if isinstance(packed, dict) else None
    if kind == "float16" and dtype == "float32":
        return np.dtype(np.float16), None, np.dtype(np.float16)
    numbers = [packed.get(k) for k in ("scale", "min")] if isinstance(packed, dict) else []
    finite = all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in numbers)
    if kind not in ("uint8", "uint16") or dtype not in ("float32", "int32") or not finite:
        raise Unsupported(
            f"{where} is quantized as {cut(packed)}, expected uint8 or uint16 with scale and min, or float16"
        )
    scale, least = (float(x) for x in numbers)  # type: ignore[arg-type]
    return (
        np.dtype(f"<u{1 if kind == 'uint8' else 2}"),
        tfjs_writing.dequantizer(scale, least, dtype),
        np.dtype(DTYPES[dtype]),
    )


def _tensor(
    name: str,
    shape: tuple[int, ...],
    joined: _Joined,
    offset: int,
    stored: np.dtype[Any],
    decode: Decoder | None,
    dtype: np.dtype[Any],
) -> Tensor:
    kind = type_of_dtype(dtype)
    row = (shape[-1] if shape else 1) * stored.itemsize
    place = joined.place(offset, math.prod(shape) * stored.itemsize)
    if decode is None and place is not None and kind is not plain.BOOL:
        return place[0].tensor(name, shape, kind, place[1])

    def read(start: int, stop: int) -> Bytes:
        raw = joined.read(offset + start * row, (stop - start) * row)
        if kind is plain.BOOL:
            raw = np.array(raw != 0, np.uint8)
        if decode is None:
            return raw.reshape(stop - start, row)
        return np.ascontiguousarray(decode(raw.view(stored))).view(np.uint8).reshape(stop - start, -1)

    return Tensor(name, shape, kind, read)


def _strings(joined: _Joined, offset: int, count: int, where: str) -> tuple[list[str], int]:
    """Texts: the length of each in four bytes, then its letters; how many bytes all of them take."""
    out, start = [], offset
    for _ in range(count):
        if offset + 4 > joined.size:
            raise BadFile(f"{where} goes on behind its files' end; fetch them again")
        length = int.from_bytes(joined.read(offset, 4).tobytes(), "little")
        if offset + 4 + length > joined.size:
            raise BadFile(f"{where} has a text of {length:,} bytes, more than its files have; fetch them again")
        out.append(joined.read(offset + 4, length).tobytes().decode("utf-8", "replace"))
        offset += 4 + length
    return out, offset - start


FORMAT = Format(
    name=NAME,
    dialect="hf",
    sniff=sniff,
    open=open,
    write=tfjs_writing.save,
    suffixes=(".tfjs",),
    always_folder=True,
)
