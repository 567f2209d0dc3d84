"""What the name of a model says: "Qwen2.5-7B-Instruct-v2" is a base, a size, a tuning and a version.

The rules are those of llama.cpp's converter (gguf-py's `metadata`), so that both make the same keys of a name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

__all__ = ["Named", "named", "title"]

_VERSION = re.compile(r"(v|iter)?\d+([.]\d+)*", re.IGNORECASE)
_TYPE = re.compile(r"i?q\d(_\w)*|b?fp?(16|32)", re.IGNORECASE)
_SIZE = re.compile(r"(([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?|small|mini|medium|large|x?xl)", re.IGNORECASE)
_TUNED = re.compile(r"chat|instruct|vision|lora", re.IGNORECASE)
_LOWER = re.compile(r"(v\d+(?:\.\d+)*|\d.*)")


@dataclass(frozen=True)
class Named:
    """The parts of a model's name; None where it says nothing of the kind."""

    full: str | None = None
    organization: str | None = None
    basename: str | None = None
    finetune: str | None = None
    version: str | None = None
    size_label: str | None = None


@dataclass
class _Part:
    text: str
    kinds: set[str]


def title(name: str) -> str:
    """A name as a title: dashes to spaces, words capitalized unless they are numbers or versions."""
    words = name.strip().replace("-", " ").split()
    return " ".join(w.title() if w.islower() and not _LOWER.fullmatch(w) else w for w in words)


def named(name: str, parameters: int) -> Named:
    """The parts of "organization/model-name".

    parameters: how many the model has, which tells a size from a length of context ("-128k"); negative for an adapter,
    of which only the least size is known; 0 where it is not known.
    """
    if " " in name:
        return Named(name)
    organization, _, full = name.rpartition("/") if "/" not in name else name.partition("/")
    parts = [_Part(text, set()) for text in full.split("-") if text]
    for i, part in enumerate(parts):
        _classify(part, i, parameters)
    sizes = [p for p in parts if "size" in p.kinds]
    if any(c.isdecimal() for p in sizes for c in p.text):  # then a word is none
        for part in sizes:
            if all(c.isalpha() for c in part.text):
                part.kinds.remove("size")
    _find_base(parts)
    tuned, version = (
        _joined(parts, lambda k: "tuned" in k),
        _joined(parts, lambda k: "version" in k and "base" not in k),
    )
    size = "-".join(dict.fromkeys(p.text for p in parts if "size" in p.kinds)) or None
    base = _joined(parts, lambda k: "base" in k) if size or tuned or version else None
    known = None if organization.startswith(".") else organization
    return Named(full, known or None, base, tuned, version, size)


def _joined(parts: Iterable[_Part], wanted: Callable[[set[str]], bool]) -> str | None:
    return "-".join(p.text for p in parts if wanted(p.kinds)) or None


def _classify(part: _Part, place: int, parameters: int) -> None:
    """What a part of a name is by itself: a version, a type, a size, a way of tuning."""
    if _VERSION.fullmatch(part.text):
        part.kinds.add("version")
    elif _TYPE.fullmatch(part.text):
        part.kinds.add("type")
        part.text = part.text.upper()
    elif place and _SIZE.fullmatch(part.text):
        part.text, kind = _sized(part.text, parameters)
        part.kinds.add(kind)
    elif place and _TUNED.fullmatch(part.text):
        part.kinds.add("type" if parameters < 0 and part.text.lower() == "lora" else "tuned")


def _sized(text: str, parameters: int) -> tuple[str, str]:
    """A size as it is written, and whether it is one; "7b1" is 7.1B."""
    text = text.replace("_", ".")
    if text[-1].isdecimal():
        text = f"{text[:-2]}.{text[-1]}{text[-2]}"
    if len(text) > 1 and text[-2].isdecimal() and text[-1] in "kmbt":
        text = text[:-1] + text[-1].upper()
    try:
        stated = float(text[:-1]) * pow(1000, " KMBT".find(text[-1]))
    except ValueError:
        return text, "size"
    too_small = parameters < 0 and stated < abs(parameters) // 8
    if too_small or (parameters > 0 and abs(stated - parameters) > 7 * parameters // 8):
        return text[:-1] + text[-1].lower(), "tuned"  # a length of context
    return text, "size"


def _find_base(parts: list[_Part]) -> None:
    """The parts at the start are the base's name, but for versions at its end; what is nothing else is a tuning."""
    at_start = True
    for part in parts:
        if at_start and ("version" in part.kinds or (not part.kinds and part.text[0].isalpha())):
            part.kinds.add("base")
        else:
            at_start = False
            if not part.kinds:
                part.kinds.add("tuned")
    for part in reversed(parts):
        if "base" not in part.kinds or len(part.kinds) < 2:
            break
        part.kinds.remove("base")
