"""What a shell's completion offers beside commands, options and files: names that llmconv or the given file knows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem

__all__ = ["keys", "layouts", "pre_tokenizers", "presets", "types"]

_Items = list[CompletionItem]


def _starting(names: Iterable[str], begun: str, files: bool = False) -> _Items:
    """Names that go on from what is written, whatever its case; the last of several after commas."""
    before, comma, last = begun.rpartition(",")
    found = [CompletionItem(before + comma + name) for name in names if name.lower().startswith(last.lower())]
    return [*found, CompletionItem(begun, type="file")] if files else found


def types(ctx: click.Context, param: click.Parameter, incomplete: str) -> _Items:
    from llmconv.quant.filetypes import FILE_TYPES, NO_FILE_TYPES

    return _starting([*FILE_TYPES, "COPY", *NO_FILE_TYPES], incomplete, files=isinstance(param, click.Argument))


def presets(ctx: click.Context, param: click.Parameter, incomplete: str) -> _Items:
    from llmconv.convert.tables.presets import PRESETS

    return _starting(PRESETS, incomplete, files=isinstance(param, click.Argument))


def layouts(ctx: click.Context, param: click.Parameter, incomplete: str) -> _Items:
    from llmconv.convert import layouts as tables

    return _starting(tables.names(), incomplete)


def pre_tokenizers(ctx: click.Context, param: click.Parameter, incomplete: str) -> _Items:
    from llmconv.convert.vocab.pre import TABLE

    return _starting(sorted(name for row in TABLE for name in row.names), incomplete)


def keys(ctx: click.Context, param: click.Parameter, incomplete: str) -> _Items:
    """The metadata keys of the file that the command is given, with "=" where a value follows."""
    found: list[str] = []
    with contextlib.suppress(Exception):  # a shell waits for names, not for what is wrong with a file
        import llmconv

        found = list(llmconv.open(ctx.params.get("file") or ctx.args[0]).metadata)
    end: Any = "" if param.name == "remove" else "="
    return _starting([key + end for key in found], incomplete)
