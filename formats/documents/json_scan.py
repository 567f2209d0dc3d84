"""Reading JSON: long arrays of numbers by simdjson, piece by piece; the small rest by Python's strict parser.

The text is read twice, and never held whole; nor are its numbers, where they are many (`IN_MEMORY`).  The first pass
finds the quotes: whatever lies long between two strings is numbers.  The second reads each such array in pieces that
simdjson parses while they are in the cache, and joins the rest to a skeleton with a token in each array's place.  What
the quick way does not take (a ragged row, a null, NaN) stays in the skeleton, where the error gets its path.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.errors import BadFile, at
from llmconv.formats.documents.document import EXACT, Fault, Numbers
from llmconv.formats.writing.scratch import Pages, Scratch

__all__ = ["BOM", "COMPACT", "Style", "Text", "parse"]

BOM = b"\xef\xbb\xbf"
LONG = 2048
"""Bytes without a quote that are worth the quick way."""
PIECE = 1 << 20
"""Bytes of numbers that simdjson gets at a time: its tape stays in the cache."""
IN_MEMORY = 256 << 20
"""Bytes of a document's numbers that stay in memory; the rest goes to a temporary file."""
_STEP = 1 << 20


@dataclass(frozen=True, slots=True)
class Style:
    """How a document was laid out.

    indent: one level's indentation, None for a document on one line.
    comma, colon: the separators, with the spaces that follow them.
    newline: the line ending.   end: what follows the document.   bom: whether a byte order mark stood before it.
    ascii: whether other characters were escaped.   numbers: "js" or "python".
    """

    indent: str | None = "  "
    comma: str = ","
    colon: str = ": "
    newline: str = "\n"
    end: str = ""
    bom: bool = False
    ascii: bool = False
    numbers: str = "js"


COMPACT: dict[str, Any] = {"indent": None, "comma": ",", "colon": ":"}
"""A style's fields for a document without a space."""


@dataclass(frozen=True, slots=True)
class Text:
    """Bytes that can be read anywhere: `fill(view, offset)` puts those from `offset` on into `view`."""

    size: int
    fill: Callable[[memoryview, int], None]

    @staticmethod
    def of(data: bytes) -> Text:
        def fill(view: memoryview, offset: int) -> None:
            view[:] = data[offset : offset + len(view)]

        return Text(len(data), fill)

    def read(self, start: int, stop: int) -> bytes:
        out = bytearray(max(0, stop - start))
        with memoryview(out) as view:
            self.fill(view, start)
        return bytes(out)


def parse(text: Text, source: Path) -> tuple[Any, Style]:
    """A JSON text -> its tree, in which long numeric arrays are `Numbers` already, and its style.

    `BadFile` when it is no JSON, with the byte at which that shows.
    """
    clue, kept = _Clue(), _Kept()
    start = len(BOM) if text.read(0, min(3, text.size)) == BOM else 0
    nonce = secrets.token_hex(16)  # no text can hold what was drawn after it was written
    parts: list[bytes] = []
    cuts: list[tuple[int, int]] = []  # where the skeleton lacks bytes: position in it, how many
    found: dict[str, Numbers] = {}
    last, skeleton_size = start, 0
    for begin, end in _runs(text, source):
        span = _array(text, max(begin, last), end)
        numbers = span and _numbers(text, *span, clue, kept)
        if span is None or numbers is None:
            continue
        token = f'"{nonce}{len(found)}"'.encode()
        parts += [text.read(last, span[0]), token]
        skeleton_size += span[0] - last + len(token)
        cuts.append((skeleton_size, span[1] - span[0] - len(token)))
        last = span[1]
        found[token[1:-1].decode()] = numbers
    parts.append(text.read(last, text.size))
    skeleton = b"".join(parts)
    tree = _skeleton(skeleton, cuts, start, source)
    style = _style(skeleton, text.read(start, min(text.size, start + _EDGE)), clue, bom=bool(start))
    return (_put_back(tree, found)), style


def _runs(text: Text, source: Path) -> list[tuple[int, int]]:
    """Stretches between strings of at least LONG bytes; [] when a string has no end (the parser will say where)."""
    found: list[NDArray[np.intp]] = []
    buffer, before = bytearray(min(_STEP, text.size)), 0
    data = np.frombuffer(buffer, np.uint8)
    with memoryview(buffer) as view:
        for start in range(0, text.size, _STEP):
            n = min(_STEP, text.size - start)
            text.fill(view[:n], start)
            zero = buffer.find(b"\0", 0, n)
            if zero >= 0:  # before a sparse file of them costs anything
                where = start + zero
                raise BadFile(f"{at(source)}: has a zero byte at {where:,}, which no JSON text has; it is damaged")
            quotes = np.flatnonzero(data[:n] == 34)
            if quotes.size:
                escaping = data[quotes - 1] == 92
                escaping[0] = before == 92 if quotes[0] == 0 else escaping[0]
                for k in np.flatnonzero(escaping).tolist():
                    escaping[k] = _escaped(text, start + int(quotes[k]))
                found.append(quotes[~escaping] + start)
            before = buffer[n - 1]
    inside = np.concatenate(found) if found else np.empty(0, np.intp)
    if inside.size % 2:
        return []
    edges = np.concatenate([[-1], inside, [text.size]])
    starts, ends = edges[0::2] + 1, edges[1::2]
    where_long = np.flatnonzero(ends - starts >= LONG).tolist()
    return [(int(starts[i]), int(ends[i])) for i in where_long]


def _escaped(text: Text, quote: int) -> bool:
    """Whether an odd number of backslashes stands before the quote."""
    count, width = 0, 64
    while True:
        start = max(0, quote - count - width)
        piece = text.read(start, quote - count)
        kept = len(piece.rstrip(b"\\"))
        count += len(piece) - kept
        if kept or not start:
            return bool(count % 2)
        width = min(width * 2, _STEP)


_OPEN = re.compile(rb"\[[\[ \t\r\n]*")
_EDGE = 4096
"""Bytes at the edges of a stretch in which its array must begin and end."""


def _array(text: Text, begin: int, end: int) -> tuple[int, int, int] | None:
    """(start, end, depth) of the array in a stretch without strings, as its first and last brackets suggest."""
    head = text.read(begin, min(end, begin + _EDGE))
    opening = _OPEN.search(head)
    if opening is None:
        return None
    depth = opening[0].count(b"[")
    start = begin + opening.start()
    tail = text.read(max(start, end - _EDGE), end)
    closing = tail[len(tail.rstrip(b" \t\r\n,:[]{}")) :]
    place = -1
    for _ in range(depth):
        place = closing.find(b"]", place + 1)
        if place < 0:
            return None
    return start, end - len(closing) + place + 1, depth


class _Clue:
    """What the numbers seen so far say about their style."""

    def __init__(self) -> None:
        self.style: str | None = None

    def look(self, text: bytes | memoryview) -> None:
        if self.style is None:
            if re.search(rb"[0-9]\.0[,\]\}\s]|[0-9]e-0[0-9]|[0-9]e\+[0-9]{2}[,\]\}\s]", text):
                self.style = "python"
            elif re.search(rb"[\[,:\s]-?0\.0000[0-9]|[0-9]e-[1-9][,\]\}\s]", text):
                self.style = "js"


class _Kept:
    """Where numbers go: into memory, as far as a document's may, then into a temporary file."""

    def __init__(self) -> None:
        self.left, self.scratch = IN_MEMORY, Scratch()


class _Doubles:
    """An array's numbers, piece by piece."""

    def __init__(self, kept: _Kept):
        self.kept, self.size = kept, 0
        self.here: list[NDArray[np.float64]] = []
        self.start: int | None = None
        """Where they begin in the file, if they are there."""

    def add(self, values: NDArray[np.float64]) -> None:
        self.size += values.size
        self.here.append(values)
        if self.start is not None or 8 * self.size > self.kept.left:
            places = [self.kept.scratch.add(piece.view(np.uint8).data) for piece in self.here]  # one after the other
            self.start = places[0] if self.start is None else self.start
            self.here.clear()

    def joined(self) -> tuple[NDArray[np.float64], Pages | None]:
        """All of them, (n,), and what they lie in, if not in memory."""
        if self.start is not None:
            pages = self.kept.scratch.pages(self.start, 8 * self.size)
            return pages.array(np.float64), pages
        self.kept.left -= 8 * self.size
        return (self.here[0] if len(self.here) == 1 else np.concatenate(self.here)), None


def _numbers(text: Text, start: int, end: int, depth: int, clue: _Clue, kept: _Kept) -> Numbers | None:
    """The array of numbers from `start` to `end`; None when it is not one rectangular array of numbers."""
    import simdjson

    parser = simdjson.Parser()
    shape: tuple[int, ...] | None = None
    count, found = 0, _Doubles(kept)
    ints: list[NDArray[np.intp]] = []
    for piece in _pieces(text, start + 1, end - 1, depth):
        try:
            array: Any = parser.parse(piece)
            n, inner = _measure(array, depth)
            values = np.frombuffer(array.as_buffer(of_type="d"), np.float64)
        except (ValueError, TypeError, RuntimeError):
            return None
        finally:
            array = None  # the parser refuses to go on while something points into its last document
        if inner is None or (shape is not None and inner != shape) or values.size != n * int(np.prod(inner)):
            return None
        whole_buffer: Any = piece.obj  # whose method counts without a copy
        if whole_buffer.count(b"[", 0, len(piece)) != _brackets(n, inner):
            return None  # a number in brackets of its own, which the buffer does not show
        whole = values == np.trunc(values)
        if whole.any():
            literal = _integers(bytes(piece), whole)
            if literal is None or np.abs(values[literal]).max(initial=0) > EXACT:
                return None
            clue.look(piece)
            ints.append(literal + found.size)
        elif clue.style is None and (np.abs(values) < 1e-4).any():
            clue.look(piece)
        shape = inner
        count += n
        found.add(values)
    if shape is None or not found.size:
        return None
    values, pages = found.joined()
    where = np.concatenate(ints) if ints else np.empty(0, np.intp)
    written: str | tuple[int, ...] = "all" if where.size == found.size else tuple(where.tolist())
    return Numbers(values.reshape(count, *shape), "nested", written, pages=pages)


def _brackets(n: int, inner: tuple[int, ...]) -> int:
    """How many arrays n arrays (or numbers) of the shape `inner` and the one around them are."""
    return 1 + n * sum(math.prod(inner[:k]) for k in range(len(inner)))


def _pieces(text: Text, start: int, end: int, depth: int) -> Iterator[memoryview]:
    """The inside of an array as arrays of whole elements, about PIECE bytes each; valid until the next is asked for."""
    comma = re.compile(rb"\]\s*" * (depth - 1) + rb",")
    size = PIECE + (64 << 10)
    buffer = bytearray(min(size, end - start) + 2)
    while start < end:
        n = min(size, end - start)
        if len(buffer) < n + 2:
            buffer = bytearray(n + 2)
        with memoryview(buffer) as view:
            text.fill(view[1 : 1 + n], start)
            stop = n + 1
            if start + n < end:
                found = comma.search(buffer, min(PIECE, n), n + 1)
                if found is None:  # an element longer than a piece
                    size *= 2
                    continue
                stop = found.end() - 1
            buffer[0], buffer[stop] = 91, 93  # brackets, the last one in the comma's place
            yield view[: stop + 1]
        start += stop


def _measure(array: Any, depth: int) -> tuple[int, tuple[int, ...] | None]:
    """Elements of an array, and the shape that all of them have; None when they differ."""
    if depth == 1:
        return len(array), ()
    shapes: set[tuple[int, ...] | None] = set()
    n = 0
    for item in array:
        if depth == 2:
            shapes.add((len(item),))
        else:
            k, inner = _measure(item, depth - 1)
            shapes.add(None if inner is None else (k, *inner))
        n += 1
    return n, (shapes.pop() if len(shapes) == 1 else None)


def _integers(text: bytes | bytearray, whole: NDArray[np.bool_]) -> NDArray[np.intp] | None:
    """Which of the whole numbers are written as integers; None when one is "-0", which simdjson reads as 0."""
    items = text.translate(None, b"[] \t\r\n").split(b",")
    if len(items) != whole.size:
        return None
    where = [i for i in np.flatnonzero(whole).tolist() if not (set(b".eE") & set(items[i]))]
    return None if any(items[i] == b"-0" for i in where) else np.array(where, np.intp)


def _skeleton(text: bytes, cuts: list[tuple[int, int]], start: int, source: Path) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> Any:
        out = dict(items)
        if len(out) == len(items):
            return out
        seen: set[str] = set()
        for key, _ in items:
            if key in seen:
                return Fault(f"has the key {key!r} twice; keep one")
            seen.add(key)
        return out

    def constant(name: str) -> Any:
        return Fault(f"is {name}, which is no JSON number; expected a finite number")

    hooks: dict[str, Any] = {"object_pairs_hook": pairs, "parse_constant": constant}
    if re.search(rb"-0(?![.0-9eE])", text):
        hooks["parse_int"] = lambda digits: -0.0 if digits == "-0" else int(digits)
    try:
        return json.loads(text.decode("utf-8"), **hooks)
    except UnicodeDecodeError as error:
        where = _original(error.start, cuts) + start
        raise BadFile(f"{at(source)}: is not valid UTF-8 at byte {where:,}; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        byte = len(error.doc[: error.pos].encode("utf-8", "surrogatepass"))
        what = "ends too early, it is cut short" if byte >= len(text.rstrip()) else f"is not valid JSON: {error.msg}"
        comma = error.doc[: error.pos].rstrip().endswith(",") and error.doc[error.pos : error.pos + 1] in ("]", "}")
        if comma or error.msg.startswith("Illegal trailing comma"):  # as Python says since 3.13
            what = "is not valid JSON: there is a comma before the closing bracket, remove it,"
        raise BadFile(f"{at(source)}: {what[0].lower()}{what[1:]} at byte {_original(byte, cuts) + start:,}") from None
    except RecursionError:
        raise BadFile(f"{at(source)}: nests too deep, no model file does") from None
    except ValueError:  # Python's limit for the digits of an integer
        raise BadFile(f"{at(source)}: holds an integer of thousands of digits, no model file does") from None


def _original(byte: int, cuts: list[tuple[int, int]]) -> int:
    return byte + sum(missing for position, missing in cuts if position <= byte)


def _put_back(tree: Any, found: dict[str, Numbers]) -> Any:
    """The tree with the arrays in their tokens' places."""
    if isinstance(tree, str):
        return found.get(tree, tree)
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            if isinstance(value, dict | list):
                _put_back(value, found)
            elif isinstance(value, str) and value in found:
                tree[key] = found[value]
    return tree


_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[,:][ \t\r\n]*')


def _style(skeleton: bytes, begin: bytes, clue: _Clue, bom: bool) -> Style:
    """The layout, as the beginning and the end of the skeleton show it, and the text's own beginning where the skeleton
    has nothing but arrays that were taken out."""
    end = skeleton[len(skeleton.rstrip(b" \t\r\n")) :].decode()
    indent, newline, comma, colon = None, "\n", ",", ":"
    opening = re.match(rb"[\[{](\r?\n)([ \t]*)", begin.lstrip(b" \t\r\n")[:256])
    if opening:
        newline, indent = opening[1].decode(), opening[2].decode()
    separators: dict[bytes, str] = {}
    for part in (skeleton[:65536], begin):
        for token in _TOKEN.finditer(part):
            if token[0][:1] in b",:":
                separators.setdefault(token[0][:1], token[0].decode())
            if len(separators) == 2:
                break
    colon = separators.get(b":", ": " if indent is not None else ":")
    if indent is None:
        comma = separators.get(b",", ",")
    clue.look(skeleton)
    numbers = clue.style or ("python" if comma == ", " else "js")
    escaped = re.search(rb"\\u(?!00[01])[0-9a-fA-F]{4}", skeleton) is not None
    return Style(indent, comma, colon, newline, end, bom, escaped and skeleton.isascii(), numbers)
