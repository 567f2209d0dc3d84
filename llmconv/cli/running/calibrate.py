"""`llmconv calibrate`."""

from __future__ import annotations

import contextlib
from pathlib import Path

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
from llmconv.cli.running.measuring import context_option, memory_option

__all__ = ["calibrate"]


@click.command()
@click.argument("model", type=PATH)
@click.argument("texts", type=STREAM, nargs=-1, required=True, metavar="TEXT...")
@click.option("-o", "--output", type=PATH, required=True, metavar="FILE", help="The statistics to write.")
@click.option(
    "--effort",
    type=click.Choice(["fast", "standard", "best"]),
    default="standard",
    show_default=True,
    help="fast looks at inputs alone; standard also at what errors cost; best searches for longer.",
)
@context_option
@click.option(
    "--chunks", type=click.IntRange(min=1), metavar="N", help="Of all texts together.  [default: 16384 tokens' worth]"
)
@click.option(
    "--seed",
    type=click.IntRange(0, (1 << 64) - 1),
    default=0,
    show_default=True,
    metavar="N",
    help="Of the labels drawn.",
)
@memory_option
@device_option
@force_option
@json_option
@quiet_option
@cache_option
def calibrate(
    model: Path,
    texts: tuple[Path, ...],
    output: Path,
    effort: str,
    context: int | None,
    chunks: int | None,
    seed: int,
    memory: int | None,
    device: str,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Look at MODEL (of any format, not quantized) on TEXTs, once, for quantizing it to any number of types.

    The text should be of the kind that the model is for; 16,384 tokens do much, four times as many do a little more.

    \b
    Examples:
      llmconv calibrate model-f16.gguf text.txt -o model.calibration
      llmconv quantize model-f16.gguf -t Q4_K_M -t Q3_K_M --calibration model.calibration -o out/
    """
    with contextlib.ExitStack() as stack:
        named = [stack.enter_context(streams.given(text, ".txt")) for text in texts]
        progress = stack.enter_context(Bar(quiet or as_json, model.name))
        made = llmconv.calibrate(
            model,
            named,
            effort=effort,
            context=context,
            chunks=chunks,
            seed=seed,
            device=device,
            memory=memory,
            progress=progress,
        )
        made.save(output, force=force)
    notes(made.notes, quiet)
    facts = {"path": str(output), "tokens": made.tokens, "effort": made.effort, "notes": list(made.notes)}
    if as_json and not quiet:
        envelope.emit(facts)
        return
    say(f"{output}: {made.tokens:,} tokens, {made.effort}", quiet)
