"""The exceptions of llmconv: one tree, each message one sentence a user can act on.

A message names the file, the item (tensor, key or JSON path), what was found, what was expected and,
after a semicolon, the way out.  The command prints it on stderr and exits with `exit_code`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

__all__ = ["BadFile", "LlmconvError", "OutputError", "Unsupported", "UsageError", "about", "at"]


class LlmconvError(Exception):
    """Base of every error that llmconv raises on purpose."""

    exit_code = 1


class BadFile(LlmconvError):
    """An input file breaks its format's rules or contradicts itself."""


class Unsupported(LlmconvError):
    """The input is valid, but this conversion can't be done (the message says what can)."""


class OutputError(LlmconvError):
    """The output can't be written: it exists, has no room, or its folder is not writable."""


class UsageError(LlmconvError):
    """The call itself is wrong: an unknown type, an impossible combination of options."""

    exit_code = 2


def at(path: str | os.PathLike[str], item: str | None = None) -> str:
    """The start of a message: `model.gguf` or `model.gguf: tensor 'x'`."""
    name = os.fsdecode(path)
    return f"{name}: {item}" if item else name


@contextlib.contextmanager
def about(path: str | os.PathLike[str] | None) -> Iterator[None]:
    """Put the file's name before what is said of an input here, where the message does not name it already."""
    try:
        yield
    except (BadFile, Unsupported) as error:
        if path is None or os.fsdecode(path) in str(error):
            raise
        raise type(error)(f"{at(path)}: {error}") from None
