"""`llmconv perplexity`."""

from __future__ import annotations

from pathlib import Path

import click

import llmconv
from llmconv.cli import envelope, streams
from llmconv.cli.options import PATH, STREAM, Bar, cache_option, notes
from llmconv.cli.running.measuring import (
    chunks_option,
    context_option,
    memory_option,
    plot_option,
    run_options,
    with_error,
)

__all__ = ["perplexity"]


@click.command()
@click.argument("model", type=PATH)
@click.argument("text", type=STREAM)
@context_option
@chunks_option
@plot_option
@memory_option
@click.option("--stride", type=click.IntRange(min=1), metavar="N", help="Slide a window by N tokens, as papers do.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@run_options
@cache_option
def perplexity(
    model: Path,
    text: Path,
    context: int | None,
    chunks: int | None,
    plot: Path | None,
    memory: int | None,
    stride: int | None,
    as_json: bool,
    device: str,
    dtype: str,
    activations: str,
    quiet: bool,
) -> None:
    """How well MODEL (of any format) predicts TEXT: exp of the mean loss per token, ± its standard error.

    The text is cut into chunks as llama.cpp's perplexity tool does, so that figures compare; --stride gives the sliding
    window of papers.  A JSON list of {"input": …, "target": …} pairs is scored position by position.

    \b
    Examples:
      llmconv perplexity model.gguf wiki.txt -c 512 --chunks 50
      llmconv perplexity hf-folder/ wiki.txt -c 1024 --stride 512
      llmconv perplexity model.json training-data.json --dtype f64 --json
    """
    with streams.given(text, ".txt") as text, Bar(quiet) as progress:
        found = llmconv.perplexity(
            model,
            text,
            context=context,
            chunks=chunks,
            plot=plot,
            stride=stride,
            device=device,
            dtype=dtype,
            memory=memory,
            activations=activations,
            progress=progress,
        )
    notes(found.notes, quiet)
    if as_json:
        envelope.emit(found.as_dict())
        return
    click.echo(f"perplexity  {with_error(found.perplexity, found.stderr)}")
    if found.last_position_perplexity is not None:
        click.echo(f"last position  {found.last_position_perplexity:.4f}")
    if not quiet:
        kind = "pairs" if found.last_position_perplexity is not None else f"chunks of {found.context}"
        click.echo(
            f"{found.tokens:,} tokens scored in {found.chunks:,} {kind}, {found.tokens_per_second:,.0f} tokens/s"
        )
