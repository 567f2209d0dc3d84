"""`llmconv compare`."""

from __future__ import annotations

from pathlib import Path

import click

import llmconv
from llmconv.cli import envelope, streams
from llmconv.cli.options import PATH, STREAM, Bar, Number, cache_option, notes
from llmconv.cli.running.measuring import (
    chunks_option,
    context_option,
    memory_option,
    plot_option,
    run_options,
    with_error,
)

__all__ = ["compare"]


@click.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.argument("text", type=STREAM)
@context_option
@chunks_option
@plot_option
@memory_option
@click.option("--max-kld", type=Number(0), metavar="X", help="Exit with 1 when the mean KLD exceeds X.")
@click.option("--max-ppl-ratio", type=Number(0), metavar="X", help="Exit with 1 when PPL(B)/PPL(A) does.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@run_options
@click.pass_context
@cache_option
def compare(
    ctx: click.Context,
    a: Path,
    b: Path,
    text: Path,
    context: int | None,
    chunks: int | None,
    plot: Path | None,
    memory: int | None,
    max_kld: float | None,
    max_ppl_ratio: float | None,
    as_json: bool,
    device: str,
    dtype: str,
    activations: str,
    quiet: bool,
) -> None:
    """What model B lost against model A on TEXT: perplexities, KL divergence, agreement on the likeliest token.

    A and B are of any formats and types; they must share a vocabulary.  Definitions as in llama.cpp's --kl-divergence.
    A JSON list of {"input": …, "target": …} pairs is compared position by position.

    \b
    Examples:
      llmconv compare model-f16.gguf model-Q4_K_M.gguf wiki.txt
      llmconv compare hf-folder/ model-Q8_0.gguf wiki.txt -c 512 --max-kld 0.05   # exit code 1 when it is more
    """
    with streams.given(text, ".txt") as text, Bar(quiet) as progress:
        found = llmconv.compare(
            a,
            b,
            text,
            context=context,
            chunks=chunks,
            plot=plot,
            device=device,
            dtype=dtype,
            memory=memory,
            activations=activations,
            progress=progress,
        )
    notes(found.notes, quiet)
    over = [
        f"{name} {value:.6g} exceeds {limit:g}"
        for name, value, limit in (("mean KLD", found.mean_kld, max_kld), ("PPL ratio", found.ppl_ratio, max_ppl_ratio))
        if limit is not None and not value <= limit
    ]
    if as_json:
        envelope.emit(found.as_dict())
    else:
        rows = (
            ("PPL(A)", with_error(found.ppl_a, found.ppl_a_stderr)),
            ("PPL(B)", with_error(found.ppl_b, found.ppl_b_stderr)),
            ("PPL(B)/PPL(A)", with_error(found.ppl_ratio, found.ppl_ratio_stderr, 6)),
            ("mean KLD", with_error(found.mean_kld, found.mean_kld_stderr, 6)),
            ("median KLD", f"{found.median_kld:.6f}"),
            ("90 / 99 / 99.9 %", f"{found.kld_90:.6f} / {found.kld_99:.6f} / {found.kld_999:.6f}"),
            ("maximum KLD", f"{found.max_kld:.6f}"),
            ("same top token", with_error(100 * found.top1_agreement, 100 * found.top1_agreement_stderr, 3) + " %"),
            ("RMS Δp", with_error(100 * found.rms_dp, 100 * found.rms_dp_stderr, 3) + " %"),
            ("mean Δp", with_error(100 * found.mean_dp, 100 * found.mean_dp_stderr, 3) + " %"),
        )
        for name, value in rows:
            click.echo(f"{name:<17} {value}")
        if not quiet:
            speed = f"{found.tokens_per_second:,.0f} tokens/s"
            kind = "pairs" if found.unit == "pair" else f"chunks of {found.context}"
            click.echo(f"{found.tokens:,} tokens scored in {found.chunks:,} {kind}, {speed}")
    if over:
        click.echo(f"llmconv: {b}: {' and '.join(over)}", err=True)
        ctx.exit(1)
