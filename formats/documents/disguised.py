"""Numbers that a document writes as something else: sizes as text, weights in a text, bits of floats as whole numbers.

What can be read is read; the rest is recognised, so that a reader of the document is told that it is no tensor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.formats import limits
from llmconv.formats.documents.document import Numbers

__all__ = [
    "are_bits",
    "are_floats",
    "byte_order",
    "is_numbered",
    "is_numbers_in_a_text",
    "is_unsaved",
    "not_by_rows",
    "number_words",
    "size",
    "sizes",
    "wrapped_numbers",
]

_FLOAT = r"[-+]?(?:\d+\.\d*|\.?\d+)(?:[eE][-+]?\d+)?"
_REAL = r"[-+]?\d*\.\d+(?:[eE][-+]?\d+)?"
_SIZES = re.compile(r"[\[(]?\s*\d{1,12}(?:\s*[,x×*]\s*\d{1,12})*\s*,?\s*[\])]?")
_WORD = re.compile(rf"[-+]?(?:{_FLOAT}|NaN|Inf(?:inity)?|\d+n)", re.IGNORECASE)
_WHOLE = re.compile(r"[-+]?\d+")
_UNSAID = ("undefined", "null", "None")
_PLACE = re.compile(r"-?\d{1,12}(?:\.\d+)?")
_LISTED = re.compile(rf"\s*[\[(]*\s*(?:{_REAL}[,;\s\])(\[]+){{3}}{_REAL}|\s*\[\s*\[?\s*{_REAL}\s*,")
_INSIDE = re.compile(rf"[\[:]\s*{_REAL}\s*,\s*{_FLOAT}")
_HEX = re.compile(r"[0-9a-fA-F]{192}")
_WRAPPED = (
    {"re", "im"},
    {"$numberDouble"},
    {"$numberInt"},
    {"$numberLong"},
    {"$numberDecimal"},
    {"__bigint"},
    {"$bigint"},
)
_HELD = ({"value"}, {"val"}, {"data", "grad"}, {"value", "grad"}, {"w", "dw"})
_LOOKED_AT = 1 << 16
_STRIDES = ("stride", "strides")
_HALF, _BRAIN, _SINGLE = (1 << 15, 0, 31 << 10), (1 << 15, 96 << 7, 158 << 7), (1 << 31, 96 << 23, 158 << 23)
_PATTERNS: dict[str | None, tuple[int, int, int]]
_PATTERNS = {"<f2": _HALF, ">f2": _HALF, "bfloat16": _BRAIN, "<f4": _SINGLE, ">f4": _SINGLE}
"""Of a float's type: its sign bit, the bits of 2^-31 and of 2^31 (of halves, of zero and of infinity)."""
_ORDERS = {">": "big be > bigendian msb network", "<": "little le < littleendian lsb"}
_ORDER_KEYS = ("byteorder", "endian", "endianness", "endianess", "byteendianness")
_BY_COLUMNS = {"order": ("F", "f"), "fortran_order": (True,), "Corder": (False,), "columnMajor": (True,)}


def sizes(stated: Any) -> tuple[int, ...] | None:
    """Sizes as writers state them: [2, 3], [2.0, 3.0], ["2", "3"], "2,3", "(2, 3)", "2x3", {"0": 2, "1": 3}."""
    if isinstance(stated, str) and len(stated) < 200 and _SIZES.fullmatch(stated.strip()):
        stated = re.findall(r"\d+", stated)
    elif isinstance(stated, dict) and list(stated) == [str(i) for i in range(len(stated))]:
        stated = list(stated.values())
    if not isinstance(stated, list) or not 0 < len(stated) <= limits.MAX_DIMS:
        return None
    out = [size(item) for item in stated]
    return tuple(n for n in out if n is not None) if None not in out else None


def size(stated: Any) -> int | None:
    """One of them."""
    if type(stated) is int:
        return stated
    if type(stated) is float and stated.is_integer():
        return int(stated)
    return int(stated) if isinstance(stated, str) and re.fullmatch(r"\d{1,12}", stated) else None


def number_words(node: list[Any]) -> bool:
    """Whether a list of texts is one of numbers: not of words, and not of whole numbers, which words may be."""
    words = [x for x in node if type(x) is str and x not in _UNSAID]
    if not words or not all(_WORD.fullmatch(x[:40]) for x in words[:3]) or not all(_WORD.fullmatch(x) for x in words):
        return False
    return len(words) < len(node) or any(not _WHOLE.fullmatch(x) for x in words)


def is_numbers_in_a_text(text: str) -> bool:
    """Whether a text holds numbers: JSON in a text, decimals with commas or spaces, hexadecimal bytes."""
    if len(text) < 12:
        return text[:1] == "[" and text[-1:] == "]" and _are_listed(text)
    if text.lstrip()[:1] in ("{", "["):
        return _INSIDE.search(text[:_LOOKED_AT]) is not None or _LISTED.match(text) is not None
    return _LISTED.match(text) is not None or _HEX.match(text) is not None


def _are_listed(text: str) -> bool:
    """Whether a short text is a list in JSON with a number in it that is no whole one."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return all(type(x) in (int, float) for x in found) and any(type(x) is float for x in found)


def byte_order(node: Mapping[str, Any]) -> str:
    """The order of bytes that an object states: ">" (endian: "big", littleEndian: false), "<", or ""."""
    for key, value in node.items() if len(node) < 32 else ():  # more are names of tensors
        name = re.sub(r"[^a-z]", "", key.lower()) if len(key) < 20 else ""
        if name in ("littleendian", "bigendian") and type(value) is bool:
            return "<" if (name == "littleendian") is value else ">"
        if name in _ORDER_KEYS and isinstance(value, str):
            said = re.sub(r"[^a-z<>]", "", value.lower())
            return next((order for order, words in _ORDERS.items() if said in words.split()), "")
    return ""


def is_numbered(node: Mapping[str, Any]) -> bool:
    """Whether an object has numbers under numbers, as arrays counted from 1 and sparse ones become in JSON."""
    numbers = {k: x for k, x in node.items() if k not in ("length", "n")} if len(node) > 1 else {}
    return len(numbers) > 1 and all(
        type(x) in (int, float) and _PLACE.fullmatch(k) is not None for k, x in numbers.items()
    )


def are_floats(data: bytes) -> bool:
    """Whether bytes can be floats of 32 or 64 bits, or halves, as weights are: 0, or from 2^-31 to 2^31."""
    kinds = ("<f4", "<f8", ">f4", ">f8") if len(data) % 4 == 0 else ("<f2", ">f2")
    return any(len(data) % int(kind[2]) == 0 and _usual(np.frombuffer(data, kind)) for kind in kinds)


def _usual(values: Any) -> bool:
    with np.errstate(invalid="ignore"):
        sizes = np.abs(values.astype(np.float64))
    return bool(((sizes == 0) | ((sizes >= 2.0**-31) & (sizes <= 2.0**31))).all() and sizes.any())


def wrapped_numbers(node: list[Any]) -> bool:
    """Whether numbers of a list have an object around each: MongoDB's, complex ones, BigInts, with gradients."""
    around = [isinstance(x, dict) and len(x) <= 2 and (set(x) in _WRAPPED or _holds_a_number(x)) for x in node]
    return (
        len(node) > 1 and any(around) and all(a or type(x) in (int, float) for a, x in zip(around, node, strict=True))
    )


def _holds_a_number(node: Mapping[str, Any]) -> bool:
    return set(node) in _HELD and all(type(x) in (int, float) for x in node.values())


def is_unsaved(node: Mapping[str, Any]) -> bool:
    """Whether an object states a shape and a dtype, and nothing in it could be the numbers of a tensor."""
    if sizes(node.get("shape")) is None or not isinstance(node.get("dtype"), str) or "name" in node:
        return False
    return not any(isinstance(x, list | dict | bytes) and x for k, x in node.items() if k != "shape") and not any(
        isinstance(x, str) and len(x) > 20 for x in node.values()
    )


def are_bits(numbers: Numbers, dtype: str | None) -> bool:
    """Whether whole numbers under a float's dtype are the bits of its floats, all of them from 2^-31 to 2^31."""
    if dtype not in _PATTERNS or numbers.ints != "all":
        return False
    values = numbers.values[numbers.values != 0]
    if not values.size or values.min() < 0 or values.max() < 2048:
        return False
    sign, low, high = _PATTERNS[dtype]
    magnitudes = values % sign
    return bool((values < 2 * sign).all() and ((magnitudes >= low) & (magnitudes < high)).all())


def not_by_rows(node: Mapping[str, Any], shape: tuple[int, ...]) -> str | None:
    """How flat numbers lie that do not lie row after row, in words; None where they do."""
    if sum(n > 1 for n in shape) < 2:
        return None
    for key, values in _BY_COLUMNS.items():
        if key in node and node[key] in values and type(node[key]) is type(values[0]):
            return f"{key} {node[key]!r}"
    for key in _STRIDES:
        strides = sizes(node.get(key))
        if strides is not None and len(strides) == len(shape):
            usual = np.cumprod((1, *shape[:0:-1]))[::-1]
            unit = strides[-1] // int(usual[-1])
            if any(n > 1 and s != int(u) * unit for s, u, n in zip(strides, usual, shape, strict=True)):
                return f"{key} {list(strides)}"
    return None
