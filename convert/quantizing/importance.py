"""Reading an importance matrix from a file of either form."""

from __future__ import annotations

import os
from pathlib import Path

from llmconv.errors import BadFile, at
from llmconv.formats import guests
from llmconv.formats.files import open_regular, regular_size
from llmconv.formats.gguf import gguf_file
from llmconv.formats.places.names import place
from llmconv.quant.imatrix import Importance, from_dat, from_tensors
from llmconv.quant.importance.sums import Sums, sums_of_dat, sums_of_tensors

__all__ = ["MAX_DAT_BYTES", "read_importance", "read_sums"]

_HEAD = 4096
MAX_DAT_BYTES = 4 << 30
"""A .dat file; the largest models have a few hundred megabytes."""


def read_importance(path: str | os.PathLike[str]) -> Importance:
    """The importance matrix in `path`: GGUF or the older .dat, by content.  `BadFile` when it is neither."""
    path = place(path)
    data = _dat(path)
    if data is not None:
        return from_dat(data, at(path))
    checkpoint = gguf_file.open(path)
    return from_tensors(checkpoint.tensors, checkpoint.metadata, at(path))


def read_sums(path: str | os.PathLike[str], chunk_size: int) -> Sums:
    """The sums in `path`, of either form, for adding to others.   chunk_size: tokens of a call, for the older form."""
    path = place(path)
    data = _dat(path)
    if data is not None:
        return sums_of_dat(data, at(path), chunk_size)
    checkpoint = gguf_file.open(path)
    return sums_of_tensors(checkpoint.tensors, checkpoint.metadata, at(path))


def _dat(path: Path) -> bytes | None:
    """The bytes of a file that is no GGUF."""
    size = regular_size(path)
    with open_regular(path) as file:
        head = file.read(_HEAD)
        if head[:4] == gguf_file.MAGIC:
            return None
        guests.check(path, head)
        if size > MAX_DAT_BYTES:
            raise BadFile(f"{at(path)}: is {size:,} bytes, expected an importance matrix of at most {MAX_DAT_BYTES:,}")
        return head + file.read(size)
