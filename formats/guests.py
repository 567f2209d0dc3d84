"""Files that are no models though they stand where one should: named, so that nobody hunts for damage.

A repository cloned without git-lfs has pointers in place of weights, a browser saves a login page under the model's
name, a download that was broken off leaves `.incomplete` or `.part`.
"""

from __future__ import annotations

import re
from pathlib import Path

from llmconv.errors import BadFile, at

__all__ = ["check", "whole"]

_POINTER = b"version https://git-lfs"
_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<!doctype\s+html|<html|<head|<\?xml|<!--)", re.IGNORECASE)
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


def check(path: Path, head: bytes) -> None:
    """`BadFile` with its name for a file that is none of a model; head: its first bytes."""
    if _is_pointer(head):
        raise _pointer(path, head)
    if _PAGE.match(head):
        raise BadFile(f"{at(path)}: is a web page (HTML), no model: an error or login page was saved; fetch it again")
    if path.suffix.lower() in _UNFINISHED:
        raise BadFile(f"{at(path)}: is a download that was not finished ({path.suffix}); fetch it to its end")
    if len(head) >= 512 and not any(head):
        raise BadFile(f"{at(path)}: begins with nothing but zeros: its download was not finished; fetch it again")
