"""The exceptions of llmconv: one closed tree, each message one sentence a user can act on.

A message names the file, the item (tensor, key or JSON path), what was found, what was expected and, after a semicolon,
the way out.  The command prints it on stderr and exits with `exit_code`.  A program tells them apart by class and reads
what the sentence says as attributes: `except llmconv.MissingTensor as e: e.tensor`.

Sentences are written with the command's options (`--force`); read by a program they speak of keywords (`force=True`).
However long the names in a file are, a message stays short (`llmconv.wording`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from llmconv import wording

__all__ = [
    "BadFile",
    "BadKey",
    "BadWeight",
    "Cancelled",
    "LlmconvError",
    "MissingExtra",
    "MissingTensor",
    "OutputError",
    "OutputExists",
    "UnknownName",
    "UnknownTensor",
    "Unsupported",
    "UsageError",
    "WrongShape",
    "about",
    "at",
    "cut",
    "in_command",
    "more",
    "kind_of",
    "listed",
    "nearest",
    "shown",
    "telling",
    "worded",
]


_spoken_by_command = False


@contextlib.contextmanager
def in_command() -> Iterator[None]:
    """Within it, errors and notes speak of the command's options."""
    global _spoken_by_command
    before, _spoken_by_command = _spoken_by_command, True
    try:
        yield
    finally:
        _spoken_by_command = before


def worded(sentence: str) -> str:
    """A sentence with options in the terms of whoever reads it: the command's, or keyword arguments."""
    return sentence if _spoken_by_command else wording.as_keywords(sentence)


class LlmconvError(Exception):
    """Base of every error that llmconv raises on purpose.

    file: the file or folder it is about, "" where there is none or it is only in the sentence.
    """

    exit_code = 1
    file: str = ""

    def __init__(self, sentence: str = ""):
        super().__init__(wording.shortened(sentence))

    def __str__(self) -> str:
        sentence = str(self.args[0]) if self.args else ""
        return worded(sentence)

    def as_dict(self) -> dict[str, Any]:
        """The class, the sentence and the data, as plain values."""
        data = {k: v for k, v in vars(self).items() if not k.startswith("_")}
        return {"class": type(self).__name__, "message": str(self), **data}

    def __reduce__(self) -> tuple[Any, ...]:  # an error crosses processes whatever its constructor takes
        return _restored, (type(self), self.args, vars(self))


def _restored(cls: type[LlmconvError], args: tuple[Any, ...], data: dict[str, Any]) -> LlmconvError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(data)
    return error


class BadFile(LlmconvError):
    """An input file breaks its format's rules or contradicts itself."""


class MissingTensor(BadFile):
    """A tensor that the model must have is not in the file.   tensor: its name."""

    def __init__(self, where: str, tensor: str, why: str):
        super().__init__(f"{where}: tensor {cut(tensor)} is missing; {why}")
        self.file, self.tensor = where, tensor


class UnknownTensor(BadFile):
    """Tensors that a model of this kind does not have.   tensors: their names."""

    def __init__(self, where: str, tensors: Sequence[str], why: str):
        super().__init__(f"{where}: tensor {cut(tensors[0])}{more(tensors)} {why}")
        self.file, self.tensors = where, list(tensors)

    @property
    def tensor(self) -> str:
        return self.tensors[0]


class WrongShape(BadFile):
    """A tensor has another shape than the model's settings give it.   tensor; found, expected: shapes."""

    def __init__(self, where: str, tensor: str, found: Sequence[int], expected: Sequence[int], by: str):
        super().__init__(f"{where}: tensor {cut(tensor)} has shape {shown(found)}, expected {shown(expected)} {by}")
        self.file, self.tensor, self.found, self.expected = where, tensor, tuple(found), tuple(expected)


class BadKey(BadFile):
    """A setting or metadata key says what it can't say.   key; found: its value; expected: in words."""

    def __init__(self, where: str, key: str, found: Any, expected: str, way_out: str = ""):
        sentence = f"{where}: key {cut(key)} is {cut(found)}, expected {expected}"
        super().__init__(f"{sentence}; {way_out}" if way_out else sentence)
        self.file, self.key, self.found, self.expected = where, key, found, expected


class Unsupported(LlmconvError):
    """The input is valid, but this conversion can't be done (the message says what can)."""


class BadWeight(Unsupported):
    """A weight is not finite, or too large for the type asked for.   tensor, index, value, type."""

    def __init__(
        self, sentence: str, *, tensor: str, index: Sequence[int] = (), value: float | None = None, type: str = ""
    ):
        super().__init__(sentence)
        self.tensor, self.index, self.value, self.type = tensor, list(index), value, type


class OutputError(LlmconvError):
    """The output can't be written: it exists, has no room, or its folder is not writable."""


class OutputExists(OutputError):
    """The output is there already, and nobody said that it may be replaced.   file: its path."""

    def __init__(self, path: str | os.PathLike[str], sentence: str):
        super().__init__(sentence)
        self.file = os.fsdecode(path)


class UsageError(LlmconvError):
    """The call itself is wrong: an unknown type, an impossible combination of options."""

    exit_code = 2


class UnknownName(UsageError):
    """A name that is none of those known.   kind: what it should name; name; known: the names there are; nearest.

    meant: what people call some of them elsewhere, in small letters without - and _ -> the name here.
    way_out: what else helps.
    """

    def __init__(
        self, kind: str, name: str, known: Iterable[str], way_out: str = "", *, meant: Mapping[str, str] | None = None
    ):
        self.kind, self.name, self.known = kind, name, list(known)
        plainly = (meant or {}).get(name.lower().replace("-", "").replace("_", ""))
        near = [plainly] if plainly else _near(name, self.known, 3)
        self.nearest = near[0] if near else None
        hints = [way_out] * bool(way_out) + [f"did you mean {', '.join(near)}?"] * bool(near)
        super().__init__(f"unknown {kind} {cut(name)}; {'; '.join(hints) or f'known: {listed(self.known)}'}")


class MissingExtra(UsageError, ImportError):
    """Something optional is not installed.   module: what is missing; extra: its name among the package's extras."""

    def __init__(self, what: str, module: str, extra: str):
        super().__init__(f"{what} needs {module}; install it with: pip install {module}")
        self.module, self.extra = module, extra


class Cancelled(LlmconvError):
    """Raise it from a progress callback: the work ends at once and leaves nothing behind."""

    exit_code = 130


def at(path: str | os.PathLike[str], item: str | None = None) -> str:
    """The start of a message: `model.gguf` or `model.gguf: tensor 'x'`."""
    name = os.fsdecode(path)
    return f"{name}: {item}" if item else name


def cut(value: Any, most: int = 80) -> str:
    """A value as messages show it: its repr, the middle left out where that is long."""
    if getattr(value, "shape", None) == ():  # a number of numpy's, whose repr says so
        value = value.item()
    try:
        text = repr(value if not isinstance(value, str) or len(value) <= 4 * most else value[: 4 * most])
    except (ValueError, RecursionError):  # Python writes no number of 5000 digits, and no list in a thousand others
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else f"a deep {kind_of(value)}"
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 4 :]}"


def shown(shape: Sequence[int]) -> str:
    """A shape in a message: [4, 8]."""
    return "[" + ", ".join(map(str, shape)) + "]"


def more(names: Sequence[str]) -> str:
    """What follows the first of several names in a message."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names in a message: all of a few, the first of many."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def kind_of(value: Any) -> str:
    """What a wrong argument is, in a message: its type, with the library it is of."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.split('.')[0]}'s {kind.__name__}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that somebody who wrote `name` most likely meant, whatever its case; None when none is near."""
    return next(iter(_near(name, known, 1)), None)


def _near(name: str, known: Iterable[str], most: int) -> list[str]:
    import difflib  # for mistakes alone

    names = {k.lower(): k for k in known}
    return [names[n] for n in difflib.get_close_matches(name[:100].lower(), names, most)]


@contextlib.contextmanager
def telling(what: str) -> Iterator[None]:
    """Say `what` of an interruption (Ctrl-C, SIGTERM) in it: that there is something to go on from."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(what) from None


@contextlib.contextmanager
def about(path: str | os.PathLike[str] | None) -> Iterator[None]:
    """Put the file's name before what is said of an input here, where the message does not name it already."""
    try:
        yield
    except (BadFile, Unsupported) as error:
        if path is not None:
            error.file = error.file or os.fsdecode(path)
            sentence = str(error.args[0])
            if at(path) not in sentence:
                error.args = (wording.shortened(f"{at(path)}: {sentence}"),)
        raise
