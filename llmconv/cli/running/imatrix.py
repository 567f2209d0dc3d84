"""`llmconv imatrix`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

import llmconv
from llmconv.cli import envelope, streams
from llmconv.cli.options import (
    PATH,
    STREAM,
    Bar,
    cache_option,
    device_option,
    force_option,
    json_option,
    notes,
    quiet_option,
    say,
)
from llmconv.cli.reports import table
from llmconv.cli.running.measuring import chunks_option, context_option, memory_option

if TYPE_CHECKING:
    from llmconv.runtime.calibrate.imatrix import ImportanceMatrix

__all__ = ["imatrix"]


@click.command()
@click.argument("model", type=PATH, required=False)
@click.argument("texts", type=STREAM, nargs=-1, metavar="[TEXT]...")
@click.option("-o", "--output", type=PATH, metavar="FILE", help="The matrix to write: GGUF, or .dat by its ending.")
@context_option
@chunks_option
@click.option("--process-output", is_flag=True, help="Collect for the output matrix as well.")
@click.option("--in-file", "in_files", multiple=True, type=PATH, metavar="FILE", help="A matrix to add; repeatable.")
@click.option("--output-format", type=click.Choice(["gguf", "dat"]), help="Whatever the name ends in.")
@click.option(
    "--output-frequency",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Every N chunks keep OUTPUT.partial; the same command goes on from it.",
)
@click.option("--show-statistics", is_flag=True, help="Print a row a tensor: sums, spread, entropy, likeness.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "f64", "f32", "bf16", "f16"]),
    default="auto",
    show_default=True,
    help="What to compute in.",
)
@device_option
@memory_option
@force_option
@json_option
@quiet_option
@cache_option
def imatrix(
    model: Path | None,
    texts: tuple[Path, ...],
    output: Path | None,
    context: int | None,
    chunks: int | None,
    process_output: bool,
    in_files: tuple[Path, ...],
    output_format: str | None,
    output_frequency: int,
    show_statistics: bool,
    dtype: str,
    device: str,
    memory: int | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make the importance matrix of MODEL (of any format) on TEXTs: what quantize --imatrix and llama.cpp take.

    Sums over the texts' tokens of each matrix's squared inputs, per expert.  Use an unquantized model and text of the
    kind that it is for; some hundred chunks are plenty.  Without MODEL and TEXT, matrices are merged or shown.

    \b
    Examples:
      llmconv imatrix model-f16.gguf text.txt -o imatrix.gguf --chunks 200
      llmconv imatrix hf-folder/ a.txt b.txt -o imatrix.gguf --output-frequency 10
      llmconv imatrix --in-file a.gguf --in-file b.dat -o both.gguf
      llmconv imatrix --in-file imatrix.gguf --show-statistics
    """
    if output is None and not show_statistics:
        raise click.UsageError("Missing option '-o' / '--output'.")
    with contextlib.ExitStack() as stack:
        named = [stack.enter_context(streams.given(text, ".txt")) for text in texts]
        progress = stack.enter_context(Bar(quiet or as_json, model.name if model is not None else ""))
        made = llmconv.imatrix(
            model,
            named,
            output,
            context=context,
            chunks=chunks,
            process_output=process_output,
            in_files=in_files,
            output_format=output_format,
            output_frequency=output_frequency,
            device=device,
            dtype=dtype,
            memory=memory,
            force=force,
            progress=progress,
        )
    notes(made.notes, quiet)
    if as_json and not quiet:
        envelope.emit(made.as_dict())
        return
    if show_statistics:
        click.echo(_statistics(made))
    if made.path is not None:
        speed = f", {made.tokens_per_second:,.0f} tokens/s" if made.tokens else ""
        say(f"{made.path}: {made.entries:,} tensors, {made.chunks:,} chunks of {made.context}{speed}", quiet)


def _statistics(made: ImportanceMatrix) -> str:
    rows = [
        [
            row.name.removesuffix(".weight"),
            f"{row.tokens:,}",
            f"{row.total:.2f}",
            f"{row.least:.4f}",
            f"{row.most:.4f}",
            f"{row.mean:.4f}",
            f"{row.deviation:.4f}",
            f"{100 * row.active:.2f}%",
            f"{row.entropy:.3f}",
            f"{100 * row.evenness:.1f}%",
            f"{100 * row.outliers:.2f}%",
            "" if row.similarity is None else f"{row.similarity:.4f}",
        ]
        for row in made.statistics
    ]
    head = ["tensor", "tokens", "sum", "min", "max", "mean", "σ", "active", "entropy", "even", "> σ", "like before"]
    return table(rows, head, {*range(1, len(head))})
