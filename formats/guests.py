"""Files that are no models though they stand where one should: named, so that nobody hunts for damage.

A repository cloned without git-lfs has pointers in place of weights, a browser saves a login page under the model's
name, a download that was broken off leaves `.incomplete` or `.part`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from llmconv.errors import BadFile, Unsupported, at, cut, more

__all__ = ["beside", "check", "is_unfinished", "whole"]

_POINTER = b"version https://git-lfs"
_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<!doctype\s+html|<html|<head|<\?xml|<!--)", re.IGNORECASE)
_BEFORE_GGUF = (b"lmgg", b"fmgg", b"tjgg", b"algg")
"""ggml, ggmf, ggjt and ggla, little-endian: llama.cpp's of before August 2023."""
_UNFINISHED = (".incomplete", ".part", ".crdownload", ".download", ".aria2", ".!ut")


def _is_pointer(head: bytes) -> bool:
    return head.startswith(_POINTER)


def _pointer(path: Path, head: bytes) -> BadFile:
    """What to say of a git-lfs pointer."""
    size = re.search(rb"\nsize (\d{1,15})\b", head)
    missing = f" of {int(size[1]):,} bytes" if size else ""
    return BadFile(f"{at(path)}: is a git-lfs pointer, the file{missing} was not fetched; run git lfs pull")


def whole(path: Path) -> bytes:
    """A small file's bytes; `BadFile` for a git-lfs pointer."""
    data = path.read_bytes()
    if _is_pointer(data):
        raise _pointer(path, data)
    return data


def is_unfinished(path: Path) -> bool:
    """Whether the name is that of a download that was not finished."""
    return path.suffix.lower() in _UNFINISHED


def beside(folder: Path, taken: Iterable[Path], pattern: str) -> Iterator[str]:
    """Notes about what lies beside the weights that are read: others of the same kind, and unfinished downloads."""
    names = sorted(path.name for path in taken)
    others = sorted(p.name for p in folder.glob(pattern) if p.is_file() and p.name not in names)
    if others:
        yield f"not read, the weights are taken from {cut(names[0])}{more(names)}: {cut(others[0])}{more(others)}"
    halves = sorted(p.name for p in folder.iterdir() if is_unfinished(p) and p.is_file())
    if halves:
        yield f"left out, a download that was not finished: {cut(halves[0])}{more(halves)}; is the folder whole?"


def check(path: Path, head: bytes) -> None:
    """`BadFile` or `Unsupported` with its name for a file that is none of a model; head: its first bytes."""
    if _is_pointer(head):
        raise _pointer(path, head)
    if _PAGE.match(head):
        raise BadFile(f"{at(path)}: is a web page (HTML), no model: an error or login page was saved; fetch it again")
    if head[:4] in _BEFORE_GGUF:
        name = head[3::-1].decode()
        raise Unsupported(f"{at(path)}: is {name.upper()}, a format of before GGUF; convert the original model again")
    if is_unfinished(path):
        raise BadFile(f"{at(path)}: is a download that was not finished ({path.suffix}); fetch it to its end")
    if len(head) >= 512 and not any(head):
        raise BadFile(f"{at(path)}: begins with nothing but zeros: its download was not finished; fetch it again")
