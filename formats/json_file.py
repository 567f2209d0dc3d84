"""Legacy JSON: a document whose rectangular numeric arrays are the tensors (see `formats.documents.document`).

Reading is strict (RFC 8259: standard finite numbers, UTF-8, no key twice; a byte order mark is tolerated) and quick
(see `formats.documents.json_scan`).  Writing lays numbers, spaces and key order out as the original did (`Style`), so
that a document comes back byte for byte if its writer was JavaScript's JSON.stringify or Python's json.dumps.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.errors import BadFile, UnknownName, Unsupported, UsageError, at
from llmconv.formats import limits
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.documents.cutting import cut
from llmconv.formats.documents.document import Slot, write_document
from llmconv.formats.documents.json_scan import BOM, COMPACT, Style, Text, parse
from llmconv.formats.documents.numbers import number, row
from llmconv.formats.documents.pieces import numbers_of, same_bytes
from llmconv.formats.format import Format
from llmconv.formats.source import Source
from llmconv.formats.tensor import Tensor
from llmconv.progress import Meter

__all__ = ["DIGITS", "FORMAT", "NAME", "SUFFIXES", "Style", "is_exact", "open", "render", "save", "sniff"]

NAME = "json"
SUFFIXES = (".json",)


def sniff(path: Path, head: bytes) -> bool:
    text = head.removeprefix(BOM).lstrip(b" \t\r\n")
    return text[:1] in (b"{", b"[") or (not text and head != b"" and path.suffix == ".json")


def open(path: Path) -> Checkpoint:
    """A JSON document.  Its numbers are read at once; `metadata` is {"document": the rest, "style": `Style`}."""
    source = Source.of(path)
    if not source.size:
        raise BadFile(f"{at(path)}: is empty, expected a model file")
    if source.size > limits.JSON_BYTES:
        raise BadFile(f"{at(path)}: is {source.size:,} bytes, expected at most {limits.JSON_BYTES:,} of JSON")
    tree, style = parse(Text(source.size, lambda view, at_: source.fill(at_, view)), path)
    if tree in ([], {}):
        raise BadFile(f"{at(path)}: is an empty {'list' if tree == [] else 'object'}, expected a model")
    notes: list[str] = []
    document, tensors = cut(tree, path, notes)
    info = {"style": dataclasses.asdict(style)}
    return Checkpoint(tensors, {"document": document, "style": style}, "json", {}, NAME, path, info, notes)


DIGITS = ("exact", "shortest")


def save(
    checkpoint: Checkpoint,
    path: Path,
    *,
    force: bool = False,
    jobs: int | None = None,
    meter: Meter | None = None,
    json_digits: str = "exact",
    json_compact: bool = False,
) -> list[Path]:
    """Write the document with its tensors in place, laid out in its style.

    json_digits: "exact", of each weight its double; or "shortest", of weights in single precision or less as many
        digits as give the same float (0.1, not 0.10000000149011612): as F32, all that JSON is read as unless somebody
        asks for more, they are the same.
    json_compact: on one line without spaces, whatever its style.

    `Unsupported` for a number that is not finite, which JSON can't hold, naming tensor and index.
    """
    if json_digits not in DIGITS:
        raise UnknownName("JSON digits", json_digits, DIGITS)
    if json_compact:
        style = dataclasses.replace(_style(checkpoint), **COMPACT)
        checkpoint = checkpoint.but(metadata={**checkpoint.metadata, "style": style})
    written = functools.partial(render, shortest=json_digits == "shortest")
    return write_document(checkpoint, Path(path), written, force=force, meter=meter)


def _style(checkpoint: Checkpoint) -> Style:
    style = checkpoint.metadata.get("style")
    return style if isinstance(style, Style) else Style()  # from another container


def render(
    checkpoint: Checkpoint, write: Callable[[bytes], Any], meter: Meter | None = None, *, shortest: bool = False
) -> None:
    """The document's bytes, piece by piece, to `write`."""
    if "document" not in checkpoint.metadata:
        raise UsageError("this checkpoint is no document; translate it to JSON's dialect first")
    document, style = checkpoint.metadata["document"], _style(checkpoint)
    writer = _Writer(checkpoint.tensors, style, write, meter, shortest)
    if style.bom:
        write(BOM)
    writer.value(document, 0)
    write(style.end.encode())


def is_exact(checkpoint: Checkpoint, first: int | None = None) -> bool:
    """Whether rendering gives the file that it was opened from, byte for byte (its `first` bytes, None: all)."""
    assert checkpoint.source is not None
    return same_bytes(checkpoint.source, functools.partial(render, checkpoint), first)


class _Writer:
    def __init__(
        self,
        tensors: dict[str, Tensor],
        style: Style,
        write: Callable[[bytes], Any],
        meter: Meter | None,
        shortest: bool,
    ):
        self.tensors, self.style, self.write, self.meter = tensors, style, write, meter
        self.shortest = shortest
        self.quote = json.encoder.encode_basestring_ascii if style.ascii else json.encoder.encode_basestring
        self.colon = style.colon.encode()

    def gap(self, level: int) -> bytes:
        """What stands between a bracket and the next item."""
        style = self.style
        return b"" if style.indent is None else (style.newline + style.indent * level).encode()

    def between(self, level: int) -> bytes:
        return self.style.comma.encode() if self.style.indent is None else b"," + self.gap(level)

    def value(self, node: Any, level: int) -> None:
        write = self.write
        if isinstance(node, Slot):
            self.tensor(node, level)
        elif isinstance(node, dict) and node:
            write(b"{")
            for i, (key, child) in enumerate(node.items()):
                write((self.between(level + 1) if i else self.gap(level + 1)) + self.text(key) + self.colon)
                self.value(child, level + 1)
            write(self.gap(level) + b"}")
        elif isinstance(node, list) and node:
            write(b"[" + self.gap(level + 1))
            for i, child in enumerate(node):
                if i:
                    write(self.between(level + 1))
                self.value(child, level + 1)
            write(self.gap(level) + b"]")
        else:
            write(self.scalar(node))

    def text(self, text: str) -> bytes:
        return self.quote(text).encode("utf-8", "surrogatepass")

    def scalar(self, node: Any) -> bytes:
        if isinstance(node, str):
            return self.text(node)
        if isinstance(node, float) and not isinstance(node, bool):
            return number(node, self.style.numbers).encode()
        if node is None or isinstance(node, bool | int) or node == {} or node == []:
            return json.dumps(node).encode()
        raise Unsupported(f"a value of type {type(node).__name__} has no place in JSON; write MessagePack (.msgpack)")

    def tensor(self, slot: Slot, level: int) -> None:
        tensor = self.tensors.get(slot.name)
        if tensor is None:
            raise UsageError(f"the document has a place for tensor {slot.name!r}, which is not there")
        if slot.raw:
            self.value(slot.packed(tensor), level)
            return
        ints = None
        if slot.ints and (self.style.numbers == "python" or slot.ints == "all"):
            ints = np.full(tensor.n_elements, slot.ints == "all")
            if slot.ints != "all":
                index = np.asarray(slot.ints, np.intp)
                ints[index[(index >= 0) & (index < ints.size)]] = True
        self.pieces = self._pieces(tensor, slot.shape, ints)
        if slot.form in ("indexed", "counted"):
            self.indexed(slot.shape, level, slot.form == "counted")
        elif slot.form == "buffer":
            self.value({"type": "Buffer", "data": dataclasses.replace(slot, form="nested")}, level)
            return
        else:
            self.nested(slot.shape, level)
        next(self.pieces, None)  # it reports its last slab when it goes on

    def _pieces(
        self, tensor: Tensor, shape: tuple[int, ...], ints: NDArray[np.bool_] | None
    ) -> Iterator[tuple[bytes, int]]:
        """The numbers of a tensor that stands as `shape`: texts, none across rows, and how many each holds."""
        style = self.style.numbers
        single = self.shortest and tensor.type.is_float and tensor.type.name != "F64"
        for first, values in numbers_of(tensor, shape, np.float32 if single else np.float64, self.meter):
            if not np.isfinite(values).all():
                i = int(np.flatnonzero(~np.isfinite(values))[0])
                where = np.unravel_index(first + i, shape)
                raise Unsupported(
                    f"tensor {tensor.name!r} is {values[i]} at {list(map(int, where))}, which JSON can't hold; "
                    "repair the model or choose another format"
                )
            yield row(values, style, None if ints is None else ints[first : first + values.size]), values.size

    def numbers(self, count: int, between: bytes) -> Iterator[bytes]:
        """The next `count` numbers, a row, in texts that make it together."""
        done = 0
        while done < count:
            text, some = next(self.pieces)
            if between != b",":
                text = text.replace(b",", between)
            yield between + text if done else text
            done += some

    def nested(self, shape: tuple[int, ...], level: int) -> None:
        write, gap, between = self.write, self.gap(level + 1), self.between(level + 1)
        write(b"[" + gap)
        if len(shape) == 1:
            for text in self.numbers(shape[0], between):
                write(text)
        elif len(shape) == 2:  # many rows: few calls
            inner, comma = self.gap(level + 2), self.between(level + 2)
            start, end = b"[" + inner, gap + b"]"
            for i in range(shape[0]):
                texts = self.numbers(shape[1], comma)
                last = (between if i else b"") + start + next(texts, b"")
                for text in texts:
                    write(last)
                    last = text
                write(last + end)
        else:
            for i in range(shape[0]):
                if i:
                    write(between)
                self.nested(shape[1:], level + 1)
        write(self.gap(level) + b"]")

    def indexed(self, shape: tuple[int, ...], level: int, counted: bool) -> None:
        if len(shape) > 1:
            self.write(b"[" + self.gap(level + 1))
            for i in range(shape[0]):
                if i:
                    self.write(self.between(level + 1))
                self.indexed(shape[1:], level + 1, counted)
            self.write(self.gap(level) + b"]")
            return
        texts = b"".join(self.numbers(shape[0], b",")).split(b",")
        items = [b'"%d"%b%b' % (i, self.colon, text) for i, text in enumerate(texts)]
        if counted:
            items.append(b'"length"%b%d' % (self.colon, shape[0]))
        self.write(b"{" + self.gap(level + 1) + self.between(level + 1).join(items) + self.gap(level) + b"}")


FORMAT = Format(
    name=NAME,
    dialect="json",
    sniff=sniff,
    open=open,
    write=save,
    suffixes=SUFFIXES,
    options=("json_digits", "json_compact"),
    is_exact=is_exact,
)
