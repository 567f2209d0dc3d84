"""llamafile: a program with a zip archive behind it, and a GGUF in that, stored as it is.

Source: Mozilla-Ocho/llamafile.  Any zip archive with a stored GGUF is read alike.
"""

from __future__ import annotations

from pathlib import Path

from llmconv.errors import BadFile, Unsupported, UsageError, at, cut, listed
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.foreign.zipped import entries
from llmconv.formats.format import Format
from llmconv.formats.gguf import gguf_file
from llmconv.formats.source import Source

NAME = "llamafile"
_PROGRAM = b"MZqFpD"  # an executable of cosmopolitan libc
_END = 65_557  # bytes at a zip archive's end that can hold its last record
_MARK = b"PK\x05\x06"


def sniff(path: Path, head: bytes) -> bool:
    if path.is_dir():
        return False
    if path.suffix == ".llamafile" or head.startswith(_PROGRAM):
        return True
    return head[:4] == b"PK\x03\x04" and b".gguf" in head[:300]


def open(path: Path, key: str | None = None) -> Checkpoint:
    """The GGUF in it.   key: which one, where there are several that are models of text."""
    source = Source.of(path)
    end = source.read(max(0, source.size - _END), min(source.size, _END)).tobytes()
    if _MARK not in end:
        raise BadFile(f"{at(path)}: has no zip archive behind the program, expected a GGUF in it; fetch it again")
    found = {name: entry for name, entry in entries(path, source).items() if name.lower().endswith(".gguf")}
    models = [name for name in found if "mmproj" not in name.lower()] or list(found)
    if not models:
        raise BadFile(f"{at(path)}: holds no GGUF: it is the program alone; name the GGUF that it is used with")
    if key is not None and key not in found:
        raise UsageError(f"{at(path)}: holds no {cut(key)}; there are {listed(list(found))}")
    if key is None and len(models) > 1:
        raise UsageError(f"{at(path)}: holds several models, {listed(models)}; choose one with --key")
    entry = found[key or models[0]]
    if entry.stored is None:
        raise Unsupported(f"{at(path)}: its {cut(entry.name)} is compressed; unzip it first")
    inner = gguf_file.open_within(source.window(entry.start, entry.size))
    left = [name for name in found if name != entry.name]
    notes = [f"left out of the llamafile: {listed(left)}"] if left else []
    return inner.but(*notes, format=NAME, info={**inner.info, "file": entry.name}, parts=[path])


FORMAT = Format(name=NAME, dialect="gguf", sniff=sniff, open=open, keyed=True)
