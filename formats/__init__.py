"""Containers: GGUF, safetensors, JSON and a dozen more.  Bytes <-> `Checkpoint`, nothing of architectures.

`open(path)` goes by content.  A format is a module with a `FORMAT` (see `Format`), listed in `_CERTAIN` or `_LOOSE`:
the one place to add one.  Other packages add theirs under the entry point group "llmconv.formats", programs by
`register`.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from llmconv.errors import BadFile, UnknownName, UsageError, at
from llmconv.formats import (
    guests,
    pickling as pickling,  # registers how tensors are pickled
    side_files,
)
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import open_regular
from llmconv.formats.format import Format
from llmconv.formats.places.names import place
from llmconv.formats.tensor import Extent, Tensor
from llmconv.quant import entry_points

__all__ = [
    "Checkpoint",
    "Extent",
    "Format",
    "Tensor",
    "by_name",
    "formats",
    "named_by",
    "of_folders",
    "open",
    "register",
    "sniff",
]

# In the order of asking: the most certain signature first, those that take almost any file last.
_CERTAIN = (
    "gguf.gguf_file",
    "foreign.torch.consolidated_file",
    "safetensors_file",
    "foreign.torch.distcp_file",
    "foreign.torch.torch_file",
    "foreign.llamafile_file",
    "foreign.ollama_file",
    "foreign.numpy_file",
    "foreign.keras.keras_file",
    "foreign.torch.pickle_file",
    "foreign.onnx_file",
    "foreign.keras.tfjs_file",
    "foreign.llmc_file",
)
_LOOSE = ("msgpack_file", "json_file", "foreign.llama2c_file")
_registered: list[Format] = []


def register(format: Format) -> None:
    """Make a format known for the rest of this process."""
    _registered.append(format)


@functools.cache
def _installed() -> tuple[Format, ...]:
    """Those of other packages."""
    found = entry_points.load("llmconv.formats")
    for where, format in found:
        if not isinstance(format, Format):
            entry_points.refuse(where, "is no llmconv.formats.Format")
    return tuple(format for _, format in found if isinstance(format, Format))


def _each(path: Path | None = None) -> Iterator[Format]:
    """Every format, imported only as far as somebody asks; for a file, in the order of asking for its content."""
    yield from map(_built_in, _CERTAIN)
    loose = [_built_in(module) for module in _LOOSE]
    yield from (f for f in loose if path is None or f.is_named(path))
    yield from _registered
    yield from _installed()
    yield from (f for f in loose if path is not None and not f.is_named(path))


def _built_in(module: str) -> Format:
    return cast(Format, importlib.import_module(f"llmconv.formats.{module}").FORMAT)


def formats() -> list[Format]:
    """Every format."""
    return list(_each())


def named_by(path: Path) -> Format | None:
    """The format that a file name asks for, by its ending."""
    if not path.suffix:
        return None
    return next((format for format in _each() if format.is_named(path)), None)


def of_folders() -> Format:
    """The format of a model folder that is written."""
    return next(format for format in _each() if format.folder)


def by_name(name: str) -> Format:
    for format in _each():
        if name.lower() == format.name:
            return format
    raise UnknownName("format", name, [format.name for format in formats()])


def sniff(path: Path) -> Format:
    """The format of the file or folder at `path`, by content; `BadFile` when there is none."""
    head = b""
    if not path.is_dir():
        with open_regular(path) as file:
            try:
                head = file.read(4096)
            except OSError as error:
                raise BadFile(f"{at(path)}: can't be read ({error.strerror})") from None
        if not head:
            raise BadFile(f"{at(path)}: is empty, expected a model file")
        guests.check(path, head)
    elif (model := side_files.model_within(path)) is not None:
        return sniff(model)
    for format in _each(path):
        if format.sniff(path, head):
            return format
    guests.written(path, head)
    raise guests.of_others(path, [f.name for f in formats()])


def open(path: str | os.PathLike[str], *, key: str | None = None) -> Checkpoint:
    """Open a checkpoint of any format, lazily: a file, the first shard of several, or a model folder.

    key: which of several mappings of tensors in a training program's file to take.
    """
    path = place(path)
    return read(sniff(path), path, key)


def read(format: Format, path: Path, key: str | None = None) -> Checkpoint:
    """Open a file whose format is known; `UsageError` for a key where there is nothing to choose."""
    if path.is_dir() and (model := side_files.model_within(path)) is not None:
        inner = read(format, model, key)
        files, notes = side_files.around(path, model)
        return inner.but(*notes, files={**files, **inner.files}, source=path)
    if key is None:
        return format.open(path)
    if not format.keyed:
        raise UsageError(f"{at(path)}: is {format.name}, which has no keys to choose from; leave the key out")
    opening: Any = format.open
    return cast(Checkpoint, opening(path, key=key))
