"""Commands that look at models without changing them: verify, diff, size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

import llmconv
from llmconv.cli import envelope
from llmconv.cli.options import PATH, Bar, Number, cache_option, json_option, notes
from llmconv.cli.running.measuring import chunks_option, context_option
from llmconv.quant import by_name
from llmconv.wording import one_line

__all__ = ["diff", "verify"]


def table(rows: list[list[str]], head: list[str], right: set[int] | None = None) -> str:
    """Rows as aligned text columns; `right` are the columns of numbers."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    right = right or set()

    def line(row: list[str]) -> str:
        cells = (c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        return "  ".join(cells).rstrip()

    return "\n".join(line(row) for row in [head, ["-" * w for w in widths], *rows])


def cut(text: str, most: int = 200) -> str:
    """A value on one line of a terminal; --json has the whole of it."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def number(value: float) -> str:
    """A measured value in a table: empty when it was not measured."""
    return "" if math.isnan(value) else f"{value:.4g}"


@click.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option(
    "--tolerance",
    type=Number(0),
    default=0.0,
    show_default=True,
    help="Relative error (rms of the difference / rms of A) up to which a tensor counts as close.",
)
@click.option(
    "--run", "text", type=PATH, help="Also run both over this text: perplexity and KL divergence (needs torch)."
)
@context_option
@chunks_option
@click.option(
    "--provenance", is_flag=True, help="A is a converted file, B its source: check A's certificate against B."
)
@click.option("--all", "show_all", is_flag=True, help="List every tensor, not only those that are not identical.")
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing; the exit code is the answer.")
@cache_option
def verify(
    a: Path,
    b: Path,
    tolerance: float,
    text: Path | None,
    context: int | None,
    chunks: int | None,
    provenance: bool,
    show_all: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Are A and B the same model?  Any two formats; exit code 0 when they are, 1 when not.

    Tensors are paired by their canonical names and compared value by value: bit-identical, equal, equal after a stated
    rounding, or with their errors.  Hyper-parameters and vocabularies are compared too.

    \b
    Examples:
      llmconv verify model.json model.gguf
      llmconv verify hf-folder/ model-Q8_0.gguf --tolerance 0.01
      llmconv verify a.gguf b.gguf --run wiki.txt -c 256 --chunks 20
      llmconv verify --provenance model.gguf model.json
    """
    if text is None and (context or chunks):
        raise click.UsageError("-c and --chunks say how --run cuts its text; give --run TEXT too")
    if provenance:
        with Bar(quiet or as_json) as progress:
            certificate = llmconv.verify_provenance(a, b, progress=progress)
        if as_json:
            envelope.emit(certificate.as_dict())
        elif not quiet:
            for check in certificate.checks:
                click.echo(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}")
        raise SystemExit(0 if certificate.ok else 1)
    with Bar(quiet or as_json) as progress:
        verdict = llmconv.verify(a, b, tolerance=tolerance, run=text, context=context, chunks=chunks, progress=progress)
    if verdict.run is not None:
        notes(verdict.run.notes, quiet)
    if as_json:
        envelope.emit(verdict.as_dict())
    elif not quiet:
        rows = [
            [
                t.name,
                t.status,
                t.type_a,
                t.type_b,
                *map(number, (t.max_error, t.rms_error, t.relative, t.cosine)),
                t.detail,
            ]
            for t in verdict.tensors
            if show_all or t.status != "identical"
        ]
        if rows:
            head = ["tensor", "status", "A", "B", "max", "rms", "relative", "cosine", ""]
            click.echo(table(rows, head, right={4, 5, 6, 7}))
        for key, (x, y) in verdict.hparams.items():
            click.echo(one_line(f"hyper-parameter {key}: {cut(repr(x))} against {cut(repr(y))}"))
        for line in verdict.vocab:
            click.echo(f"vocabulary: {line}")
        if verdict.run is not None:
            run = verdict.run
            click.echo(f"perplexity {run.ppl_a:.4f} against {run.ppl_b:.4f}, mean KL divergence {run.mean_kld:.6f}")
        counts = ", ".join(f"{n} {status}" for status, n in verdict.counts().items())
        click.echo(f"{_answer(verdict)}: {counts or 'no tensors'}")
    raise SystemExit(0 if verdict.same else 1)


def _answer(verdict: Any) -> str:
    """The verdict in words, with the quantized types that B is rounded to."""
    if not verdict.same:
        return "not the same model"
    found = {t.type_b: None for t in verdict.tensors if t.status == "rounded"}
    kinds = [name for name in found if not by_name(name).is_plain()]
    return f"the same model, rounded to {', '.join(kinds)}" if kinds else "the same model"


@click.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing; the exit code is the answer.")
@cache_option
def diff(a: Path, b: Path, as_json: bool, quiet: bool) -> None:
    """What differs between two files in their own terms: metadata, tensor lists, side files.

    Values of tensors are not read (see verify).  Exit code 0 when nothing differs, 1 otherwise.

    \b
    Example:
      llmconv diff model-v1.gguf model-v2.gguf
    """
    found = llmconv.diff(a, b)
    if as_json:
        envelope.emit([d.as_dict() for d in found])
    elif not quiet:
        for d in found:
            if d.a is not None:
                click.echo(one_line(f"- {d.kind} {d.name}: {cut(d.a)}"))
            if d.b is not None:
                click.echo(one_line(f"+ {d.kind} {d.name}: {cut(d.b)}"))
    raise SystemExit(1 if found else 0)
