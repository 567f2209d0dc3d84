"""Numbers as text: the shortest decimal that reads back as the same double, laid out as JavaScript or Python does.

Of a weight in single precision there is a shorter one, that reads back as the same float: 0.1, whose double is
0.10000000149011612.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

__all__ = ["STYLES", "number", "row"]

STYLES = ("js", "python")


def number(value: float, style: str) -> str:
    """One finite double: as `JSON.stringify` ("js"; but -0 is "-0", which it reads as such) or `repr` ("python")."""
    return repr(value) if style == "python" else _js(value)


def _js(value: float) -> str:
    """ECMA-262, Number::toString: decimal from 1e-7 up to 1e21, no ".0"."""
    if value == 0:
        return "-0" if math.copysign(1, value) < 0 else "0"
    sign = "-" if value < 0 else ""
    mantissa, _, power = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    n = len(whole) + int(power or 0) - (len(whole + fraction) - len(digits))  # the decimal point is after n digits
    digits = digits.rstrip("0")
    k = len(digits)
    if k <= n <= 21:
        text = digits + "0" * (n - k)
    elif 0 < n <= 21:
        text = f"{digits[:n]}.{digits[n:]}"
    elif -6 < n <= 0:
        text = "0." + "0" * -n + digits
    else:
        text = digits[0] + ("." + digits[1:] if k > 1 else "") + f"e{'+' if n > 0 else '-'}{abs(n - 1)}"
    return sign + text


def row(values: NDArray[Any], style: str, whole: Any = None) -> bytes:
    """Finite doubles, or floats, separated by commas: each the shortest decimal that reads back as what it is.

    whole: flat bool array, True where a whole number was written without ".0" (Python style), or None.
    """
    size = np.abs(values)
    single = values.dtype == np.float32
    # Where every writer agrees orjson does the work; tiny, huge and flagged numbers are laid out one by one.
    odd = ((size < 1e-4) & (size > 0)) | (size >= (1e12 if single else 1e15))
    if whole is not None:
        odd |= whole
    text = orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
    twice = _rounded_twice(values, text) if single else []
    if style == "js":  # only a whole number ends so
        text = (text + b",").replace(b".0,", b",")[:-1]
    if not odd.any() and not len(twice):
        return text
    items = text.split(b",")
    for i in np.flatnonzero(odd).tolist():
        value = float(items[i])
        is_int = whole is not None and whole[i]
        items[i] = (str(int(value)) if is_int else number(value, style)).encode()
    for i in twice:
        items[i] = number(float(values[i]), style).encode()
    return b",".join(items)


def _rounded_twice(values: NDArray[np.float32], text: bytes) -> Any:
    """Where the decimal becomes another float when it is read as a double first, as JSON's readers do."""
    read = np.array(orjson.loads(b"[%b]" % text), np.float64)
    return np.flatnonzero(read.astype(np.float32) != values)
