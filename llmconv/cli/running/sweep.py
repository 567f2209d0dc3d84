"""The command `sweep`: quantize to several types, evaluate each, report."""

from __future__ import annotations

from pathlib import Path

import click

import llmconv
from llmconv.cli import complete, envelope
from llmconv.cli.options import PATH, Bar, cache_option
from llmconv.cli.running.calibrate import calibration_of
from llmconv.cli.running.measuring import memory_option

__all__ = ["sweep"]


@click.command()
@click.argument("model", type=PATH)
@click.argument("text", type=PATH)
@click.option(
    "--types",
    default="Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q4_0,Q3_K_M",
    show_default=True,
    metavar="TYPE,…",
    shell_complete=complete.types,
    help="File types, separated by commas.",
)
@click.option(
    "--target-size", "sizes", default="", metavar="SIZE,…", help="Mixes of types of such sizes too, such as 3.4G,2.5G."
)
@click.option("-o", "--output", type=PATH, metavar="PATH", help="Folder of the report  [default: MODEL-sweep]")
@click.option("-c", "--context", type=click.IntRange(min=2), metavar="N", help="Tokens in a chunk, as in perplexity.")
@click.option("--chunks", type=click.IntRange(min=1), metavar="N", help="Stop after this many chunks.")
@click.option(
    "--device", default="auto", show_default=True, metavar="NAME", help="Where to evaluate: auto, cpu, cuda, mps."
)
@memory_option
@click.option("--imatrix", type=PATH, metavar="FILE", help="Importance weights for quantizing.")
@click.option("--calibrate", "texts", multiple=True, type=PATH, metavar="TEXT", help="As of quantize; repeatable.")
@click.option("--calibration", type=PATH, metavar="FILE", help="What llmconv calibrate made of this model.")
@click.option("--allow-requantize", is_flag=True, help="MODEL may be quantized already; its types then lose twice.")
@click.option("-j", "--jobs", type=click.IntRange(min=1), metavar="N", help="Threads.  [default: one per processor]")
@click.option("--keep/--no-keep", default=True, show_default=True, help="Leave the quantized files in the folder.")
@click.option("--plot/--no-plot", default=True, show_default=True, help="Draw plot.svg.")
@click.option("-f", "--force", is_flag=True, help="Start over where another sweep's state lies.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing.")
@cache_option
def sweep(
    model: Path,
    text: Path,
    types: str,
    sizes: str,
    output: Path | None,
    context: int | None,
    chunks: int | None,
    device: str,
    memory: int | None,
    imatrix: Path | None,
    texts: tuple[Path, ...],
    calibration: Path | None,
    allow_requantize: bool,
    jobs: int | None,
    keep: bool,
    plot: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Quantize MODEL to each of several types in one read, measure each against it over TEXT, and write a report.

    The folder gets report.md, report.json, report.html (one file, sortable, no network), plot.svg
    and a model card, README.md: perplexity, KL
    divergence, agreement, size and time of each type, and which types no other beats.  An interrupted sweep goes on
    where it stopped when the same command is given again.

    \b
    Examples:
      llmconv sweep model-f16.gguf wiki.txt
      llmconv sweep hf-folder/ wiki.txt --types Q8_0,Q4_K_M,IQ4_XS -c 512 --chunks 20 -o report
      llmconv sweep model-f16.gguf wiki.txt --types Q4_K_M --target-size 3.4G,2.5G --calibration model.calibration
    """
    from llmconv.quant.filetypes import file_type

    names, mixes = ([word.strip() for word in words.split(",") if word.strip()] for words in (types, sizes))
    known = calibration_of(texts, calibration)
    for name in names:  # a mistake should not wait for torch
        file_type(name)
    folder = output or model.with_name(model.name.split(".gguf")[0] + "-sweep")
    with Bar(quiet, lines=True) as progress:
        result = llmconv.sweep(
            model,
            text,
            names,
            folder,
            target_sizes=mixes,
            context=context or 0,
            chunks=chunks or 0,
            device=device,
            memory=memory,
            keep=keep,
            plots=plot,
            force=force,
            jobs=jobs,
            progress=progress,
            **({"imatrix": imatrix} if imatrix else {}),
            **({"calibration": known} if known is not None else {}),
            **({"allow_requantize": True} if allow_requantize else {}),
        )
    if as_json:
        envelope.emit(result.as_dict())
    elif not quiet:
        from llmconv.runtime.measure.sweep_report import markdown

        click.echo(markdown(result))
        click.echo(f"{folder}: report.md, report.json, report.html{', plot.svg' if plot else ''}")
