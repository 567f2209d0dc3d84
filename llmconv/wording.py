"""How the sentences of errors are worded: short whatever is in them, and in the terms of whoever reads them.

Messages are written with the command's options, as most people read them: `use --force`.  A program has no options but
keywords: `use force=True`.
"""

from __future__ import annotations

import re

__all__ = ["as_keywords", "in_short_words", "one_line", "shortened"]

MOST = 300
"""Characters of a sentence, its file's name aside."""
MOST_OF_PATH = 160
MOST_OF_WORD = 80

_FLAGS = {
    "activation-checkpointing", "allow-nonfinite", "allow-overflow", "allow-requantize", "force", "json-compact",
    "keep-split", "plot", "portable", "provenance", "pure", "resumable", "resume", "strict",
}  # fmt: skip
_KEYWORDS = {"from": "from_checkpoint", "plot": "plots"}  # where an option is not called as its keyword
_WORDS = r"(?:plain|named|cpu|fsdp)\b"  # that are values of an option, not the sentence going on
_OPTION = re.compile(
    rf"(?P<command>llmconv [a-z-]+(?: --?[a-z-]+)+)|(?<![\w/-])--(?P<name>[a-z][a-z-]+)(?: (?P<value>'[^']*'|{_WORDS}|"
    r"(?=[\w,.]*[0-9A-Z])[\w,.…]*[\w…]))?"
)


def as_keywords(sentence: str) -> str:
    """A sentence about options as one about keyword arguments; commands that it tells to run stay as they are."""

    def replaced(found: re.Match[str]) -> str:
        if found["command"]:
            return found["command"]
        name, value = found["name"], found["value"]
        positive = name.removeprefix("no-")
        keyword = _KEYWORDS.get(positive, positive.replace("-", "_"))
        if positive in _FLAGS:
            return f"{keyword}={positive == name}" + (f" {value}" if value else "")
        return keyword if not value else f"{keyword}={value}" if value[0] == "'" else f'{keyword}="{value}"'

    return _OPTION.sub(replaced, sentence) if "--" in sentence else sentence


def shortened(sentence: str) -> str:
    """The sentence, its longest words and then its middle left out where it is too long to read."""
    if len(sentence) <= MOST:
        return sentence
    path, colon, rest = sentence.partition(": ")
    if not colon or len(path) > 4096 or ";" in path:
        path, rest = "", sentence
    path = _without_middle(path, MOST_OF_PATH)
    most = MOST - min(len(path), MOST // 4)
    return path + colon * bool(path) + _without_middle(in_short_words(rest, most), most)


def in_short_words(sentence: str, most: int = MOST) -> str:
    """The sentence, the middle of its longest words left out where it is longer than `most`."""
    if len(sentence) <= most:
        return sentence
    return re.sub(rf"\S{{{MOST_OF_WORD + 1},}}", lambda found: _without_middle(found[0], MOST_OF_WORD), sentence)


def _without_middle(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[: most * 2 // 3 - 1]}…{text[-(most // 3) :]}"


def one_line(text: str) -> str:
    """A message as one printable line: control characters and undecodable bytes escaped."""
    safe = "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in text)
    return safe.encode("utf-8", "backslashreplace").decode()
