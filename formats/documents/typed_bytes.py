"""Numbers that a document keeps as bytes (base64 text, a Node Buffer, a list of bytes), and the names of their types.

`dtype_named` knows what writers call a type: numpy's and PyTorch's names, JavaScript's typed arrays, Rust's, array's
one-letter codes, safetensors' and TensorFlow's.  Bytes are little-endian unless the name says otherwise (">f4").
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from llmconv.errors import Unsupported, cut, shown

__all__ = ["BASE64", "decode", "dtype_named", "encode", "from_text", "in_order", "raw_name", "raw_type", "to_text"]

_WORDS: dict[str, str] = {
    "float": "f4",
    "single": "f4",
    "double": "f8",
    "half": "f2",
    "long": "i8",
    "int": "i4",
    "short": "i2",
    "char": "i1",
    "byte": "u1",
    "bool": "u1",
    "boolean": "u1",
    "uint8clamped": "u1",
    "f": "f4",
    "d": "f8",
    "e": "f2",
    "b": "i1",
    "h": "i2",
    "i": "i4",
    "q": "i8",
}
_NUMPY = {
    "f2",
    "f4",
    "f8",
    "i1",
    "i2",
    "i4",
    "u1",
    "u2",
    "u4",
}  # i8 and u8 are Rust's bytes, unless numpy's "<" is there
_LETTER = {"float": "f", "f": "f", "int": "i", "i": "i", "bigint": "i", "uint": "u", "u": "u", "biguint": "u"}
_BITS = {("f", 16), ("f", 32), ("f", 64), *((k, n) for k in "iu" for n in (8, 16, 32, 64))}


def dtype_named(name: Any) -> str | None:
    """What we call the type that a writer calls `name`: "<f4", ">f8", "|i1", "bfloat16"; None when it names none."""
    if not isinstance(name, str) or len(name) > 40:
        return None
    text = name.strip().strip("'\"")
    order = ">" if text[:1] == ">" else "<"
    if re.fullmatch(r"[<>|=][fiu][1248]", text):
        return raw_name(order + text[1:])
    text = text.lower().removeprefix("dt_").rpartition(".")[2].removesuffix("array").removesuffix("_t")
    if text in ("bfloat16", "bf16"):
        return "bfloat16"
    if text in _WORDS or text in _NUMPY:
        return raw_name(order + _WORDS.get(text, text))
    found = re.fullmatch(r"([a-z]+?)(8|16|32|64)", text)
    kind = _LETTER.get(found[1]) if found else None
    if found is None or kind is None or (kind, int(found[2])) not in _BITS:
        return None
    return raw_name(f"{order}{kind}{int(found[2]) // 8}")


def raw_name(code: str) -> str:
    """A numpy type code as we keep it: without a byte order where there is one byte."""
    return "|" + code[1:] if code[2:] == "1" else code


def in_order(raw: str | None, order: str) -> str | None:
    """A type's name with that order of bytes, where one is stated beside it; None for one that is read in no other."""
    if raw == "bfloat16" and order == ">":
        return None
    return order + raw[1:] if raw is not None and order and raw[0] == "<" else raw


def raw_type(raw: str) -> np.dtype[Any]:
    """The numpy type of what `dtype_named` gives; `ValueError` for anything else (a kept document is not trusted)."""
    if raw == "bfloat16":
        found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return found
    if not re.fullmatch(r"\|[iu]1|[<>](?:[fiu][248])", raw):
        raise ValueError(f"unknown type {raw[:20]!r}")
    return np.dtype(raw)


def decode(data: bytes, raw: str) -> NDArray[np.float64] | None:
    """The numbers in the bytes, as doubles; None when they are not whole numbers of items, or no doubles hold them."""
    dtype = raw_type(raw)
    if not data or len(data) % dtype.itemsize:
        return None
    values = np.frombuffer(data, dtype)
    with np.errstate(invalid="ignore"):
        doubles = values.astype(np.float64)
        exact = dtype.kind == "V" or dtype.kind == "f" or bool((doubles.astype(dtype) == values).all())
    return doubles if exact and (dtype.kind not in "iu" or bool((np.abs(doubles) <= 1 << 53).all())) else None


def encode(values: NDArray[np.float64], raw: str, name: str) -> bytes:
    """Doubles as the bytes of that type, rounded to nearest; `Unsupported` for values that it can't hold."""
    dtype, flat = raw_type(raw), values.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        out = flat.astype(dtype)
        back = out.astype(np.float64)
    wrong = back != flat if dtype.kind in "iu" else np.isinf(back) & np.isfinite(flat)
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        raise Unsupported(
            f"tensor {cut(name)} is {flat[i]:g} at {shown([i])}, which {raw.lstrip('<|')}, the type its document "
            "stores it in, can't hold; use --layout named"
        )
    return out.tobytes()


# Base64, in the ways that programs write it: form -> (alphabet's last two, padded).
BASE64 = {
    "base64": (b"+/", True),
    "base64 bare": (b"+/", False),
    "base64url": (b"-_", True),
    "base64url bare": (b"-_", False),
}
_PREFIX = re.compile(r"data:[\w/+.-]*(?:;[\w=.-]+)*;base64,")


def from_text(text: str) -> tuple[bytes, str] | None:
    """(bytes, form) of a text that is base64 and comes back by `to_text` letter by letter; None when it is not."""
    prefix = found[0] if (found := _PREFIX.match(text[:200])) else ""
    body, lines = _unbroken(text[len(prefix) :])
    for form, (last, padded) in BASE64.items():
        whole = body if padded else body + "=" * (-len(body) % 4)
        try:
            data = base64.b64decode(whole.encode("ascii"), altchars=last, validate=True)
            form = f"{form}{f' by {lines}' if lines else ''}{f' {prefix}' if prefix else ''}"
            if data and to_text(data, form) == text:
                return data, form
        except (ValueError, binascii.Error):
            continue
    return None


def to_text(data: bytes, form: str) -> str:
    """The way back of `from_text`; `ValueError` for a form that it does not give."""
    form, mark, rest = form.partition(" data:")
    form, _, lines = form.partition(" by ")
    last, padded = BASE64[form]
    text = base64.b64encode(data, altchars=last).decode()
    return mark.strip() + rest + _broken(text if padded else text.rstrip("="), lines)


def _unbroken(text: str) -> tuple[str, str]:
    """Text without the ends of its lines, and how it was broken: "76", "76r" by \\r\\n, "76." with one at the end."""
    if "\n" not in text:
        return text, ""
    end = "\r\n" if "\r\n" in text else "\n"
    lines = text.removesuffix(end).split(end)
    return "".join(lines), f"{len(lines[0])}{'r' * (len(end) - 1)}{'.' * text.endswith(end)}"


def _broken(text: str, how: str) -> str:
    """The way back of `_unbroken`; `ValueError` for what it does not give."""
    if not how:
        return text
    found = re.fullmatch(r"([1-9]\d{0,6})(r?)(\.?)", how)
    if found is None:
        raise ValueError(f"unknown lines {how[:20]!r}")
    width, end = int(found[1]), "\r\n" if found[2] else "\n"
    return end.join(text[i : i + width] for i in range(0, len(text), width)) + (end if found[3] else "")
