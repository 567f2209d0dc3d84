"""What `--json` prints, one shape for every command: `{"command", "version", "result"}`, or `"error"` for the last.

docs/json-output.md documents the results; `tests/cli/test_json_output.py` holds them to it.
"""

from __future__ import annotations

import json
from typing import Any

import click

import llmconv

__all__ = ["emit", "text"]


def text(result: Any = None, *, error: Any = None, command: str | None = None) -> str:
    """The envelope of a command's result or error, as JSON that any parser takes (no NaN, no infinity)."""
    from llmconv.show import for_json  # loads numpy, which `--help` needn't wait for

    context = click.get_current_context(silent=True)
    name = command or (context.info_name if context else None)
    body = {"error": for_json(error)} if error is not None else {"result": for_json(result)}
    whole = {"command": name, "version": llmconv.__version__, **body}
    return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False, default=str)


def emit(result: Any) -> None:
    """Print a command's result."""
    click.echo(text(result))
