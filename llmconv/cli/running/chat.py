"""`llmconv generate -i`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import click

import llmconv
from llmconv.cli.options import notes
from llmconv.wording import one_line

__all__ = ["converse"]

RESET = "/reset"


def converse(model: Any, quiet: bool, **options: Any) -> None:
    """Lines from standard input, each answered by `model` as its chat template has it, with all that was said before.

    `/reset` begins anew, the end of the input (Ctrl-D) ends it, Ctrl-C an answer.   options: of `llmconv.generate`.
    """
    said: list[dict[str, str]] = []
    known: set[str] = set()
    if sys.stdin.isatty() and not quiet:
        click.echo(f"Ctrl-C stops an answer, {RESET} begins anew, Ctrl-D ends.", err=True)
    while (line := _asked()) is not None:
        if not line.strip():
            continue
        if line.strip() == RESET:
            said.clear()
            continue
        if line.strip().startswith("/") and " " not in line.strip():
            click.echo(f"there is no {one_line(line.strip())[:40]}, only {RESET}", err=True)
            continue
        said.append({"role": "user", "content": line})
        answer, found = _answered(model, said, options)
        said.append({"role": "assistant", "content": answer})
        new = [note for note in (found.notes if found else []) if note not in known]
        known.update(new)
        notes(new, quiet)


def _answered(model: Any, said: list[dict[str, str]], options: dict[str, Any]) -> tuple[str, Any]:
    """What the model says, shown as it comes, and the result; None for one that was stopped."""
    pieces: list[str] = []

    def show(text: str) -> None:
        pieces.append(text)
        click.echo(text, nl=False)

    found = None
    with contextlib.suppress(KeyboardInterrupt):  # what was said so far stays
        found = llmconv.generate(model, said, chat=True, on_text=show, **options)
    click.echo()
    return "".join(pieces), found


def _asked() -> str | None:
    """The next line, None at the end of the input."""
    if sys.stdin.isatty():
        click.echo("> ", nl=False, err=True)
    line = sys.stdin.readline()
    return line.rstrip("\r\n") if line else None
