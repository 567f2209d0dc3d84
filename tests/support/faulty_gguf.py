"""Small GGUF files: good controls, and malformed ones of one fault each, with what is said of it."""

from __future__ import annotations

import struct


def text(value: str | bytes, length: int | None = None) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def key(name: str | bytes, kind: int, raw: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + raw


def array(kind: int, count: int, raw: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + raw


def tensor(name: str | bytes = "t", dims: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def file(
    keys: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: int = 128,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    keys = [key("general.architecture", 8, text("x"))] if keys is None else keys
    tensors = [tensor()] if tensors is None else tensors
    counts = len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys
    raw = magic + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return raw + b"\0" * (-len(raw) % alignment) + b"\1" * data


U32 = struct.Struct("<I").pack
BIG_KEY = key("general.architecture", 8, text("x"))

GOOD: dict[str, bytes] = {
    "plain": file(),
    "version 2": file(version=2),
    "no tensors": file(tensors=[], data=0),
    "no keys": file(keys=[]),
    "scalar": file(tensors=[tensor(dims=())], data=32),
    "empty tensor": file(tensors=[tensor(dims=(0, 4)), tensor("u")]),
    "last tensor without padding": file(tensors=[tensor(dims=(3,))], data=12),
    "last tensor with padding": file(tensors=[tensor(dims=(3,))], data=32),
    "a hole between tensors": file(tensors=[tensor(), tensor("u", offset=192)], data=320),
    "tensors out of order": file(tensors=[tensor(offset=128), tensor("u", offset=0)], data=256),
    "alignment 64": file(keys=[key("general.alignment", 4, U32(64))], alignment=64),
    "quantized": file(tensors=[tensor(kind=2)], data=18),
    "empty array": file(keys=[key("a", 9, array(8, 0)), key("b", 9, array(4, 0)), key("c", 9, array(9, 0))]),
}

# fault -> (file, what the sentence says)
BAD: dict[str, tuple[bytes, str]] = {
    "magic": (file(magic=b"GGUX"), "does not begin with 'GGUF'"),
    "only the magic": (b"GGUF", "the version needs 4 bytes"),
    "cut in the counts": (file()[:14], "needs 8 bytes"),
    "version 0": (file(version=0), "is GGUF version 0"),
    "version 2 called version 1": (file(version=1), "dimensions, expected"),
    "version 4": (file(version=4), "is GGUF version 4"),
    "version of no byte order": (file(version=0x00030003), "is GGUF version"),
    "key count beyond the file": (file(n_keys=2**40), "claims 1,099,511,627,776 keys"),
    "key count of 64 bits": (file(n_keys=2**64 - 1), "keys, more than"),
    "key count one too high": (file(n_keys=2), "goes on after its last tensor"),
    "key count one too low": (file(keys=[BIG_KEY, key("k", 4, U32(1))], n_keys=1), "tensor 'k'"),
    "tensor count beyond the file": (file(n_tensors=2**63), "tensors, more than"),
    "tensor count one too high": (file(tensors=[], n_tensors=2, data=60), "tensor 1's name"),
    "tensor count one too low": (file(tensors=[tensor(), tensor("u", offset=128)], n_tensors=1, data=256), "goes on"),
    "key twice": (file(keys=[BIG_KEY, BIG_KEY]), "key 'general.architecture' is there twice"),
    "key length beyond the file": (file(keys=[text("k", 2**62)]), "key 0 is 4,611,686,018,427,387,904 bytes long"),
    "key name too long": (file(keys=[key("k" * 70_000, 4, U32(1))]), "key 0 is 70,000 bytes long"),
    "key not UTF-8": (file(keys=[key(b"\xff\xfe", 4, U32(1))]), "key 0 is not valid UTF-8"),
    "overlong UTF-8": (file(keys=[key(b"\xc0\x80", 4, U32(1))]), "key 0 is not valid UTF-8"),
    "value type 13": (file(keys=[key("k", 13, U32(1))]), "key 'k' has value type 13"),
    "value type of 32 bits": (file(keys=[key("k", 2**32 - 1, U32(1))]), "key 'k' has value type 4294967295"),
    "boolean 2": (file(keys=[key("k", 7, b"\2")]), "key 'k' has a boolean of 2, expected 0 or 1"),
    "boolean 255 in an array": (file(keys=[key("k", 9, array(7, 2, b"\1\xff"))]), "has a boolean of 255"),
    "value not UTF-8": (file(keys=[key("k", 8, text(b"\x80"))]), "key 'k' is not valid UTF-8"),
    "value length beyond the file": (file(keys=[key("k", 8, text("", 2**63))]), "key 'k' is 9,223,372,036,854,775,808"),
    "value length just beyond": (file(keys=[key("k", 8, text("v", 5_000))], tensors=[], data=0), "the file ends at"),
    "array type 13": (file(keys=[key("k", 9, array(13, 1))]), "key 'k' has item type 13"),
    "array count beyond the file": (file(keys=[key("k", 9, array(6, 2**60))]), "key 'k' needs"),
    "array count that wraps": (file(keys=[key("k", 9, array(12, 2**61 + 1))]), "key 'k' needs"),
    "string count beyond the file": (file(keys=[key("k", 9, array(8, 2**40))]), "key 'k' needs"),
    "string beyond the file": (file(keys=[key("k", 9, array(8, 1, text("", 2**40)))]), "key 'k' needs"),
    "string length that wraps": (file(keys=[key("k", 9, array(8, 1, text("", 2**64 - 8)))]), "key 'k' needs"),
    "string not UTF-8": (file(keys=[key("k", 9, array(8, 2, text("a") + text(b"\xc3")))]), "key 'k'[1] is not valid"),
    "character across two strings": (
        file(keys=[key("k", 9, array(8, 2, text(b"\xc3") + text(b"\xa4")))]),
        "key 'k'[0] is not valid UTF-8",
    ),
    "array of arrays beyond the file": (file(keys=[key("k", 9, array(9, 2**50))]), "key 'k' nests arrays"),
    "arrays in arrays too deep": (file(keys=[key("k", 9, array(9, 1) * 20 + array(4, 0))]), "nests arrays too deep"),
    "alignment 0": (file(keys=[key("general.alignment", 4, U32(0))]), "power of two"),
    "alignment 24": (file(keys=[key("general.alignment", 4, U32(24))]), "power of two"),
    "alignment of 2 GB": (file(keys=[key("general.alignment", 4, U32(2**31))]), "power of two up to 1,048,576"),
    "alignment as text": (file(keys=[key("general.alignment", 8, text("32"))]), "expected a uint32"),
    "alignment of 64 bits": (file(keys=[key("general.alignment", 10, struct.pack("<Q", 32))]), "expected a uint32"),
    "tensor twice": (file(tensors=[tensor(), tensor(offset=128)], data=256), "two tensors are called 't'"),
    "tensor name not UTF-8": (file(tensors=[tensor(b"\xff")]), "tensor 0's name is not valid UTF-8"),
    "tensor name too long": (file(tensors=[tensor("t" * 66_000)]), "tensor 0's name is 66,000 bytes long"),
    "too many dimensions": (file(tensors=[tensor(dims=(1,) * 5)]), "has 5 dimensions, expected at most 4"),
    "empty key": (file(keys=[key("", 4, U32(1))]), "key 0 has no name"),
    "no parts": (file(keys=[key("split.count", 2, b"\0\0")]), "key 'split.count' is 0"),
    "2^32 dimensions": (file(tensors=[text("t") + U32(2**32 - 1)]), "has 4294967295 dimensions"),
    "shape that wraps to the right size": (file(tensors=[tensor(dims=(2**32, 2**32, 2**32, 32))]), "more elements"),
    "zero hides a huge shape": (file(tensors=[tensor(dims=(0, 2**63, 2**63))]), "more elements"),
    "rows without end, all empty": (file(tensors=[tensor(dims=(0, 2**40))]), "more elements"),
    "shape beyond the file": (file(tensors=[tensor(dims=(2**40,))]), "takes 4,398,046,511,104 bytes"),
    "unknown type": (file(tensors=[tensor(kind=1000)]), "is of ggml type 1000, unknown here"),
    "removed type": (file(tensors=[tensor(kind=4)]), "is of type Q4_2, which ggml dropped"),
    "row not whole blocks": (file(tensors=[tensor(dims=(33,), kind=2)]), "rows of 33, expected a multiple of Q4_0's"),
    "scalar of a block type": (file(tensors=[tensor(dims=(), kind=2)]), "rows of 1, expected a multiple"),
    "offset not aligned": (file(tensors=[tensor(offset=16)], data=256), "offset 16, expected a multiple of 32"),
    "offset outside": (file(tensors=[tensor(offset=2**62)]), "the file ends at"),
    "offset that wraps": (file(tensors=[tensor(offset=2**64 - 32)]), "the file ends at"),
    "tensors share bytes": (file(tensors=[tensor(), tensor("u", offset=96)], data=256), "'t' and 'u' share bytes"),
    "tensors on top of each other": (file(tensors=[tensor(), tensor("u")]), "share bytes"),
    "data cut by one byte": (file(data=127), "the file ends at"),
    "data absent": (file(data=0), "the file ends at"),
    "bytes after the last tensor": (file(data=128 + 32), "goes on after its last tensor"),
    "bytes after no tensor": (file(tensors=[], data=100), "goes on after its last tensor"),
    "split number without its count's name": (
        file(keys=[key("split.no", 2, b"\0\0"), key("split.count", 2, b"\2\0")]),
        "is part 1 of 2 of a split model, expected a name that ends in",
    ),
    "a part beyond the last": (
        file(keys=[key("split.no", 2, b"\5\0"), key("split.count", 2, b"\1\0")]),
        "is part 6 of 1 by its keys",
    ),
    "a part of nothing": (file(keys=[key("split.no", 2, b"\1\0")]), "is part 2 of 1 by its keys"),
    "split count as text": (file(keys=[key("split.count", 8, text("2"))]), "expected a whole number"),
}
