"""Command ollama."""

from __future__ import annotations

from pathlib import Path

import click

import llmconv
from llmconv.cli import complete, envelope
from llmconv.cli.options import PATH, Bar, cache_option, force_option, json_option, notes, quiet_option, say

__all__ = ["ollama"]


@click.command()
@click.argument("model", type=PATH)
@click.argument("folder", type=PATH, required=False)
@click.option(
    "-t", "--type", metavar="TYPE", shell_complete=complete.types, help="Quantize to it.  [default: as it is]"
)
@click.option("--adapter", "adapters", type=PATH, multiple=True, metavar="PATH", help="PEFT's folder or a GGUF.")
@click.option("--system", metavar="TEXT", help="The system text.  [default: the chat template's own]")
@click.option("--num-ctx", type=click.IntRange(min=1), metavar="N", help="Tokens of context.  [default: Ollama's own]")
@force_option
@cache_option
@json_option
@quiet_option
def ollama(
    model: Path,
    folder: Path | None,
    type: str | None,
    adapters: tuple[Path, ...],
    system: str | None,
    num_ctx: int | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make MODEL one of Ollama's: a FOLDER with its GGUF and a Modelfile, or a Modelfile beside a GGUF.

    The Modelfile has the chat template in Go, stops, sampling and the system text; then: ollama create NAME -f FOLDER.

    \b
    Examples:
      llmconv ollama model-Q4_K_M.gguf
      llmconv ollama hf://org/name out/ -t Q4_K_M
      llmconv ollama model.gguf out/ --adapter ./adapter --system 'You answer in one word.' --num-ctx 8192
    """
    with Bar(quiet or as_json, model.name) as progress:
        made = llmconv.to_ollama(
            model, folder, type=type, adapters=adapters, system=system, num_ctx=num_ctx, force=force, progress=progress
        )
    if quiet:
        return
    if as_json:
        envelope.emit(made.as_dict())
        return
    notes(list(made.notes))
    say(f"{made.path}: {len(made.files) - 1} files; ollama create NAME -f {made.path}")
