"""JSON files, read with a sentence for what is wrong in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from llmconv.errors import BadFile, at
from llmconv.formats.files import open_regular

__all__ = ["json_object", "read_texts", "read_tools"]


def json_object(name: str, data: bytes) -> dict[str, Any]:
    """A JSON file that is an object, nested no deeper than can be written again; `BadFile` for any other."""
    try:
        value = orjson.loads(data.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise BadFile(f"{name}: is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise BadFile(f"{name}: expected a JSON object, found {type(value).__name__}")
    try:
        orjson.dumps(value)
    except TypeError:
        raise BadFile(f"{name}: is nested deeper than 250 levels, expected a tokenizer's few") from None
    return value


def read_texts(path: str | Path) -> list[str]:
    """A JSON file that is a list of strings."""
    return _list(Path(path), str, "strings")


def read_tools(path: str | Path) -> list[dict[str, Any]]:
    """A JSON file that is a list of objects: schemas of functions."""
    return _list(Path(path), dict, "objects, one for each tool")


def _list(path: Path, kind: type, what: str) -> list[Any]:
    with open_regular(path) as file:
        raw = file.read()
    try:
        found = orjson.loads(raw.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise BadFile(f"{at(path)}: is not valid JSON ({error})") from None
    if not isinstance(found, list) or not all(isinstance(entry, kind) for entry in found):
        raise BadFile(f"{at(path)}: expected a JSON list of {what}")
    return found
