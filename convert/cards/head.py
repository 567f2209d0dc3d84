"""The head of a model card: YAML between two lines of "---", as far as cards use it.

Read are mappings, lists, both in blocks and in brackets, texts (plain, quoted, folded, literal), YAML 1.1's words for
numbers, truth and nothing, anchors with what refers to them, and `<<`, which takes in another mapping's entries.  Tags
and several documents are not; they are a `ValueError` with the line.
Source: the YAML 1.1 specification (yaml.org/spec/1.1), of which this is a part.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ["read_head", "written"]

_DEPTH = 20
_MOST = 10_000
"""Values that references may stand for in one head: each of them may be of others."""
_NAME = re.compile(r"[&*]([^\s,\[\]{}]+)\s*")
_KEY = re.compile(
    r"""("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^\s"'#\[\]{}&*!|>%@`,-][^#]*?|-[^\s#][^#]*?)\s*:(?:\s+(.*))?"""
)
_WORDS = {word: value for value, words in (
    (None, "~ null Null NULL"), (True, "yes Yes YES true True TRUE on On ON"),
    (False, "no No NO false False FALSE off Off OFF"),
) for word in words.split()}  # fmt: skip
_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+][0-9]+)?|\.[0-9_]+([eE][-+][0-9]+)?)")
_ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\", "/": "/", "r": "\r", "0": "\0", " ": " ", "e": "\x1b"}

Line = tuple[int, str]
"""Indentation, and the text behind it."""


class _Here(NamedTuple):
    """How deep a value lies, and the values that were given names (anchors) so far."""

    depth: int
    named: dict[str, Any]

    def inside(self) -> _Here:
        if self.depth >= _DEPTH:
            raise ValueError("nested too deep")
        return _Here(self.depth + 1, self.named)

    def referred(self, name: str) -> Any:
        """The value that a reference stands for."""
        if name not in self.named:
            raise ValueError(f"the reference *{name:.40}")
        self.named[""] = self.named.get("", 0) + _count(self.named[name], _MOST)
        if self.named[""] >= _MOST:
            raise ValueError("references to too many values")
        return self.named[name]


def _count(value: Any, most: int) -> int:
    """How many values are in one, up to `most`."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found = 1
    for item in inside:
        if found >= most:
            break
        found += _count(item, most - found)
    return found


def read_head(text: str) -> dict[str, Any]:
    """The head of a card, {} where it has none; `ValueError` for YAML that is not read here."""
    lines = text.splitlines()
    if not lines or lines[0] != "---":
        return {}
    end = lines.index("---", 1) if "---" in lines[1:] else len(lines)
    end = lines.index("...", 1, end) if "..." in lines[1:end] else end  # the end of a document in YAML
    found = [line.replace("\t", "  ") for line in lines[1:end]]
    value = _block([(len(line) - len(line.lstrip(" ")), line.strip(" ")) for line in found], _Here(0, {}))
    return value if isinstance(value, dict) else {}


def _block(lines: Sequence[Line], here: _Here) -> Any:
    """The value that these lines are."""
    while lines and _empty(lines[0]):
        lines = lines[1:]
    if not lines:
        return None
    indent, first = lines[0]
    if first == "-" or first.startswith("- "):
        return [_item(part, indent, here) for part in _parts(lines, indent, lambda t: t == "-" or t.startswith("- "))]
    if _KEY.fullmatch(first):
        out: dict[str, Any] = {}
        for part in _parts(lines, indent, lambda t: bool(_KEY.fullmatch(t))):
            match = _KEY.fullmatch(part[0][1])
            assert match
            out[str(_scalar(match[1]))] = _value(match[2] or "", part[1:], indent, here)
        return _taken_in(out)
    return _flow([text for _, text in lines], here)


def _taken_in(entries: dict[str, Any]) -> dict[str, Any]:
    """A mapping with the entries of those that it takes in by `<<`; the first to have one wins."""
    if "<<" not in entries:
        return entries
    own = {key: value for key, value in entries.items() if key != "<<"}
    others = entries["<<"] if isinstance(entries["<<"], list) else [entries["<<"]]
    for other in others:
        if not isinstance(other, dict):
            raise ValueError("what << takes in")
        own = {**other, **own}
    return own


def _empty(line: Line) -> bool:
    return not line[1] or line[1].startswith("#")


def _parts(lines: Sequence[Line], indent: int, starts: Any) -> list[list[Line]]:
    """The lines of a block, a list for each of its entries."""
    out: list[list[Line]] = []
    for line in lines:
        if line[0] == indent and line[1] and starts(line[1]):
            out.append([line])
        elif (not _empty(line) and line[0] < indent) or (line[0] == indent and not _may_follow(line[1])):
            raise ValueError(f"the line {line[1]!r:.40}")
        else:
            out[-1].append(line)
    return out


def _may_follow(text: str) -> bool:
    """Whether a line that is not indented further may belong to the entry above it: a list, a bracket's end."""
    return not text or text[0] in "#-]}"


def _item(lines: list[Line], indent: int, here: _Here) -> Any:
    """An entry of a list: `- ` and a value that may be a whole block."""
    text = lines[0][1][1:]
    inner = text.strip()
    if (_KEY.fullmatch(inner) and inner[0] not in "\"'") or inner.startswith("- "):
        return _block([(indent + 1 + len(text) - len(text.lstrip()), inner), *lines[1:]], here.inside())
    return _value(inner, lines[1:], indent, here)


def _value(text: str, below: Sequence[Line], indent: int, here: _Here) -> Any:
    """What stands behind a key or a dash, and below it."""
    if text[:1] in ("&", "*") and (name := _NAME.match(text)):
        rest = text[name.end() :]
        if text[0] == "&" and not _KEY.fullmatch(rest):  # else the key is named, not what stands behind it
            value = here.named[name[1]] = _value(rest, below, indent, here)
            return value
        if text[0] == "*" and all(map(_empty, [(0, rest), *below])):
            return here.referred(name[1])
    if text[:1] in ("&", "*", "!", "%", "@", "`"):
        raise ValueError(f"the value {text!r:.40}")
    if text[:1] in ("|", ">"):
        return _folded(text, below)
    if not text or text.startswith("#"):
        return _block(below, here.inside())
    return _flow([text, *(line[1] for line in below)], here)


def _folded(style: str, below: Sequence[Line]) -> str:
    """A text of several lines: kept as they are ("|") or joined (">")."""
    indent = min((n for n, text in below if text), default=0)
    lines = [" " * max(n - indent, 0) + text for n, text in below]
    empty = 0
    while lines and not lines[-1]:
        lines.pop()
        empty += 1
    end = "" if "-" in style[:3] or not lines else "\n" + ("\n" * empty if "+" in style[:3] else "")
    if style.startswith("|"):
        return "\n".join(lines) + end
    return _joined(lines) + end


def _joined(lines: Sequence[str]) -> str:
    """Lines as one, an empty one between them as the end of a line."""
    return re.sub(r"(\n+)", lambda m: m[1][1:] or " ", "\n".join(lines))


def _flow(lines: Sequence[str], here: _Here) -> Any:
    """A scalar or brackets, over one line or several."""
    if lines[0][0] in "\"'":
        text = _joined(lines)
        rest = text[len(_quoted(text, 0)) :].strip()
        if rest and not rest.startswith("#"):
            raise ValueError(f"the value {text!r:.40}")
        return _scalar(_quoted(text, 0))
    bare = [re.sub(r"(^|\s)#.*", "", line).strip() for line in lines]
    text = " ".join(line for line in bare if line)
    if text[:1] not in ("[", "{"):
        return _scalar(text)
    value, end = _brackets(text, 0, here)
    if text[end:].strip():
        raise ValueError(f"the value {text!r:.40}")
    return value


def _quoted(text: str, start: int) -> str:
    pattern = r'"(?:[^"\\]|\\.)*"' if text[start] == '"' else r"'(?:[^']|'')*'"
    if match := re.compile(pattern).match(text, start):
        return match[0]
    raise ValueError(f"the quote {text[start:]!r:.40}")


def _brackets(text: str, at: int, here: _Here) -> tuple[Any, int]:
    """[a, b] or {a: b} from a place on; the value and where it ends."""
    close = "]" if text[at] == "[" else "}"
    items: list[Any] = []
    out: dict[str, Any] = {}
    at += 1
    while True:
        while text[at : at + 1] in (" ", ","):
            at += 1
        if text[at : at + 1] == close:
            return (items if close == "]" else _taken_in(out)), at + 1
        value, at = _entry(text, at, here)
        if close == "]":
            items.append(value)
            continue
        colon = re.compile(r"\s*:\s*").match(text, at)
        if not colon:
            raise ValueError(f"the value {text!r:.40}")
        out[str(value)], at = _entry(text, colon.end(), here)


def _entry(text: str, at: int, here: _Here) -> tuple[Any, int]:
    if text[at : at + 1] in ("&", "*") and (name := _NAME.match(text, at)):
        if text[at] == "*":
            return here.referred(name[1]), name.end()
        here.named[name[1]], at = _entry(text, name.end(), here)
        return here.named[name[1]], at
    if text[at : at + 1] in ("[", "{"):
        return _brackets(text, at, here.inside())
    if text[at : at + 1] in ('"', "'"):
        quoted = _quoted(text, at)
        return _scalar(quoted), at + len(quoted)
    match = re.compile(r"(?:[^,\[\]{}:]|:(?!\s))+").match(text, at)
    if not match:
        raise ValueError(f"the value {text!r:.40}")
    return _scalar(match[0].strip()), match.end()


def _scalar(text: str) -> Any:
    if text[:1] == '"':
        return re.sub(r"\\(?:u([0-9a-fA-F]{4})|(.))", _unescaped, text[1:-1])
    if text[:1] == "'":
        return text[1:-1].replace("''", "'")
    if not text or text in _WORDS:
        return _WORDS.get(text)
    if _INT.fullmatch(text) and len(text) < 300:
        return int(text.replace("_", ""))
    return float(text.replace("_", "")) if _FLOAT.fullmatch(text) else text


def _unescaped(match: re.Match[str]) -> str:
    if match[1]:
        return chr(int(match[1], 16))
    if match[2] not in _ESCAPES:
        raise ValueError(f"the escape \\{match[2]}")
    return _ESCAPES[match[2]]


def written(key: str, value: Any) -> str:
    """A key of a head with a text, a list of texts or a list of mappings, as YAML."""
    if isinstance(value, str):
        return f"{key}: {_text(value)}\n"
    out = f"{key}:\n"
    for item in value:
        pairs = [f"{k}: {_text(v)}" for k, v in item.items()] if isinstance(item, dict) else [_text(item)]
        out += "- " + "\n  ".join(pairs) + "\n"
    return out


def _text(value: str) -> str:
    """A text as YAML: bare where it can't be taken for anything else."""
    if re.fullmatch(r"[A-Za-z][\w./+-]*( [\w./+-]+)*", value, re.ASCII) and value not in _WORDS:
        return value
    escaped = "".join(
        f"\\u{ord(c):04x}" if not c.isprintable() and ord(c) < 0x10000 else "\\" + c if c in '"\\' else c for c in value
    )
    return f'"{escaped}"'
