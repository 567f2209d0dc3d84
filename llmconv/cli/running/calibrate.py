"""`llmconv calibrate`, and what other commands are given to round by."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

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

__all__ = ["calibrate", "calibration_of"]


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
@click.option("--resumable", is_flag=True, help="When interrupted keep FILE.partial; the same command goes on.")
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
    resumable: bool,
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
            output,
            effort=effort,
            context=context,
            chunks=chunks,
            seed=seed,
            device=device,
            memory=memory,
            resumable=resumable,
            force=force,
            progress=progress,
        )
    notes(made.notes, quiet)
    facts = {"path": str(output), "tokens": made.tokens, "effort": made.effort, "notes": list(made.notes)}
    if as_json and not quiet:
        envelope.emit(facts)
        return
    say(f"{output}: {made.tokens:,} tokens, {made.effort}", quiet)


def calibration_of(
    texts: tuple[Path, ...],
    file: Path | None,
    effort: str | None = None,
    unseen: tuple[Path, ...] = (),
    memory: int | None = None,
) -> Any:
    """What to round by: what is in a file, or texts to look at; checked on other texts."""
    if texts and file is not None:
        raise click.UsageError(
            "--calibrate makes a calibration, --calibration takes one that is made; give one of them"
        )
    if Path("default") in texts and not Path("default").exists():
        raise click.UsageError("no text is shipped to calibrate on; give one of the kind that the model is for")
    if effort is not None and not texts:
        raise click.UsageError("--effort is for --calibrate; give a text to calibrate on")
    if not texts and file is None:
        if unseen:
            raise click.UsageError("--verify-calibration is for --calibrate and --calibration; give one of them")
        if memory is not None:
            raise click.UsageError("--memory is for --calibrate and --calibration; quantizing alone takes little")
        return None
    known = llmconv.Calibration.open(file) if file else llmconv.OnText(texts, effort=effort or "standard")
    known.memory = memory
    return llmconv.Verified(known, unseen) if unseen else known
