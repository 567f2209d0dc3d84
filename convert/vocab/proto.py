"""sentencepiece's `.model` file: a protocol buffer, read and written here in the few fields that matter.

Layout: sentencepiece_model.proto.
ModelProto { repeated SentencePiece pieces = 1; TrainerSpec trainer_spec = 2; NormalizerSpec normalizer_spec = 3; }
SentencePiece { string piece = 1; float score = 2; Type type = 3 [default NORMAL]; }
TrainerSpec { ModelType model_type = 3; bool treat_whitespace_as_suffix = 24; bool byte_fallback = 35;
  int32 unk_id = 40, bos_id = 41, eos_id = 42, pad_id = 43; }
NormalizerSpec { bytes precompiled_charsmap = 2; bool add_dummy_prefix = 3; bool remove_extra_whitespaces = 4;
bool escape_whitespaces = 5; }
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmconv.errors import BadFile

__all__ = ["Model", "parse", "serialise"]

_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
UNIGRAM_MODEL, BPE_MODEL = 1, 2
_SCORE = struct.Struct("<f")


@dataclass
class Model:
    """What a sentencepiece model holds.  `rest` is everything but the pieces, serialised, in file order."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    rest: bytes = b""
    model_type: int = UNIGRAM_MODEL
    byte_fallback: bool = False
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    treat_whitespace_as_suffix: bool = False
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
    raise BadFile("sentencepiece model: a number is cut off or too long; the file is damaged")


def _fields(data: memoryview) -> Iterator[tuple[int, Any, int]]:
    """(field number, value, offset after it) of a message; every length checked against the bytes there."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value, at
            continue
        if kind == _LEN:
            size, at = _varint(data, at)
        elif kind in (_I32, _I64):
            size = 4 if kind == _I32 else 8
        else:
            raise BadFile(f"sentencepiece model: wire type {kind} in field {number}, expected 0, 1, 2 or 5")
        if number == 0 or size > len(data) - at:
            raise BadFile(f"sentencepiece model: field {number} wants {size} bytes, found {len(data) - at}")
        yield number, data[at : at + size], at + size
        at += size


def _expect(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, memoryview) and what == "score" and len(value) != 4):
        raise BadFile(f"sentencepiece model: {what} has the wrong wire type; the file is damaged")
    return value


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _piece(data: memoryview, index: int) -> tuple[str, float, int]:
    """A piece's text, score and type, whatever fields it has in whatever order."""
    text, score, type = "", 0.0, 1
    for number, value, _ in _fields(data):
        if number == 1:
            try:
                text = bytes(_expect(value, memoryview, "a piece's text")).decode("utf-8")
            except UnicodeDecodeError:
                raise BadFile(f"sentencepiece model: piece {index} is not valid UTF-8") from None
        elif number == 2:
            score = _SCORE.unpack(_expect(value, memoryview, "score"))[0]
        elif number == 3:
            type = _expect(value, int, "a piece's type")
    if not 1 <= type <= 6:
        raise BadFile(f"sentencepiece model: piece {text!r} has type {type}, expected 1 to 6")
    return text, score, type


def _usual_piece(data: bytes, at: int) -> tuple[tuple[str, float, int], int] | None:
    """The piece at a place and where it ends, of those that every writer writes: short, with a text, a score and
    perhaps a type, in this order; None for anything else, however it is wrong.  (A model has hundreds of thousands.)
    """
    try:
        size, length = data[at + 1], data[at + 3]
        end, behind = at + 2 + size, at + 4 + length
        if data[at] != 10 or data[at + 2] != 10 or size > 127 or data[behind] != 21 or end > len(data):
            return None
        type = 1 if end == behind + 5 else data[behind + 6]
        if end != behind + 5 and (end != behind + 7 or data[behind + 5] != 24 or not 1 <= type <= 6):
            return None
        return (data[at + 4 : behind].decode("utf-8"), _SCORE.unpack_from(data, behind + 1)[0], type), end
    except (IndexError, UnicodeDecodeError):
        return None


def parse(data: bytes) -> Model:
    """Read a sentencepiece model; `BadFile` when it isn't one."""
    model, rest, at = Model(), [], 0
    view = memoryview(data)
    while at < len(data):
        if (usual := _usual_piece(data, at)) is not None:
            piece, at = usual
            model.pieces.append(piece)
            continue
        number, value, size = next(_fields(view[at:]))
        if number == 1:
            model.pieces.append(_piece(_expect(value, memoryview, "a piece"), len(model.pieces)))
        else:
            rest.append(data[at : at + size])
            if number in (2, 3) and isinstance(value, memoryview):
                _spec(model, number, value)
        at += size
    if not model.pieces:
        raise BadFile("sentencepiece model: holds no pieces; it is no sentencepiece model or empty")
    model.rest = b"".join(rest)
    return model


def _spec(model: Model, number: int, data: memoryview) -> None:
    numbers = {
        (2, 3): "model_type",
        (2, 24): "treat_whitespace_as_suffix",
        (2, 35): "byte_fallback",
        (2, 40): "unk_id",
        (2, 41): "bos_id",
        (2, 42): "eos_id",
        (2, 43): "pad_id",
        (3, 3): "add_dummy_prefix",
        (3, 4): "remove_extra_whitespaces",
        (3, 5): "escape_whitespaces",
    }
    for inner, value, _ in _fields(data):
        name = numbers.get((number, inner))
        if name:
            number_value = _signed(_expect(value, int, name))
            setattr(model, name, bool(number_value) if isinstance(getattr(model, name), bool) else number_value)
        elif (number, inner) == (3, 2):
            model.charsmap = bytes(_expect(value, memoryview, "the character map"))


def _number(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def _block(number: int, data: bytes) -> bytes:
    return _number(number << 3 | _LEN) + _number(len(data)) + data


def serialise(pieces: Iterable[tuple[str, float, int]], rest: bytes) -> bytes:
    """A sentencepiece model as its trainer writes it: pieces first (a normal piece's type left out), then the rest."""
    out: list[bytes] = []
    float32 = struct.Struct("<f").pack
    kinds = {type: b"" if type == 1 else b"\x18" + _number(type) for type in range(8)}
    heads: dict[tuple[int, int], bytes] = {}  # of a length of text and of type: sizes
    for text, score, type in pieces:
        data, kind = text.encode("utf-8"), kinds[type]
        n = len(data), len(kind)
        head = heads.get(n)
        if head is None:
            inner = b"\x0a" + _number(n[0])
            head = heads[n] = b"\x0a" + _number(len(inner) + n[0] + 5 + n[1]) + inner
        out += (head, data, b"\x15", float32(score), kind)
    return b"".join(out) + rest


def spec(
    ids: Sequence[int], *, byte_fallback: bool, add_dummy_prefix: bool, remove_extra_whitespaces: bool, charsmap: bytes
) -> bytes:
    """TrainerSpec and NormalizerSpec of a BPE model that is rebuilt from GGUF.

    ids: of unk, bos, eos and pad, -1 for none.   charsmap: sentencepiece's compiled map of characters, b"" for none.
    """

    def number(field: int, value: int) -> bytes:
        return _number(field << 3 | _VARINT) + _number(value)

    trainer = number(3, BPE_MODEL) + number(35, byte_fallback)
    trainer += b"".join(number(40 + i, id) for i, id in enumerate(ids))
    normalizer = _block(1, b"nmt_nfkc" if charsmap else b"identity") + (_block(2, charsmap) if charsmap else b"")
    normalizer += number(3, add_dummy_prefix) + number(4, remove_extra_whitespaces) + number(5, 1)
    return _block(2, trainer) + _block(3, normalizer)
