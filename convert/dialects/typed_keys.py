"""GGUF's keys with their exact types as JSON: key -> [type, value]."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.errors import BadFile
from llmconv.formats.gguf.gguf_values import SCALARS

__all__ = ["decode_keys", "encode_keys"]

_SCALARS: dict[str, Any] = {**SCALARS, "bool": np.bool_}
_NAMES = {np.dtype(t): name for name, t in _SCALARS.items()}


def encode_keys(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF keys as JSON: key -> [type, value]; arrays of numbers as [type, base64 of the little-endian bytes]."""
    return {key: _encode(value) for key, value in metadata.items()}


def _encode(value: Any) -> list[Any]:
    if isinstance(value, np.ndarray):
        raw = np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes()
        return ["array " + _NAMES[value.dtype.newbyteorder("=")], base64.b64encode(raw).decode()]
    if isinstance(value, np.generic):
        if isinstance(value, np.floating) and not np.isfinite(value):
            return [_NAMES[value.dtype], str(value)]
        return [_NAMES[value.dtype], value.item()]
    if isinstance(value, str):
        return ["str", value]
    if isinstance(value, bool):
        return ["bool", value]
    if isinstance(value, int | float):
        return ["int" if isinstance(value, int) else "float", value]
    items = list(value)
    if all(isinstance(v, str) for v in items):
        return ["strs", items]
    return ["list", [_encode(v) for v in items]]


def decode_keys(found: Any, where: str) -> dict[str, Any]:
    """The way back of `encode_keys`; `BadFile` for anything else."""
    if not isinstance(found, dict):
        raise BadFile(f"{where}: metadata is no object; expected key -> [type, value]")
    out = {}
    for key, entry in found.items():
        try:
            out[key] = _decode(*entry)
        except (TypeError, ValueError, KeyError, OverflowError):
            raise BadFile(f"{where}: metadata.{key} is not [type, value] as this program writes it") from None
    return out


def _decode(kind: str, value: Any) -> Any:
    if kind.startswith("array "):
        dtype = np.dtype(_SCALARS[kind.removeprefix("array ")])
        return np.frombuffer(base64.b64decode(value, validate=True), dtype.newbyteorder("<")).astype(dtype)
    if kind == "list":
        return [_decode(*entry) for entry in value]
    wanted: Any = {"str": str, "strs": list, "int": int, "float": float, "bool": bool}.get(kind)
    if wanted is not None:
        if not isinstance(value, wanted) or (kind == "strs" and not all(isinstance(v, str) for v in value)):
            raise ValueError
        return value
    if kind[0] in "ui" and (type(value) is not int):
        raise ValueError
    return _SCALARS[kind](value)
