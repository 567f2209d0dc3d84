"""Zip archives as containers: their entries, read piece by piece where they are stored, whole where deflated."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmconv.errors import BadFile, Unsupported, at, cut
from llmconv.formats import limits
from llmconv.formats.files import open_regular
from llmconv.formats.source import Source
from llmconv.quant.block import Bytes

__all__ = ["Entry", "entries"]

_MOST_DEFLATED = 1040
"""Bytes that one deflated byte can stand for, at most: a bomb claims more."""


@dataclass(frozen=True)
class Entry:
    """A file in the archive.   start: of its bytes in the archive;   packed: how many they are;   size: unpacked."""

    source: Source
    name: str
    start: int
    packed: int
    size: int
    deflated: bool
    last: list[tuple[str, bytes]]
    """The archive's deflated entry that was read last, unpacked: entries are read in many pieces."""

    @property
    def stored(self) -> tuple[Source, int] | None:
        """Where its bytes lie as they are; None when they are deflated."""
        return None if self.deflated else (self.source, self.start)

    def read(self, offset: int, nbytes: int) -> Bytes:
        """Some of its bytes."""
        if not self.deflated:
            return self.source.read(self.start + offset, nbytes)
        name, data = self.last[0] if self.last else ("", b"")
        if name != self.name:
            data = self._inflated()
            self.last[:] = [(self.name, data)]
        return np.frombuffer(data, np.uint8, nbytes, offset).copy()

    def _inflated(self) -> bytes:
        machine = zlib.decompressobj(-15)
        try:
            data = machine.decompress(self.source.read(self.start, self.packed).tobytes(), self.size + 1)
        except zlib.error as error:
            raise BadFile(
                f"{at(self.source.path)}: {cut(self.name)} can't be unpacked ({error}); fetch it again"
            ) from None
        if len(data) != self.size or not machine.eof:
            raise BadFile(
                f"{at(self.source.path)}: {cut(self.name)} unpacks to other than its {self.size:,} bytes; it is damaged"
            )
        return data


def entries(path: Path, source: Source) -> dict[str, Entry]:
    """The archive's files by name; `BadFile` when it is no whole zip file, or one that claims what it can't hold."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise BadFile(f"{at(path)}: is no whole zip file ({error}); fetch it again") from None
    if len(infos) > limits.MAX_TENSORS:
        raise BadFile(f"{at(path)}: has {len(infos):,} entries, expected at most {limits.MAX_TENSORS:,}")
    out: dict[str, Entry] = {}
    last: list[tuple[str, bytes]] = []
    for info in infos:
        where = f"{at(path)}: {cut(info.filename)}"
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
            raise Unsupported(f"{where} is packed in a way that is not read here; pack it stored or deflated")
        if info.file_size > _MOST_DEFLATED * max(info.compress_size, 1) or info.filename in out:
            raise BadFile(f"{where} claims more bytes than it can hold, or is there twice; fetch it again")
        header = source.read(info.header_offset, 30).tobytes()
        start = info.header_offset + 30 + sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
        deflated = info.compress_type == zipfile.ZIP_DEFLATED
        if start + info.compress_size > source.size or not (deflated or info.compress_size == info.file_size):
            raise BadFile(f"{where} lies beyond the archive's end; it is cut short, fetch it again")
        out[info.filename] = Entry(source, info.filename, start, info.compress_size, info.file_size, deflated, last)
    return out
