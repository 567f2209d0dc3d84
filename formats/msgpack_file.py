"""MessagePack: the same documents as legacy JSON, in binary (see `formats.documents.document`).

The msgpack library reads scalars and headers one by one, so that no count is believed before its items are there;
long arrays of floats are read and written by numpy.  Integers, single and double precision are told apart, so that a
document comes back byte for byte when its writer chose the shortest encodings, as the usual libraries do.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.errors import BadFile, Unsupported, UsageError, at
from llmconv.formats import limits
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.documents.cutting import cut
from llmconv.formats.documents.document import DEPTH, Ext, Numbers, Slot, join, write_document
from llmconv.formats.documents.pieces import numbers_of, same_bytes
from llmconv.formats.files import regular_size
from llmconv.formats.format import Format
from llmconv.formats.source import Source
from llmconv.formats.tensor import Tensor
from llmconv.progress import Meter

__all__ = ["FORMAT", "NAME", "SUFFIXES", "is_exact", "open", "render", "save", "sniff"]

NAME = "msgpack"
SUFFIXES = (".msgpack", ".mpk", ".mp")
_FLOAT32, _FLOAT64 = 0xCA, 0xCB
_WIDTH = {_FLOAT32: 4, _FLOAT64: 8}


def sniff(path: Path, head: bytes) -> bool:
    first = head[:1] or b"\0"
    code = first[0]
    container = 0x80 <= code <= 0x9F or code in (0xDC, 0xDD, 0xDE, 0xDF)
    return container or (path.suffix in SUFFIXES and head[:1] not in (b"{", b"["))


def open(path: Path) -> Checkpoint:
    """A MessagePack document.  Its numbers are read at once; `metadata` is {"document": the rest}."""
    size = regular_size(path)
    if size > limits.JSON_BYTES:
        raise BadFile(f"{at(path)}: is {size:,} bytes, expected at most {limits.JSON_BYTES:,} of MessagePack")
    raw = Source.of(path).read(0, size).tobytes()
    notes: list[str] = []
    tree = _Reader(raw, path).document()
    if tree in ([], {}):
        raise BadFile(f"{at(path)}: is an empty {'array' if tree == [] else 'map'}, expected a model")
    document, tensors = cut(tree, path, notes)
    return Checkpoint(tensors, {"document": document}, "json", {}, NAME, path, notes=notes)


class _Reader:
    def __init__(self, raw: bytes, source: Path):
        import msgpack

        self.raw, self.source = raw, source
        self.unpacker = msgpack.Unpacker(
            max_buffer_size=max(len(raw), 1), strict_map_key=True, ext_hook=Ext, timestamp=0, use_list=True
        )
        self.unpacker.feed(raw)

    def bad(self, path: str, message: str) -> BadFile:
        return BadFile(f"{at(self.source, path or 'the document')} {message}")

    def document(self) -> Any:
        tree = self.value("", 0)
        rest = len(self.raw) - self.unpacker.tell()
        if rest:
            raise BadFile(f"{at(self.source)}: goes on for {rest:,} bytes after its document; it is damaged")
        return tree

    def value(self, path: str, depth: int) -> Any:
        if depth > DEPTH:
            raise self.bad(path[:80], f"nests deeper than {DEPTH} levels, which no model file does")
        position = self.unpacker.tell()
        code = self.raw[position] if position < len(self.raw) else -1
        try:
            if 0x90 <= code <= 0x9F or code in (0xDC, 0xDD):
                return self.array(self.unpacker.read_array_header(), path, depth)
            if 0x80 <= code <= 0x8F or code in (0xDE, 0xDF):
                return self.map(self.unpacker.read_map_header(), path, depth)
            value = self.unpacker.unpack()
        except BadFile:
            raise
        except UnicodeDecodeError:
            raise self.bad(path, f"is a text that is not valid UTF-8, at byte {position:,}") from None
        except Exception as error:  # the library has many, and no common base
            if position >= len(self.raw) or type(error).__name__ == "OutOfData":
                raise self.bad(path, f"is missing: the file ends at byte {len(self.raw):,}, it is cut short") from None
            raise self.bad(path, f"is no valid MessagePack at byte {position:,}; the file is damaged") from None
        if type(value).__name__ == "Timestamp":
            return Ext(-1, value.to_bytes())
        return value

    def claim(self, n: int, least: int, path: str) -> None:
        if n * least > len(self.raw) - self.unpacker.tell():
            raise self.bad(path, f"claims {n:,} items, more than the file has bytes left; it is damaged or cut short")

    def array(self, n: int, path: str, depth: int) -> Any:
        self.claim(n, 1, path)
        numbers = self.floats(n)
        if numbers is not None:
            return numbers
        return [self.value(join(path, i), depth + 1) for i in range(n)]

    def floats(self, n: int) -> Numbers | None:
        """An array whose items are all doubles, or all single-precision floats."""
        start = self.unpacker.tell()
        if not n or start >= len(self.raw) or self.raw[start] not in _WIDTH:
            return None
        code = self.raw[start]
        width = 1 + _WIDTH[code]
        if n * width > len(self.raw) - start:
            return None
        items = np.frombuffer(self.raw, np.uint8, n * width, start).reshape(n, width)
        if not (items[:, 0] == code).all():
            return None
        values = np.ascontiguousarray(items[:, 1:]).view(f">f{width - 1}").reshape(n).astype(np.float64)
        if not np.isfinite(values).all():
            return None  # the slow way finds the path
        self.unpacker.read_bytes(n * width)
        return Numbers(values, kind="f4" if code == _FLOAT32 else "")

    def map(self, n: int, path: str, depth: int) -> dict[str, Any]:
        self.claim(n, 2, path)
        out: dict[str, Any] = {}
        for _ in range(n):
            key = self.value(f"{path}.(a key)", depth + 1)
            if not isinstance(key, str):
                raise self.bad(path, f"has a key of type {type(key).__name__}, expected text")
            if key in out:
                raise self.bad(path, f"has the key {key!r} twice; keep one")
            out[key] = self.value(join(path, key), depth + 1)
        return out


# Writing


def save(
    checkpoint: Checkpoint, path: Path, *, force: bool = False, jobs: int | None = None, meter: Meter | None = None
) -> list[Path]:
    """Write the document with its tensors in place; doubles unless a slot says otherwise."""
    return write_document(checkpoint, Path(path), render, force=force, meter=meter)


def render(checkpoint: Checkpoint, write: Callable[[bytes], Any], meter: Meter | None = None) -> None:
    """The document's bytes, piece by piece, to `write`."""
    if "document" not in checkpoint.metadata:
        raise UsageError("this checkpoint is no document; translate it to JSON's dialect first")
    _Writer(checkpoint.tensors, write, meter).value(checkpoint.metadata["document"])


def is_exact(checkpoint: Checkpoint, first: int | None = None) -> bool:
    """Whether rendering gives the file that it was opened from, byte for byte (its `first` bytes, None: all)."""
    assert checkpoint.source is not None
    return same_bytes(checkpoint.source, functools.partial(render, checkpoint), first)


class _Writer:
    def __init__(self, tensors: dict[str, Tensor], write: Callable[[bytes], Any], meter: Meter | None):
        import msgpack

        self.tensors, self.write, self.meter = tensors, write, meter
        self.packer = msgpack.Packer(use_bin_type=True, strict_types=True)
        self.ext = msgpack.ExtType

    def value(self, node: Any) -> None:
        write, packer = self.write, self.packer
        if isinstance(node, Slot):
            self.tensor(node)
        elif isinstance(node, dict):
            write(packer.pack_map_header(len(node)))
            for key, child in node.items():
                write(packer.pack(key))
                self.value(child)
        elif isinstance(node, list):
            write(packer.pack_array_header(len(node)))
            for child in node:
                self.value(child)
        elif isinstance(node, Ext):
            write(packer.pack(self.ext(node.code, node.data)) if node.code >= 0 else _negative_ext(node))
        else:
            try:
                write(packer.pack(node))
            except (OverflowError, TypeError):
                raise Unsupported(f"the value {str(node)[:40]} has no place in MessagePack; write JSON") from None

    def tensor(self, slot: Slot) -> None:
        tensor = self.tensors.get(slot.name)
        if tensor is None:
            raise UsageError(f"the document has a place for tensor {slot.name!r}, which is not there")
        if slot.raw:
            self.value(slot.packed(tensor))
            return
        if slot.form == "buffer":
            self.value({"type": "Buffer", "data": dataclasses.replace(slot, form="nested")})
            return
        ints = np.full(tensor.n_elements, slot.ints == "all")
        if slot.ints and slot.ints != "all":
            index = np.asarray(slot.ints, np.intp)
            ints[index[(index >= 0) & (index < ints.size)]] = True
        pieces = numbers_of(tensor, slot.shape, np.float64, self.meter)
        self.nested(slot, slot.shape, ((values, ints[first : first + values.size]) for first, values in pieces))
        next(pieces, None)  # it reports its last slab when it goes on

    def nested(self, slot: Slot, shape: tuple[int, ...], pieces: Iterator[tuple[Any, Any]]) -> None:
        if len(shape) > 1:
            self.write(self.packer.pack_array_header(shape[0]))
            for _ in range(shape[0]):
                self.nested(slot, shape[1:], pieces)
            return
        indexed, counted = slot.form in ("indexed", "counted"), slot.form == "counted"
        head = self.packer.pack_map_header(shape[0] + counted) if indexed else self.packer.pack_array_header(shape[0])
        self.write(head)
        done = 0
        while done < shape[0]:
            values, ints = next(pieces)
            if indexed:
                for i in range(values.size):
                    key = self.packer.pack(str(done + i))
                    self.write(key + self.numbers(values[i : i + 1], ints[i : i + 1], slot.kind))
            else:
                self.write(self.numbers(values, ints, slot.kind))
            done += values.size
        if counted:
            self.write(self.packer.pack("length") + self.packer.pack(shape[0]))

    def numbers(self, values: NDArray[np.float64], ints: NDArray[np.bool_], kind: str) -> bytes:
        if ints.any():
            pack, floats = self.packer.pack, values.tolist()
            return b"".join(
                pack(int(x)) if i and -(2**63) <= x < 2**64 else self.numbers(values[k : k + 1], ints[:0], kind)
                for k, (x, i) in enumerate(zip(floats, ints.tolist(), strict=True))
            )
        single = kind == "f4" and np.array_equal(values, values.astype(np.float32))  # else it would round
        code, dtype = (_FLOAT32, ">f4") if single else (_FLOAT64, ">f8")
        width = _WIDTH[code]
        out = np.empty((values.size, 1 + width), np.uint8)
        out[:, 0] = code
        out[:, 1:] = values.astype(dtype).view(np.uint8).reshape(values.size, width)
        return out.tobytes()


def _negative_ext(node: Ext) -> bytes:
    """Extension types below 0 (timestamps), which the library does not pack by number."""
    sizes = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}
    n, code = len(node.data), node.code & 0xFF
    head = bytes([sizes[n], code]) if n in sizes else bytes([0xC7, n, code])
    return head + node.data


FORMAT = Format(name=NAME, dialect="json", sniff=sniff, open=open, write=save, suffixes=SUFFIXES, is_exact=is_exact)
