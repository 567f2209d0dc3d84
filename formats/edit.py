"""Changing a file's metadata: in its header alone where that fits, by a safe rewrite where it doesn't.

The data of a GGUF or safetensors file begins behind its header, so a header of the same length (`Format.refit`) can be
replaced without touching it.  A shorter one is filled up: GGUF with a key of our own, safetensors with spaces.  A
longer one means writing a new file, whose tensors the kernel copies.

Replacing a header in place is not atomic, so the old one is first put, flushed, into a journal beside the file; after
a crash the next edit puts it back.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmconv import formats
from llmconv.errors import BadFile, Unsupported, UsageError, at, cut
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import open_regular
from llmconv.formats.gguf.gguf_values import SCALARS
from llmconv.formats.limits import SAFETENSORS_HEADER_BYTES
from llmconv.formats.places.names import place
from llmconv.formats.writing.checks import output_errors
from llmconv.formats.writing.outputs import Output, flush_folder

__all__ = ["TYPES", "open_alone", "parse_all", "parse_value", "recover", "rewrite_metadata"]

TYPES: dict[str, Any] = {**SCALARS, "bool": bool, "str": str}
"""Value types by the name used in `--set key=type:value`."""

# Keys that the GGUF specification says are texts, or lists of them, whether a file has them or not.
_TEXTS = re.compile(
    r"general\.(name|author|version|organization|finetune|basename|description|quantized_by|size_label|license"
    r"|license\.(name|link)|(source\.)?(url|doi|uuid|repo_url))|tokenizer\.chat_template"
)
_LISTS = {"general.tags", "general.languages"}

_JOURNAL = struct.Struct("<8sQ32s")  # magic, length of the old header, its SHA-256
_MAGIC = b"llmcvjr1"


def parse_value(text: str) -> Any:
    """`type:value` -> a metadata value of exactly that type: `u32:4096`, `f32:1e-5`, `bool:true`, `str:any text`,
    `u32[]:1,2,3`, `str[]:["a","b"]`.  `UsageError` when it is not one.
    """
    kind, colon, value = text.partition(":")
    many = kind.endswith("[]")
    cast = TYPES.get(kind.removesuffix("[]"))
    if not colon or cast is None:
        raise UsageError(f"{text!r} is not TYPE:VALUE; types: {', '.join(TYPES)}, with [] behind one for a list")
    try:
        if many:
            import orjson

            items = orjson.loads(value if value.lstrip().startswith("[") else f"[{value}]")
            parsed = [_scalar(cast, item if isinstance(item, str) else str(item).lower()) for item in items]
            return parsed if cast is str else np.array(parsed)
        return _scalar(cast, value)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{value!r} is no {kind} ({error})") from None


def parse_all(path: Path, texts: Mapping[str, str]) -> dict[str, Any]:
    """Values for keys of the file at `path`: `TYPE:VALUE`, or a value alone, of the type that the key has there."""
    untyped = [key for key, text in texts.items() if not _typed(text)]
    present = open_alone(path) if untyped else Checkpoint()
    return {
        key: parse_value(text if key not in untyped else f"{_type_of(path, key, present)}:{text}")
        for key, text in texts.items()
    }


def _typed(text: str) -> bool:
    kind, colon, _ = text.partition(":")
    return bool(colon) and kind.removesuffix("[]") in TYPES


def _type_of(path: Path, key: str, present: Checkpoint) -> str:
    """The type, by its name in `TYPES`, of a key that the file has, or that can have only one."""
    if key not in present.metadata:
        if _TEXTS.fullmatch(key) or present.format == "safetensors":  # which has nothing but texts
            return "str"
        if key in _LISTS:
            return "str[]"
        raise UsageError(f"{at(path)}: has no key {cut(key)} whose type could be kept; write it as str:… or u32:…")
    value = present.metadata[key]
    if isinstance(value, str | bool):
        return type(value).__name__
    if isinstance(value, np.generic | np.ndarray):
        kind = next((name for name, cast in TYPES.items() if np.dtype(cast) == value.dtype and cast is not str), "bool")
        return kind + "[]" * isinstance(value, np.ndarray)
    return "str[]" if len(value) and isinstance(value[0], str) else "u32[]"


def _scalar(cast: Any, value: str) -> Any:
    if cast is bool:
        if value.lower() not in ("true", "false"):
            raise ValueError("expected true or false")
        return value.lower() == "true"
    if cast is str:
        return value
    if issubclass(cast, np.integer):
        number, info = int(value, 0), np.iinfo(cast)
        if not info.min <= number <= info.max:
            raise ValueError(f"expected {info.min} to {info.max}")
        return cast(number)
    return cast(float(value))


def _journal(path: Path) -> Path:
    return path.with_name(f".llmconv-edit-{path.name[:150]}.journal")


def recover(path: Path) -> bool:
    """Put back the header of a file whose edit was cut off; whether there was one to put back."""
    journal = _journal(path)
    if not journal.is_file():
        return False
    with open_regular(journal) as file:
        raw = file.read(_JOURNAL.size + SAFETENSORS_HEADER_BYTES + 8)
    if len(raw) >= _JOURNAL.size:
        magic, length, digest = _JOURNAL.unpack(raw[: _JOURNAL.size])
        head = raw[_JOURNAL.size :]
        if magic == _MAGIC and len(head) == length and hashlib.sha256(head).digest() == digest:
            with output_errors(path):
                _overwrite(path, head)
                journal.unlink()
            return True
    raise BadFile(f"{at(journal)}: is no journal of ours; remove it, and check {path.name} before editing it")


def _overwrite(path: Path, head: bytes) -> None:
    handle = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        done = 0
        while done < len(head):
            done += os.pwrite(handle, head[done:], done)
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace_header(path: Path, head: bytes) -> None:
    """Put `head` over the file's first bytes, journaled; it is as long as what it replaces."""
    with open_regular(path) as file:
        old = file.read(len(head))
    record = _JOURNAL.pack(_MAGIC, len(old), hashlib.sha256(old).digest())
    with Output(_journal(path), force=True, size=len(old)) as out:
        out.file.write(record + old)
    with output_errors(path):
        _overwrite(path, head)
        _journal(path).unlink()


def open_alone(path: Path) -> Checkpoint:
    """The file whose header is to be changed, without what lies beside it; `Unsupported` for a folder."""
    path = place(path)
    container = formats.sniff(path)
    if path.is_dir():
        raise Unsupported(f"{at(path)}: is a folder; name the file in it whose metadata is to change")
    return (container.open_alone or container.open)(path)


def rewrite_metadata(path: Path, checkpoint: Checkpoint) -> bool:
    """Make `path`, from which `checkpoint` was opened and whose metadata was then changed, hold that metadata.

    Returns True when the header was replaced in place, False when the file was written anew.
    `Unsupported` for a format without a header of its own (JSON) and for a model of several files.
    """
    path = Path(path)
    container = formats.by_name(checkpoint.format)
    if container.refit is None:
        raise Unsupported(
            f"{at(path)}: {checkpoint.format} has no metadata to edit; edit the text, or convert it first"
        )
    if len(checkpoint.parts) > 1:
        raise Unsupported(f"{at(path)}: is a model of several files; merge it first (llmconv merge)")
    offsets = [t.extent.offset for t in checkpoint.tensors.values() if t.extent is not None]
    if offsets and len(offsets) == len(checkpoint.tensors):
        head = container.refit(checkpoint, offsets)
        if head is not None:
            _replace_header(path, head)
            return True
    # The tensors are read from `path` while the new file is written, so it takes another name until it is whole.
    anew = path.with_name(f".llmconv-edit-{path.name[:150]}{container.suffixes[0]}")
    container.save(checkpoint, anew, force=True)
    with output_errors(path):
        anew.replace(path)
        flush_folder(path.parent)
    return False
