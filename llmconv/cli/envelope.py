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
    body = {"error": for_json(error)} if error is not None else {"result": alike(for_json(result))}
    whole = {"command": name, "version": llmconv.__version__, **body}
    return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False, default=str)


_NAMES = {
    "size": "nbytes",
    "bytes": "nbytes",
    "source_size": "source_nbytes",
    "ppl": "perplexity",
    "ppl_a": "perplexity_a",
    "ppl_b": "perplexity_b",
    "ppl_a_stderr": "perplexity_a_stderr",
    "ppl_b_stderr": "perplexity_b_stderr",
    "ppl_stderr": "perplexity_stderr",
    "ppl_ratio": "perplexity_ratio",
    "ppl_ratio_stderr": "perplexity_ratio_stderr",
}
_INNER = {"outputs", "rows", "run", "tensors"}  # keys whose objects are ours; others may have a model's own names


def alike(value: Any) -> Any:
    """The same things under the same names, whichever command says them: `nbytes`, `perplexity`."""
    if isinstance(value, list):
        return [alike(v) for v in value]
    if not isinstance(value, dict):
        return value
    return {
        _NAMES.get(key, key): alike(v) if key == "run" or (key in _INNER and isinstance(v, list)) else v
        for key, v in value.items()
    }


def emit(result: Any) -> None:
    """Print a command's result."""
    click.echo(text(result))
