"""Go's text/template, as much of it as Ollama's templates of plain turns use: range, if, else, index, eq, ne, and."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

__all__ = ["executed"]

_WORD = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[()]|[^\s()"]+)')


def executed(template: str, messages: Sequence[dict[str, str]]) -> str:
    """The text that a template makes of `.Messages`."""
    pieces = re.split(r"\{\{(.*?)\}\}", template, flags=re.DOTALL)
    tokens = [("do" if i % 2 else "text", piece.strip() if i % 2 else piece) for i, piece in enumerate(pieces)]
    nodes, rest = _block(tokens, 0)
    assert rest == len(tokens), tokens[rest]
    root = {"Messages": [{"Role": m["role"], "Content": m["content"]} for m in messages]}
    return _shown(nodes, root, {"$": root})


def _block(tokens: list[tuple[str, str]], at: int) -> tuple[list[Any], int]:
    """Nodes up to an `else` or `end` of the block around, and where that is."""
    nodes: list[Any] = []
    while at < len(tokens):
        kind, text = tokens[at]
        if kind == "text":
            nodes.append(text)
            at += 1
            continue
        word = text.split()[0]
        if word in ("else", "end"):
            break
        if word in ("if", "range"):
            body, at = _block(tokens, at + 1)
            other: list[Any] = []
            if tokens[at][1] == "else":
                other, at = _block(tokens, at + 1)
            assert tokens[at][1] == "end", tokens[at]
            nodes.append((word, text[len(word) :].strip(), body, other))
            at += 1
        else:
            nodes.append(("show", text))
            at += 1
    return nodes, at


def _shown(nodes: list[Any], dot: Any, names: dict[str, Any]) -> str:
    out = ""
    for node in nodes:
        match node:
            case str():
                out += node
            case ("show", text):
                out += str(_value(text, dot, names))
            case ("if", text, body, other):
                out += _shown(body if _value(text, dot, names) else other, dot, names)
            case ("range", text, body, _):
                index, item, of = re.fullmatch(r"(\$\w+), (\$\w+) := (\S+)", text).groups()
                for i, one in enumerate(_value(of, dot, names)):
                    out += _shown(body, one, {**names, index: i, item: one})
    return out


def _value(text: str, dot: Any, names: dict[str, Any]) -> Any:
    words = _WORD.findall(text)
    value, rest = _call(words, dot, names)
    assert not rest, rest
    return value


def _call(words: list[str], dot: Any, names: dict[str, Any]) -> tuple[Any, list[str]]:
    """A command and its operands, up to a closing parenthesis."""
    found = []
    while words and words[0] != ")":
        value, words = _operand(words, dot, names)
        found.append(value)
    first, *rest = found
    match first:
        case ("function", "eq"):
            return rest[0] == rest[1], words
        case ("function", "ne"):
            return rest[0] != rest[1], words
        case ("function", "and"):
            return next((value for value in rest if not value), rest[-1]), words
        case ("function", "index"):
            return rest[0][rest[1]], words
    assert not rest
    return first, words


def _operand(words: list[str], dot: Any, names: dict[str, Any]) -> tuple[Any, list[str]]:
    word, *words = words
    if word == "(":
        value, words = _call(words, dot, names)
        assert words[0] == ")"
        words = words[1:]
        if words and words[0].startswith("."):
            return value[words[0][1:]], words[1:]
        return value, words
    if word[0] == '"':
        return re.sub(r"\\(.)", r"\1", word[1:-1]), words
    if word.isdecimal():
        return int(word), words
    if word[0] in ".$":
        head, *fields = word.split(".")
        value = names[head] if head else dot
        for name in fields:
            value = value[name] if name else value
        return value, words
    return ("function", word), words
