"""Small safetensors files: good controls, and malformed ones of one fault each, with what is said of it."""

from __future__ import annotations

import json
import struct
from typing import Any

from llmconv.formats import limits


def entry(begin: int = 0, end: int = 16, dtype: Any = "F32", shape: Any = (4,), **more: Any) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": list(shape) if isinstance(shape, tuple) else shape,
        "data_offsets": [begin, end],
    } | more


def file(header: Any, data: int = 16, length: int | None = None, pad: bytes = b"") -> bytes:
    raw = (header if isinstance(header, bytes) else json.dumps(header).encode()) + pad
    return struct.pack("<Q", len(raw) if length is None else length) + raw + b"\1" * data


def without(item: dict[str, Any], name: str) -> dict[str, Any]:
    return {k: v for k, v in item.items() if k != name}


T = {"t": entry()}
GOOD: dict[str, bytes] = {
    "plain": file(T),
    "padded with spaces": file(T, pad=b"     "),
    "no tensors": file({}, 0),
    "metadata only": file({"__metadata__": {"format": "pt"}}, 0),
    "empty metadata": file({"__metadata__": {}, **T}),
    "scalar": file({"t": entry(0, 4, shape=())}, 4),
    "empty tensor": file({"t": entry(0, 0, shape=(0, 3)), "u": entry()}),
    "two empty tensors in one place": file(
        {"t": entry(16, 16, shape=(0,)), "v": entry(16, 16, shape=(0,)), "u": entry()}
    ),
    "header out of order": file({"u": entry(16, 32), "t": entry()}, 32),
    "escaped name": file(b'{"\\u00e4\\ud83d\\ude00":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
    "empty name": file({"": entry()}),
}

HUGE = 2**64 - 1
BAD: dict[str, tuple[bytes, str]] = {
    "seven bytes": (b"\0" * 7, "is 7 bytes long, expected at least 8"),
    "header length beyond the file": (file(T, length=10_000), "claims a header of 10,000 bytes"),
    "header length of 64 bits": (file(T, length=HUGE), "claims a header of 18,446,744,073,709,551,615 bytes"),
    "header length above the limit": (file(T, length=limits.SAFETENSORS_HEADER_BYTES + 1), "claims a header of"),
    "header length one short": (file(T, length=len(json.dumps(T)) - 1), "is not valid JSON"),
    "header empty": (file(b"", 0), "its header begins with b''"),
    "header is a list": (file(b"[]", 0), "its header begins with b'['"),
    "header begins with a space": (file(b" {}", 0), "its header begins with b' '"),
    "header is not JSON": (file(b"{oops}", 0), "is not valid JSON"),
    "header not UTF-8": (file(b'{"\xff":1}', 0), "is not valid UTF-8 at byte 2"),
    "header with text after it": (file(b"{}x", 0), "is not valid JSON"),
    "header nested too deep": (file(b'{"t":' + b"[" * 100_000, 0), "nests too deep"),
    "header nested beyond the limit": (file(b'{"t":' + b"[" * 70 + b"]" * 70 + b"}", 0), "nests too deep"),
    "number without end": (file(b'{"t":' + b"9" * 10_000 + b"}", 0), "endless number"),
    "NaN": (file(b'{"t":NaN}', 0), "holds NaN"),
    "Infinity": (file(b'{"t":-Infinity}', 0), "holds -Infinity"),
    "name twice": (file(b'{"t":%b,"t":%b}' % ((json.dumps(entry()).encode(),) * 2)), "key 't' is there twice"),
    "field twice": (
        file(b'{"t":{"dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
        "'dtype' is there twice",
    ),
    "metadata key twice": (file(b'{"__metadata__":{"a":"b","a":"b"}}', 0), "key 'a' is there twice"),
    "half a character in a name": (file(b'{"\\ud800":%b}' % json.dumps(entry()).encode()), "no valid Unicode"),
    "half a character in metadata": (file(b'{"__metadata__":{"a":"\\udc00"}}', 0), "no valid Unicode"),
    "metadata of numbers": (file({"__metadata__": {"n": 1}}, 0), "not a map of strings to strings"),
    "metadata is a list": (file({"__metadata__": []}, 0), "not a map of strings to strings"),
    "metadata is null": (file({"__metadata__": None}, 0), "not a map of strings to strings"),
    "entry is a list": (file({"t": [1]}), "tensor 't' is not described by exactly"),
    "no dtype": (file({"t": without(entry(), "dtype")}), "tensor 't' is not described by exactly"),
    "no shape": (file({"t": without(entry(), "shape")}), "tensor 't' is not described by exactly"),
    "no offsets": (file({"t": without(entry(), "data_offsets")}), "tensor 't' is not described by exactly"),
    "one field more": (file({"t": entry(stride=[1])}), "tensor 't' is not described by exactly"),
    "unknown dtype": (file({"t": entry(dtype="F12")}), "tensor 't' has dtype 'F12', expected one of"),
    "dtype in small letters": (file({"t": entry(dtype="f32")}), "tensor 't' has dtype 'f32'"),
    "dtype is a list": (file({"t": entry(dtype=["F32"])}), "tensor 't' has dtype ['F32']"),
    "negative dimension": (file({"t": entry(shape=(-4,))}), "tensor 't' has a bad shape"),
    "fractional dimension": (file({"t": entry(shape=(4.0,))}), "tensor 't' has a bad shape"),
    "boolean dimension": (file({"t": entry(0, 4, shape=(True,))}, 4), "tensor 't' has a bad shape"),
    "dimension of 64 bits": (file({"t": entry(shape=(2**64,))}), "tensor 't' has a bad shape"),
    "shape is a number": (file({"t": entry(shape=4)}), "tensor 't' has a bad shape"),
    "too many dimensions": (file({"t": entry(0, 4, shape=(1,) * 33)}, 4), "tensor 't' has a bad shape"),
    "shape that wraps to the right size": (file({"t": entry(shape=(2**62, 2**62, 4))}), "more elements"),
    "zero hides a huge shape": (file({"t": entry(0, 0, shape=(0, 2**62, 2**62))}, 0), "more elements"),
    "rows without end, all empty": (file({"t": entry(0, 0, shape=(2**40, 0))}, 0), "more elements"),
    "size too small for the shape": (file({"t": entry(shape=(5,))}), "takes 16 bytes, expected 20 for F32 [5]"),
    "size too big for the shape": (file({"t": entry(shape=(3,))}), "takes 16 bytes, expected 12"),
    "half a byte": (file({"t": entry(0, 1, "F4", (3,))}, 1), "rows of 3 F4 elements, which are not whole bytes"),
    "negative offset": (file({"t": entry(-16, 0)}), "bad data_offsets"),
    "offsets turned round": (file({"t": entry(16, 0)}), "takes -16 bytes, expected 16"),
    "offset of 64 bits": (file({"t": entry(2**64, 2**64 + 16)}), "bad data_offsets"),
    "fractional offset": (file({"t": entry(0.0, 16.0)}), "bad data_offsets"),  # type: ignore[arg-type]
    "three offsets": (file({"t": entry() | {"data_offsets": [0, 8, 16]}}), "bad data_offsets"),
    "hole at the start": (file({"t": entry(16, 32)}, 32), "begins at 16, expected 0: it leaves a hole"),
    "hole between": (file({"t": entry(), "u": entry(17, 33)}, 33), "tensor 'u' begins at 17, expected 16"),
    "tensors share bytes": (
        file({"t": entry(), "u": entry(8, 24)}, 24),
        "'u' begins at 8, expected 16: it shares bytes",
    ),
    "same bytes twice": (file({"t": entry(), "u": entry()}), "shares bytes"),
    "data cut by one byte": (file(T, 15), "expected 86 by its header"),
    "data absent": (file(T, 0), "by its header"),
    "bytes after the last tensor": (file(T, 17), "by its header"),
    "bytes after no tensor": (file({}, 1), "by its header"),
    "name too long": (file({"t" * 70_000: entry()}), "has a name longer than 65,535 bytes"),
    "stored type unknown": (file({"__metadata__": {"llmconv.types": '{"t":["Q99",32]}'}, **T}), "bad entry for 't'"),
    "stored type of another size": (
        file({"__metadata__": {"llmconv.types": '{"t":["Q4_0",32]}'}, **T}),
        "which is not Q4_0 [32] as its metadata says",
    ),
    "stored types are no JSON": (file({"__metadata__": {"llmconv.types": "x"}, **T}), "is not valid JSON"),
    "side file outside": (file({"__metadata__": {"llmconv.file.../../x": "y"}, **T}), "expected a plain file name"),
    "side file not base64": (file({"__metadata__": {"llmconv.file64.x": "?"}, **T}), "is not base64"),
}
