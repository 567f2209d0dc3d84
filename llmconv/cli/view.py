"""The command `view`: a model as a page for the browser."""

from __future__ import annotations

from pathlib import Path

import click

import llmconv
from llmconv.cli import envelope
from llmconv.cli.options import PATH, Bar, cache_option, force_option, human, json_option, quiet_option, say

__all__ = ["view"]


@click.command()
@click.argument("file", type=PATH)
@click.option("-o", "--output", type=PATH, metavar="PATH", help="The page  [default: FILE.html]")
@click.option("--stats/--no-stats", default=True, show_default=True, help="Read every tensor: histograms, outliers.")
@force_option
@json_option
@quiet_option
@cache_option
def view(file: Path, output: Path | None, stats: bool, force: bool, as_json: bool, quiet: bool) -> None:
    """Write a page about FILE that any browser shows: metadata, tensors by layer, vocabulary, chat template.

    One file that asks no network: histograms of a tensor open on a click, the vocabulary can be searched.

    \b
    Examples:
      llmconv view model.gguf
      llmconv view ./TinyLlama -o page.html --no-stats
    """
    with Bar(quiet or as_json, file.name) as progress:
        path = llmconv.view(file, output, stats=stats, force=force, progress=progress)
    if as_json and not quiet:
        envelope.emit({"path": path, "size": path.stat().st_size})
    elif not as_json:
        say(f"{path}: {human(path.stat().st_size)}", quiet)
