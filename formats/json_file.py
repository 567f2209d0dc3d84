"""Legacy JSON: a document whose rectangular numeric arrays are the tensors (see `formats.document`).

Reading is strict (RFC 8259: standard finite numbers, UTF-8, no key twice; a byte order mark is tolerated) and quick:
long runs without a quote are numbers, and are cut out of the text piece by piece and read by simdjson; the rest, the
skeleton, is small and goes through Python's own parser.  Whatever the quick way does not take (a ragged row, a null,
NaN) is left in the skeleton, where the error gets its path.

Writing lays numbers, spaces and key order out as the original did (`Style`), so that a document comes back byte for
byte if its writer was JavaScript's JSON.stringify or Python's json.dumps.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llmconv.errors import BadFile, Unsupported, UsageError, at
from llmconv.formats import limits
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.document import EXACT, Fault, Numbers, Slot, cut
from llmconv.formats.files import Output, open_regular, regular_size
from llmconv.formats.numbers import number, row
from llmconv.formats.stream import Progress
from llmconv.formats.tensor import Tensor

__all__ = ["NAME", "SUFFIXES", "Style", "is_exact", "open", "parse", "render", "save", "sniff"]

NAME = "json"
SUFFIXES = (".json",)
BOM = b"\xef\xbb\xbf"
Raw: TypeAlias = mmap.mmap | bytearray
LONG = 2048
"""Bytes without a quote that are worth the quick way."""
PIECE = 2 << 20
"""Bytes of numbers that simdjson gets at a time: its tape stays in the cache."""


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


def sniff(path: Path, head: bytes) -> bool:
    text = head.removeprefix(BOM).lstrip(b" \t\r\n")
    return text[:1] in (b"{", b"[") or (not text and head != b"" and path.suffix == ".json")


def open(path: Path) -> Checkpoint:
    """A JSON document.  Its numbers are read at once; `metadata` is {"document": the rest, "style": `Style`}."""
    path = Path(path)
    raw = _load(path)
    tree, style = parse(raw, path)
    del raw
    document, tensors = cut(tree, path)
    info = {"style": dataclasses.asdict(style)}
    return Checkpoint(tensors, {"document": document, "style": style}, "json", {}, NAME, path, info)


def _load(path: Path) -> Raw:
    """The file in memory of our own, taken as it fills: a mapping of the file would die with it."""
    size = regular_size(path)
    if not size:
        raise BadFile(f"{at(path)}: is empty, expected a model file")
    if size > limits.JSON_BYTES:
        raise BadFile(f"{at(path)}: is {size:,} bytes, expected at most {limits.JSON_BYTES:,} of JSON")
    raw = mmap.mmap(-1, size, access=mmap.ACCESS_COPY)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        raw.madvise(mmap.MADV_HUGEPAGE)
    done = 0
    with open_regular(path) as file, memoryview(raw) as view:
        while done < size:
            n = file.readinto(view[done : done + (1 << 20)])  # type: ignore[attr-defined]
            if not n:
                raise BadFile(f"{at(path)}: was cut while it was being read; fetch it again")
            zero = raw.find(b"\0", done, done + n)
            if zero >= 0:  # before a sparse file of them fills the memory
                raise BadFile(f"{at(path)}: has a zero byte at {zero:,}, which no JSON text has; it is damaged")
            done += n
        if file.read(1):
            raise BadFile(f"{at(path)}: grew while it was being read; run again when nothing writes to it")
    return raw


# Reading


def parse(raw: Raw, source: Path) -> tuple[Any, Style]:
    """A JSON text -> its tree, in which long numeric arrays are `Numbers` already, and its style.

    raw: borrowed; single bytes are changed and put back.
    """
    clue = _Clue()
    start = len(BOM) if raw[: len(BOM)] == BOM else 0
    nonce = secrets.token_hex(16)  # no text can hold what was drawn after it was written
    parts: list[Any] = []
    cuts: list[tuple[int, int]] = []  # where the skeleton lacks bytes: position in it, how many
    found: dict[str, Numbers] = {}
    last = skeleton_size = 0
    for begin, end in _runs(raw):
        begin = max(begin, last, start)
        span = _array(raw, begin, end)
        numbers = span and _numbers(raw, *span, clue)
        if span is None or numbers is None:
            continue
        token = f'"{nonce}{len(found)}"'.encode()
        parts += [raw[last : span[0]], token]
        skeleton_size += span[0] - last + len(token)
        cuts.append((skeleton_size, span[1] - span[0] - len(token)))
        last = span[1]
        found[token[1:-1].decode()] = numbers
    parts.append(raw[last:])
    skeleton = b"".join(parts)[start:]
    tree = _skeleton(skeleton, cuts, start, source)
    style = _style(skeleton, clue, bom=bool(start))
    return (_put_back(tree, nonce, found) if found else tree), style


def _runs(raw: Raw) -> Iterator[tuple[int, int]]:
    """Stretches between strings of at least LONG bytes."""
    data = np.frombuffer(raw, np.uint8)
    step = 1 << 20
    pieces = [np.flatnonzero(data[i : i + step] == 34) + i for i in range(0, len(data), step)]
    quotes = np.concatenate(pieces) if pieces else np.empty(0, np.intp)
    inner = quotes[quotes > 0]
    suspect = inner[data[inner - 1] == 92]
    if suspect.size:
        escaped = [q for q in suspect.tolist() if _escaped(raw, q)]
        quotes = np.setdiff1d(quotes, np.array(escaped, np.intp), assume_unique=True)
    if quotes.size % 2:
        return  # an unfinished string: let the parser say where
    edges = np.concatenate([[-1], quotes, [len(data)]])
    starts, ends = edges[0::2] + 1, edges[1::2]
    for i in np.flatnonzero(ends - starts >= LONG).tolist():
        yield int(starts[i]), int(ends[i])


def _escaped(raw: Raw, quote: int) -> bool:
    start = quote
    while start and raw[start - 1] == 92:
        start -= 1
    return bool((quote - start) % 2)


_OPEN = re.compile(rb"\[[\[ \t\r\n]*")


def _array(raw: Raw, begin: int, end: int) -> tuple[int, int, int] | None:
    """(start, end, depth) of the array in a stretch without strings, as its first and last brackets suggest."""
    start = raw.find(b"[", begin, end)
    if start < 0:
        return None
    opening = _OPEN.match(raw, start, end)
    depth = opening[0].count(b"[") if opening else 0
    tail = raw[max(start, end - 4096) : end]
    closing = tail[len(tail.rstrip(b" \t\r\n,:[]{}")) :]
    at_ = -1
    for _ in range(depth):
        at_ = closing.find(b"]", at_ + 1)
        if at_ < 0:
            return None
    return start, end - len(closing) + at_ + 1, depth


class _Clue:
    """What the numbers seen so far say about their style."""

    def __init__(self) -> None:
        self.style: str | None = None

    def look(self, text: bytes | bytearray | memoryview) -> None:
        if self.style is None:
            if re.search(rb"[0-9]\.0[,\]\}\s]|[0-9]e-0[0-9]|[0-9]e\+[0-9]{2}[,\]\}\s]", text):
                self.style = "python"
            elif re.search(rb"[\[,:\s]-?0\.0000[0-9]|[0-9]e-[1-9][,\]\}\s]", text):
                self.style = "js"


def _numbers(raw: Raw, start: int, end: int, depth: int, clue: _Clue) -> Numbers | None:
    """The array of numbers at raw[start:end]; None when it is not one rectangular array of numbers."""
    import simdjson

    parser, view = simdjson.Parser(), memoryview(raw)
    shape: tuple[int, ...] | None = None
    count = total = 0
    pieces: list[NDArray[np.float64]] = []
    ints: list[NDArray[np.intp]] = []
    for lo, hi in _pieces(raw, start + 1, end - 1, depth):
        before, after = raw[lo - 1], raw[hi]
        raw[lo - 1], raw[hi] = 91, 93  # brackets for the commas around the piece: no copy is needed to make it an array
        text = view[lo - 1 : hi + 1]
        try:
            array = parser.parse(text)
            n, inner = _measure(array, depth)
            values = np.frombuffer(array.as_buffer(of_type="d"), np.float64)
        except (ValueError, TypeError, RuntimeError):
            return None
        finally:
            array = None  # the parser refuses to go on while something points into its last document
            raw[lo - 1], raw[hi] = before, after
        if inner is None or (shape is not None and inner != shape) or values.size != n * int(np.prod(inner)):
            return None
        whole = values == np.trunc(values)
        if whole.any():
            literal = _integers(raw[lo:hi], whole)
            if literal is None or np.abs(values[literal]).max(initial=0) > EXACT:
                return None
            clue.look(text)
            ints.append(literal + total)
        elif clue.style is None and (np.abs(values) < 1e-4).any():
            clue.look(text)
        shape = inner
        count += n
        total += values.size
        pieces.append(values)
    if shape is None or not total:
        return None
    values = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    where = np.concatenate(ints) if ints else np.empty(0, np.intp)
    written: str | tuple[int, ...] = "all" if where.size == total else tuple(where.tolist())
    return Numbers(values.reshape(count, *shape), "nested", written)


def _pieces(raw: Raw, start: int, end: int, depth: int) -> Iterator[tuple[int, int]]:
    """The inside of an array in stretches of whole elements, about PIECE bytes each."""
    comma = re.compile(rb"\]\s*" * (depth - 1) + rb",")
    lo = start
    while end - lo > PIECE:
        found = comma.search(raw, lo + PIECE, end)
        if found is None:
            break
        yield lo, found.end() - 1
        lo = found.end()
    yield lo, end


def _measure(array: Any, depth: int) -> tuple[int, tuple[int, ...] | None]:
    """Elements of an array, and the shape that all of them have; None when they differ."""
    if depth == 1:
        return len(array), ()
    shapes = set()
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
        raise BadFile(f"{at(source)}: {what[0].lower()}{what[1:]} at byte {_original(byte, cuts) + start:,}") from None
    except RecursionError:
        raise BadFile(f"{at(source)}: nests too deep, no model file does") from None
    except ValueError:  # Python's limit for the digits of an integer
        raise BadFile(f"{at(source)}: holds an integer of thousands of digits, no model file does") from None


def _original(byte: int, cuts: list[tuple[int, int]]) -> int:
    return byte + sum(missing for position, missing in cuts if position <= byte)


def _put_back(tree: Any, nonce: str, found: dict[str, Numbers]) -> Any:
    if isinstance(tree, str):
        return found[tree] if tree.startswith(nonce) else tree
    if isinstance(tree, dict):
        for key, value in tree.items():
            tree[key] = _put_back(value, nonce, found)
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            if type(value) not in (float, int, bool):
                tree[i] = _put_back(value, nonce, found)
    return tree


_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[,:][ \t\r\n]*')


def _style(skeleton: bytes, clue: _Clue, bom: bool) -> Style:
    """The layout, as the beginning and the end of the skeleton show it."""
    head = skeleton[:65536]
    body = skeleton.strip(b" \t\r\n")
    end = skeleton[len(skeleton.rstrip(b" \t\r\n")) :].decode()
    indent, newline, comma, colon = None, "\n", ",", ":"
    opening = re.match(rb"[\[{](\r?\n)([ \t]*)", body[:256])
    if opening:
        newline, indent = opening[1].decode(), opening[2].decode()
    separators: dict[bytes, str] = {}
    for token in _TOKEN.finditer(head):
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


# Writing


def save(
    checkpoint: Checkpoint, path: Path, *, force: bool = False, progress: Progress | None = None, **_: Any
) -> list[Path]:
    """Write the document with its tensors in place, laid out in its style.

    `Unsupported` for a number that is not finite, which JSON can't hold, naming tensor and index.
    """
    path = Path(path)
    inputs = (checkpoint.source,) if checkpoint.source else ()
    with Output(path, force=force, inputs=inputs) as out:
        render(checkpoint, out.file.write, progress)
    return [path]


def render(checkpoint: Checkpoint, write: Callable[[bytes], Any], progress: Progress | None = None) -> None:
    """The document's bytes, piece by piece, to `write`."""
    if "document" not in checkpoint.metadata:
        raise UsageError("this checkpoint is no document; translate it to JSON's dialect first")
    document, style = checkpoint.metadata["document"], checkpoint.metadata.get("style") or Style()
    if not isinstance(style, Style):  # from another container
        style = Style()
    writer = _Writer(checkpoint.tensors, style, write, progress)
    if style.bom:
        write(BOM)
    writer.value(document, 0)
    write(style.end.encode())


def is_exact(checkpoint: Checkpoint) -> bool:
    """Whether rendering gives the file that it was opened from, byte for byte.  Reads the file again."""
    assert checkpoint.source is not None
    same = True
    with open_regular(checkpoint.source) as file:

        def compare(piece: bytes) -> None:
            nonlocal same
            same = same and file.read(len(piece)) == piece

        render(checkpoint, compare)
        return same and not file.read(1)


class _Writer:
    def __init__(
        self, tensors: dict[str, Tensor], style: Style, write: Callable[[bytes], Any], progress: Progress | None
    ):
        self.tensors, self.style, self.write, self.progress = tensors, style, write, progress
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
        tensor = tensor.reshaped(slot.shape)
        ints = None
        if slot.ints and (self.style.numbers == "python" or slot.ints == "all"):
            ints = np.full(tensor.n_elements, slot.ints == "all")
            if slot.ints != "all":
                index = np.asarray(slot.ints, np.intp)
                ints[index[(index >= 0) & (index < ints.size)]] = True
        self.rows = self._rows(tensor, ints)
        if slot.form == "indexed":
            self.indexed(slot.shape, level)
        else:
            self.nested(slot.shape, level)

    def _rows(self, tensor: Tensor, ints: NDArray[np.bool_] | None) -> Iterator[bytes]:
        style = self.style.numbers
        for start, stop in tensor.slabs(1 << 20):
            rows = tensor.rows(start, stop).astype(np.float64)
            if not np.isfinite(rows).all():
                i = np.argwhere(~np.isfinite(rows))[0]
                where = np.unravel_index((start + i[0]) * tensor.row_len + i[1], tensor.shape)
                raise Unsupported(
                    f"tensor {tensor.name!r} is {rows[tuple(i)]} at {list(map(int, where))}, which JSON can't hold; "
                    "repair the model or choose another format"
                )
            for k, values in enumerate(rows):
                first = (start + k) * tensor.row_len
                yield row(values, style, None if ints is None else ints[first : first + tensor.row_len])
            if self.progress is not None:
                self.progress((stop - start) * tensor.row_bytes, tensor.name)

    def nested(self, shape: tuple[int, ...], level: int) -> None:
        write, gap, between = self.write, self.gap(level + 1), self.between(level + 1)
        write(b"[" + gap)
        if len(shape) == 1:
            text = next(self.rows)
            write(text if between == b"," else text.replace(b",", between))
        elif len(shape) == 2:  # many rows: few calls
            inner, comma = self.gap(level + 2), self.between(level + 2)
            start, end = b"[" + inner, gap + b"]"
            for i in range(shape[0]):
                text = next(self.rows)
                if comma != b",":
                    text = text.replace(b",", comma)
                write((between if i else b"") + start + text + end)
        else:
            for i in range(shape[0]):
                if i:
                    write(between)
                self.nested(shape[1:], level + 1)
        write(self.gap(level) + b"]")

    def indexed(self, shape: tuple[int, ...], level: int) -> None:
        if len(shape) > 1:
            self.write(b"[" + self.gap(level + 1))
            for i in range(shape[0]):
                if i:
                    self.write(self.between(level + 1))
                self.indexed(shape[1:], level + 1)
            self.write(self.gap(level) + b"]")
            return
        items = [b'"%d"%b%b' % (i, self.colon, x) for i, x in enumerate(next(self.rows).split(b","))]
        self.write(b"{" + self.gap(level + 1) + self.between(level + 1).join(items) + self.gap(level) + b"}")
