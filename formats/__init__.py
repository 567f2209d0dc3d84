"""Containers: GGUF, safetensors, JSON and a dozen more.  Bytes <-> `Checkpoint`, nothing of architectures.

`open(path)` goes by content.  A format is a module with `NAME`, `sniff`, `open` and `save` (see `Format`), listed in
`_MODULES`: the one place to add one.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, cast

from llmconv.errors import BadFile, UsageError, at
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Extent, Tensor

__all__ = ["Checkpoint", "Extent", "Format", "Tensor", "by_name", "formats", "open", "sniff"]


class Format(Protocol):
    """What a container's module offers."""

    NAME: str
    """Its name in commands and messages: "gguf"."""
    SUFFIXES: tuple[str, ...]
    """File names that ask for it when writing; the first is the default."""

    def sniff(self, path: Path, head: bytes) -> bool:
        """Whether the file or folder at `path` is of this format; `head` is its first 4096 bytes (b"" for a folder)."""

    def open(self, path: Path) -> Checkpoint:
        """Read it lazily; `BadFile` when it breaks the format's rules."""

    def save(self, checkpoint: Checkpoint, path: Path, *, force: bool = False, **options: Any) -> list[Path]:
        """Write it completely or not at all; the files written."""


# In the order of asking: the most certain signature first.
_MODULES = (
    "gguf_file",
    "safetensors_file",
    "torch_file",
    "numpy_file",
    "keras_file",
    "pickle_file",
    "onnx_file",
    "tfjs_file",
    "msgpack_file",
    "json_file",
    "llama2c_file",
)


def _each() -> Iterator[Format]:
    for name in _MODULES:  # imported only as far as somebody asks
        yield cast(Format, importlib.import_module(f"llmconv.formats.{name}"))


def formats() -> list[Format]:
    """Every format."""
    return list(_each())


def by_name(name: str) -> Format:
    for module in _each():
        if name.lower() == module.NAME:
            return module
    raise UsageError(f"unknown format {name!r}; known: {', '.join(f.NAME for f in formats())}")


def sniff(path: Path) -> Format:
    """The format of the file or folder at `path`, by content; `BadFile` when there is none."""
    from llmconv.formats import guests
    from llmconv.formats.files import open_regular

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
    for module in _each():
        if module.sniff(path, head):
            return module
    what = "holds no model" if path.is_dir() else "is no model file of a known format"
    raise BadFile(f"{at(path)}: {what}; known: {', '.join(f.NAME for f in formats())}")


def open(path: str | Path, *, key: str | None = None) -> Checkpoint:
    """Open a checkpoint of any format, lazily: a file, the first shard of several, or a model folder.

    key: which of several mappings of tensors in a training program's file to take.
    """
    path = Path(path)
    return read(sniff(path), path, key)


def read(module: Format, path: Path, key: str | None = None) -> Checkpoint:
    """Open a file whose format is known; `UsageError` for a key where there is nothing to choose."""
    if key is None:
        return module.open(path)
    if not getattr(module, "KEYED", False):
        raise UsageError(f"{at(path)}: is {module.NAME}, which has no keys to choose from; leave the key out")
    opening: Any = module.open
    return cast(Checkpoint, opening(path, key=key))
