"""GGUF's metadata: values of thirteen types, and arrays of them, to Python and back.

| GGUF | Python, read | also written from |
|---|---|---|
| UINT8 … FLOAT64 | a numpy scalar of that type | int: uint32 if it fits, else int32, uint64, int64; float: float32 |
| BOOL | bool | np.bool_ |
| STRING | str | |
| array of numbers or BOOL | a numpy array of that type | a sequence of int (int32 if they fit), float (float32), bool |
| array of STRING | `Strings`: a sequence of str, decoded when asked for | a sequence of str; an empty one |
| array of arrays | `Arrays`: a tuple of the above | a sequence of sequences |

Layout: the GGUF specification (ggml/docs/gguf.md).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from llmconv.errors import BadFile, Unsupported, at
from llmconv.formats import limits
from llmconv.formats.source import Source
from llmconv.quant.block import Bytes

__all__ = ["SCALARS", "Arrays", "Cursor", "Strings", "encode_string", "encode_value"]

BOOL, STRING, ARRAY = 7, 8, 9
NUMBERS: dict[int, str] = {0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 6: "f4", 10: "u8", 11: "i8", 12: "f8"}
"""GGUF's value type -> numpy's code."""
SCALARS: dict[str, Any] = {
    "u8": np.uint8, "i8": np.int8, "u16": np.uint16, "i16": np.int16, "u32": np.uint32, "i32": np.int32,
    "u64": np.uint64, "i64": np.int64, "f32": np.float32, "f64": np.float64,
}  # fmt: skip
"""The types of numbers, by the names that people write and documents keep."""
_CODES = {np.dtype(code): number for number, code in NUMBERS.items()} | {np.dtype(np.bool_): BOOL}
_FIRST_READ = 1 << 18  # enough for a part of a split model, which holds no vocabulary; then eight times more
_FEW = 512  # strings: fewer than this in a window, and stepping is as fast
_WINDOW = 1 << 18  # bytes looked at together when strings are skipped: the second-level cache


class Strings(Sequence[str]):
    """A string array left in the file's bytes; each access decodes what is asked for.

    raw: bytes of the array's elements, each an 8-byte length and its text, known to be UTF-8.
    starts: (n,) int64, where each text begins in `raw`; lengths: (n,) int64, its bytes.
    """

    def __init__(self, raw: Bytes, starts: NDArray[np.int64], lengths: NDArray[np.int64], big: bool):
        self.raw, self.starts, self.lengths, self.big = raw, starts, lengths, big

    def __len__(self) -> int:
        return len(self.starts)

    def encoded(self, index: int) -> bytes:
        start = int(self.starts[index])
        return self.raw[start : start + int(self.lengths[index])].tobytes()

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.encoded(index).decode()

    def __iter__(self) -> Any:
        raw = self.raw.tobytes()
        for start, length in zip(self.starts.tolist(), self.lengths.tolist(), strict=True):
            yield raw[start : start + length].decode()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Strings) and self.big == other.big:
            return np.array_equal(self.raw, other.raw)
        return isinstance(other, Sequence) and not isinstance(other, str) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self):,} strings>"


class Arrays(tuple[Any, ...]):
    """An array of arrays, each one of the types an array can be read as."""


class Cursor:
    """A position in a GGUF's header, which is read in growing pieces; every step is checked against the file's end."""

    def __init__(self, source: Source):
        self.source, self.big, self.pos = source, False, 0
        self.count = "u8"
        """Code of lengths and counts; u4 in version 1."""
        self._nested = self._n_strings = 0
        self._stepping = False
        self._limit = min(source.size, limits.GGUF_METADATA_BYTES)
        self._load(min(self._limit, _FIRST_READ))

    def _load(self, size: int) -> None:
        self.data = self.source.read(0, size)
        self._view = self.data.data

    def need(self, nbytes: int, what: str) -> int:
        """Make sure that `nbytes` more bytes are there and in memory; the position after them."""
        end = self.pos + nbytes
        if end > len(self.data):
            if end > self._limit:
                self._refuse(nbytes, what)
            self._load(min(self._limit, max(end, 8 * len(self.data))))
        return end

    def _refuse(self, nbytes: int, what: str) -> None:
        if self.pos + nbytes > self.source.size:
            raise BadFile(
                f"{at(self.source.path, what)} needs {nbytes:,} bytes at {self.pos:,} but the file ends at "
                f"{self.source.size:,}; it is cut short or damaged, fetch it again"
            )
        raise BadFile(
            f"{at(self.source.path, what)} ends {self.pos + nbytes:,} bytes into the file, "
            f"expected all metadata within {limits.GGUF_METADATA_BYTES:,}; it is damaged or no model"
        )

    def number(self, code: str, what: str) -> int:
        """An unsigned integer of numpy's `code`: u2, u4 or u8."""
        size = int(code[1])
        end = self.need(size, what)
        value = int.from_bytes(self._view[self.pos : end], "big" if self.big else "little")
        self.pos = end
        return value

    def text(self, what: str, limit: int = limits.GGUF_STRING_BYTES) -> str:
        length = self.number(self.count, f"{what}'s length")
        if length > limit:
            raise BadFile(f"{at(self.source.path, what)} is {length:,} bytes long, expected at most {limit:,}")
        end = self.need(length, what)
        raw = bytes(self._view[self.pos : end])
        self.pos = end
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise BadFile(
                f"{at(self.source.path, what)} is not valid UTF-8 ({raw[:20]!r}); the file is damaged"
            ) from None

    def value(self, what: str) -> Any:
        return self._value(self.number("u4", f"{what}'s type"), what, 0)

    def _value(self, kind: int, what: str, depth: int) -> Any:
        if kind in NUMBERS:
            dtype = np.dtype(NUMBERS[kind])
            return self._array(dtype, 1, what)[0]
        if kind == BOOL:
            return bool(self._bools(1, what)[0])
        if kind == STRING:
            return self.text(what)
        if kind == ARRAY:
            return self._items(what, depth)
        raise BadFile(f"{at(self.source.path, what)} has value type {kind}, expected 0 to 12; the file is damaged")

    def _items(self, what: str, depth: int) -> Any:
        kind, count = self.number("u4", f"{what}'s item type"), self.number(self.count, f"{what}'s item count")
        if kind in NUMBERS:
            return self._array(np.dtype(NUMBERS[kind]), count, what)
        if kind == BOOL:
            return self._bools(count, what)
        if kind == STRING:
            return self._strings(count, what)
        if kind != ARRAY:
            raise BadFile(f"{at(self.source.path, what)} has item type {kind}, expected 0 to 12; the file is damaged")
        self._nested += count
        if depth >= limits.GGUF_ARRAY_DEPTH or self._nested > limits.GGUF_NESTED_ARRAYS:
            raise BadFile(
                f"{at(self.source.path, what)} nests arrays too deep or too often, expected at most "
                f"{limits.GGUF_ARRAY_DEPTH} levels and {limits.GGUF_NESTED_ARRAYS:,} inner arrays"
            )
        self.need(12 * count, what)  # what that many empty arrays take
        return Arrays(self._items(f"{what}[{i}]", depth + 1) for i in range(count))

    def _array(self, dtype: np.dtype[Any], count: int, what: str) -> NDArray[Any]:
        end = self.need(count * dtype.itemsize, what)
        stored = self.data[self.pos : end].view(dtype.newbyteorder(">" if self.big else "<"))
        self.pos = end
        native = stored.astype(dtype, copy=False)
        native.flags.writeable = False
        return native

    def _bools(self, count: int, what: str) -> NDArray[np.bool_]:
        raw = self._array(np.dtype(np.uint8), count, what)
        if count and int(raw.max()) > 1:
            raise BadFile(f"{at(self.source.path, what)} has a boolean of {int(raw.max())}, expected 0 or 1")
        return raw.view(np.bool_)

    def _strings(self, count: int, what: str) -> Sequence[str]:
        self._n_strings += count
        if self._n_strings > limits.GGUF_STRINGS and 8 * count <= self.source.size:
            raise BadFile(
                f"{at(self.source.path, what)} holds {count:,} strings, expected at most {limits.GGUF_STRINGS:,} "
                "in all arrays together; it is damaged or no model"
            )
        self.need(int(self.count[1]) * count, what)  # what that many empty strings take
        if self.count == "u4":
            return [self.text(f"{what}[{i}]") for i in range(count)]
        begin, positions, lengths, found = self.pos, [], [], 0
        while found < count:
            self.need(8, what)
            at_, length = self._some_strings(count - found, what)
            self._check_text(at_, length, what, found)
            positions.append(at_)
            lengths.append(length)
            found += len(at_)
        starts = np.concatenate(positions) + (8 - begin) if positions else np.empty(0, np.int64)
        raw = self.data[begin : self.pos]
        raw.flags.writeable = False
        return Strings(raw, starts, np.concatenate(lengths) if lengths else starts, self.big)

    def _check_text(self, places: NDArray[np.int64], lengths: NDArray[np.int64], what: str, number: int) -> None:
        """Refuse strings that are not UTF-8: all at once, with zeros for their lengths, which no character spans."""
        begin = int(places[0])
        texts = self.data[begin : self.pos].copy()
        used = -(-int(lengths.max()).bit_length() // 8)  # bytes of a length that aren't zero already
        for i in range(8 - used, 8) if self.big else range(used):
            texts[places + (i - begin)] = 0
        try:
            str(texts.data, "utf-8")
            return
        except UnicodeDecodeError:
            pass
        for i, (place, length) in enumerate(zip(places.tolist(), lengths.tolist(), strict=True)):
            raw = self.data[place + 8 : place + 8 + length].tobytes()
            try:
                raw.decode()
            except UnicodeDecodeError:
                raise BadFile(
                    f"{at(self.source.path, what)}[{number + i}] is not valid UTF-8 ({raw[:20]!r}); the file is damaged"
                ) from None

    def _some_strings(self, count: int, what: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions and lengths of the next strings, at least one and at most `count`; moves past them."""
        if self._stepping:
            self._stepping = False
        else:
            fast = self._short_strings(count)
            if fast is not None and len(fast[0]) > _FEW:
                return fast
            self._stepping = True  # looking at windows doesn't pay here: step for a while
            if fast is not None:
                return fast
        positions, lengths, unpack = [], [], struct.Struct(">Q" if self.big else "<Q").unpack_from
        view, pos, loaded = self._view, self.pos, len(self.data)
        for _ in range(min(count, 2 * _FEW)):
            if pos + 8 > loaded:
                break
            (length,) = unpack(view, pos)
            if pos + 8 + length > loaded:
                break
            positions.append(pos)
            lengths.append(length)
            pos += 8 + length
        if not positions:  # past what is in memory: read on, or refuse
            length = self.number("u8", what)
            positions, lengths, pos = [self.pos - 8], [length], self.need(length, what)
        self.pos = pos
        return np.array(positions, np.int64), np.array(lengths, np.int64)

    def _short_strings(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """As many strings of 1 to 255 bytes as follow here, found without stepping from one to the next.

        Their lengths are the only places where an 8-byte number is that small (unless a text has seven zero
        bytes in a row), so all such places of a window are found by eight vector comparisons, and each is
        checked to lie where the one before it ends.
        """
        window = self.data[self.pos : self.pos + _WINDOW]
        order = ">u8" if self.big else "<u8"
        hits = []
        for shift in range(8):
            words = window[shift : shift + (len(window) - shift) // 8 * 8].view(order)
            hits.append(np.flatnonzero(words - np.uint64(1) < np.uint64(255)) * 8 + shift)
        places = np.sort(np.concatenate(hits))
        if not len(places) or places[0] != 0:
            return None
        sizes = window[places + (7 if self.big else 0)].astype(np.int64)
        ends = places + 8 + sizes
        broken = np.flatnonzero(ends[:-1] != places[1:])
        n = min(count, int(broken[0]) + 1 if len(broken) else len(places))
        if self.pos + int(ends[n - 1]) > len(self.data):
            n -= 1  # runs past what is in memory: stepping reads on, or refuses
        if n == 0:
            return None
        places, sizes = places[:n].astype(np.int64) + self.pos, sizes[:n]
        self.pos = int(places[-1]) + 8 + int(sizes[-1])
        return places, sizes


def encode_string(text: str | bytes, big: bool) -> bytes:
    try:
        raw = text.encode() if isinstance(text, str) else text
    except UnicodeEncodeError:
        raise Unsupported(f"{text[:40]!r} is no valid Unicode text, which GGUF needs; change or leave it out") from None
    return struct.pack(">Q" if big else "<Q", len(raw)) + raw


def _number(value: Any) -> np.generic | None:
    """A numpy scalar that keeps the value, or None when it is no number GGUF has."""
    if isinstance(value, np.generic):
        return value if value.dtype in _CODES else None
    if isinstance(value, float):
        return np.float32(value)
    if isinstance(value, int):
        for kind in (np.uint32, np.int32, np.uint64, np.int64):
            if np.iinfo(kind).min <= value <= np.iinfo(kind).max:
                return kind(value)
    return None


def encode_value(value: Any, what: str, big: bool = False) -> bytes:
    """A metadata value with its type in front.  `Unsupported`, beginning with `what`, when GGUF has no such value."""
    order: Literal["<", ">"] = ">" if big else "<"
    if isinstance(value, str):
        return struct.pack(f"{order}I", STRING) + encode_string(value, big)
    if isinstance(value, bool | np.bool_):
        return struct.pack(f"{order}IB", BOOL, bool(value))
    if isinstance(value, np.ndarray | Sequence) and not isinstance(value, bytes):
        return struct.pack(f"{order}I", ARRAY) + _encode_items(value, what, big)
    number = _number(value)
    if number is None:
        raise Unsupported(f"{what}: GGUF can't hold {type(value).__name__} {str(value)[:40]!r}; leave the key out")
    stored: bytes = (
        np.asarray(number).astype(number.dtype.newbyteorder(order)).tobytes()
    )  # not the scalar: it stays native
    return struct.pack(f"{order}I", _CODES[number.dtype]) + stored


def _encode_items(items: Any, what: str, big: bool) -> bytes:
    """An array: item type, count, items."""
    order: Literal["<", ">"] = ">" if big else "<"

    def head(kind: int, count: int) -> bytes:
        return struct.pack(f"{order}IQ", kind, count)

    if isinstance(items, Strings) and items.big == big:
        return head(STRING, len(items)) + items.raw.tobytes()
    if isinstance(items, np.ndarray) and items.ndim == 1 and items.dtype.newbyteorder("=") in _CODES:
        stored = items.astype(items.dtype.newbyteorder(order), copy=False)
        return head(_CODES[items.dtype.newbyteorder("=")], len(items)) + stored.tobytes()
    if isinstance(items, np.ndarray) and items.ndim > 1:
        items = Arrays(items)
    if isinstance(items, np.ndarray):
        raise Unsupported(f"{what}: GGUF can't hold an array of {items.dtype}; leave the key out")
    if isinstance(items, Arrays) or (len(items) and all(_is_array(x) for x in items)):
        return head(ARRAY, len(items)) + b"".join(_encode_items(x, what, big) for x in items)
    if all(isinstance(x, str) for x in items):
        return head(STRING, len(items)) + b"".join(encode_string(x, big) for x in items)
    return _encode_items(_as_array(items, what), what, big)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | Sequence) and not isinstance(value, str | bytes)


def _as_array(items: Sequence[Any], what: str) -> NDArray[Any]:
    """Python numbers of one kind as the array that holds them (int32 when it can, as llama.cpp's own arrays)."""
    kinds = {type(x) for x in items}
    if kinds == {bool} or kinds == {np.bool_}:
        return np.array(items, np.bool_)
    if len(kinds) == 1 and issubclass(next(iter(kinds)), np.generic):
        return np.array(items)
    if kinds <= {int, float} and float in kinds:
        return np.array(items, np.float32)
    if kinds == {int}:
        for kind in (np.int32, np.uint32, np.int64, np.uint64):
            if np.iinfo(kind).min <= min(items) and max(items) <= np.iinfo(kind).max:
                return np.array(items, kind)
    found = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise Unsupported(f"{what}: GGUF can't hold an array of {found}; its items must be of one kind")
