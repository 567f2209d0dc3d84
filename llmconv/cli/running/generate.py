"""`llmconv generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

import llmconv
from llmconv.cli import envelope
from llmconv.cli.options import PATH, Number, cache_option, notes
from llmconv.cli.running.chat import converse
from llmconv.cli.running.measuring import run_options

__all__ = ["generate"]


@click.command()
@click.argument("model", type=PATH)
@click.option("-p", "--prompt", metavar="TEXT", help="What to continue.  [default: standard input]")
@click.option("-n", "--max-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="At most so many.")
@click.option("--temperature", type=Number(0), default=0.8, show_default=True, help="0: the likeliest.")
@click.option(
    "--top-k", type=click.IntRange(min=0), default=40, show_default=True, help="Only the K likeliest; 0: all."
)
@click.option("--top-p", type=Number(0, 1), default=0.95, show_default=True, help="The fewest that sum to P.")
@click.option("--min-p", type=Number(0, 1), default=0.05, show_default=True, help="At least P of the likeliest.")
@click.option("--repetition-penalty", type=Number(0, min_open=True), default=1.0, show_default=True, help="1: none.")
@click.option("--seed", type=click.IntRange(0, (1 << 64) - 1), help="The same seed gives the same text.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given more than once.")
@click.option("--chat", is_flag=True, help="Put the prompt into the model's chat template.")
@click.option("-i", "--interactive", is_flag=True, help="A conversation, by the model's template; /reset begins anew.")
@click.option("--tools", type=PATH, metavar="FILE", help="A JSON list of tools for --chat, as the template shows them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON at the end instead of streaming text.")
@run_options
@cache_option
def generate(
    model: Path,
    prompt: str | None,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    seed: int | None,
    stop: tuple[str, ...],
    chat: bool,
    interactive: bool,
    tools: Path | None,
    as_json: bool,
    device: str,
    dtype: str,
    activations: str,
    quiet: bool,
) -> None:
    """Continue a text with MODEL, of any format; the text appears as it is made.

    \b
    Examples:
      llmconv generate model.gguf -p "Once upon a time" --temperature 0
      llmconv generate hf-folder/ --chat -p "Why is the sky blue?" --seed 1
      llmconv generate model.gguf -i
    """
    sampling = llmconv.Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    if interactive:
        if prompt is not None or as_json:
            raise click.UsageError("-i reads what is said from standard input and prints text; leave -p and --json out")
        loaded = llmconv.load(model, device, dtype, activations)
        shown = _tools(tools, True)
        converse(loaded, quiet, max_tokens=max_tokens, sampling=sampling, seed=seed, stop=stop, tools=shown)
        return
    if prompt is None:
        prompt = sys.stdin.buffer.read().decode("utf-8", "replace")
    prompt = prompt.encode("utf-8", "surrogatepass").decode("utf-8", "replace")  # bytes of an argument that are no text
    before = iter(() if chat else (prompt,))  # shown when the first text comes, not before an error

    def show(text: str) -> None:
        click.echo(next(before, "") + text, nl=False)

    found = llmconv.generate(
        model,
        prompt,
        max_tokens=max_tokens,
        sampling=sampling,
        seed=seed,
        stop=stop,
        chat=chat,
        tools=_tools(tools, chat),
        on_text=None if as_json else show,
        device=device,
        dtype=dtype,
        activations=activations,
    )
    if as_json:
        envelope.emit(found.as_dict())
    else:
        click.echo(next(before, ""))
    notes(found.notes, quiet)
    if as_json:
        return
    if not quiet and sys.stderr.isatty():
        click.echo(f"{len(found.tokens)} tokens, {found.tokens_per_second:.1f} tokens/s ({found.finish})", err=True)


def _tools(path: Path | None, chat: bool) -> list[Any] | None:
    if path is None:
        return None
    if not chat:
        raise click.UsageError("--tools are shown by a chat template; give --chat too")
    from llmconv.convert.vocab import read_tools

    return read_tools(path)
