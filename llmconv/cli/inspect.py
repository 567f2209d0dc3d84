"""The `inspect` command: what a model file holds."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import llmconv
from llmconv.cli import envelope
from llmconv.cli.options import PATH, Bar, cache_option, human, json_option
from llmconv.cli.reports import number, table
from llmconv.wording import one_line

if TYPE_CHECKING:
    from llmconv.convert.reports.grids import TensorGrid
    from llmconv.convert.reports.stats import Histogram, TensorStats

__all__ = ["inspect"]


@click.command()
@click.argument("file", type=PATH)
@click.option("--tensors", is_flag=True, help="The tensors alone, every one.")
@click.option("--metadata", is_flag=True, help="Hyper-parameters and metadata alone, every value in full.")
@click.option("--vocab", is_flag=True, help="The vocabulary alone: id, token, kind and score, one a line.")
@click.option(
    "--stats", is_flag=True, help="Read every tensor: extremes, mean, deviation, zeros, non-finite, outliers."
)
@click.option("--grids", is_flag=True, help="Read every matrix: on which block type's grid do its weights lie?")
@click.option("--histogram", metavar="TENSOR", help="How a tensor's values are spread.")
@click.option("--hash", "hashes", is_flag=True, help="Content hash of each tensor and of the model, whatever the file.")
@json_option
@click.option("--all", "show_all", is_flag=True, help="Every tensor and every value in full.")
@cache_option
def inspect(
    file: Path,
    tensors: bool,
    metadata: bool,
    vocab: bool,
    stats: bool,
    grids: bool,
    histogram: str | None,
    hashes: bool,
    as_json: bool,
    show_all: bool,
) -> None:
    """Show what FILE holds: format, architecture, hyper-parameters, vocabulary, metadata and tensors.

    \b
    Examples:
      llmconv inspect model.gguf
      llmconv inspect ./TinyLlama --json
      llmconv inspect model.gguf --stats
      llmconv inspect qat-folder/ --grids
      llmconv inspect model.safetensors --hash
    """
    chosen: list[tuple[str, Any, list[str]]] = []  # key in JSON, its value, lines for people
    if tensors or metadata or not (vocab or stats or grids or histogram or hashes):
        report = llmconv.inspect_file(file)
        if tensors or metadata:
            if tensors:
                chosen.append(("tensors", report["tensors"], tensor_lines(report["tensors"], True)))
            if metadata:
                both = {key: report[key] for key in ("hyperparameters", "metadata")}
                chosen.append(("metadata", both, metadata_lines(report, True)))
        elif as_json:
            envelope.emit(report)
            return
        else:
            chosen.append(("", None, lines(report, show_all)))
    if vocab:
        rows = llmconv.vocabulary(file)
        chosen.append(("vocab", rows, vocab_lines(rows)))
    if stats:
        with Bar(as_json) as progress:
            found = llmconv.statistics(file, progress=progress)
        chosen.append(("stats", [s.as_dict() for s in found], stats_lines(found)))
    if grids:
        with Bar(as_json) as progress:
            on = llmconv.grids(file, progress=progress)
        chosen.append(("grids", [g.as_dict() for g in on], grid_lines(on)))
    if histogram:
        bins = llmconv.histogram(file, histogram)
        value = {"edges": bins.edges.tolist(), "counts": bins.counts.tolist(), "nonfinite": bins.nonfinite}
        chosen.append(("histogram", value, histogram_lines(bins)))
    if hashes:
        with Bar(as_json) as progress:
            content = llmconv.content_hash(file, progress=progress)
        text = [f"{digest}  {name}" for name, digest in content.tensors.items()]
        chosen.append(
            ("hash", {"model": content.model, "tensors": content.tensors}, [*text, f"{content.model}  model"])
        )
    if as_json:
        envelope.emit({key: value for key, value, _ in chosen})
    else:
        click.echo("\n".join(one_line(line) for _, _, text in chosen for line in text))


def vocab_lines(rows: list[dict[str, Any]]) -> list[str]:
    return [
        f"{row['id']:>7}  {row['kind']:<12} {'' if row['score'] is None else row['score']!s:<10} {row['token']!r}"
        for row in rows
    ]


def stats_lines(found: list[TensorStats]) -> list[str]:
    head = ["tensor", "min", "max", "mean", "std", "zeros", "non-finite", "outliers"]
    rows = [
        [
            s.name,
            *map(number, (s.minimum, s.maximum, s.mean, s.std)),
            f"{s.zeros:.2%}",
            str(s.nonfinite),
            str(s.outliers),
        ]
        for s in found
    ]
    return table(rows, head, right=set(range(1, len(head)))).splitlines()


def grid_lines(found: list[TensorGrid]) -> list[str]:
    rows = [[g.name, "x".join(map(str, g.shape)), g.type or g.stored, g.grid or "none", g.why] for g in found]
    counts = Counter(g.grid or "none" for g in found)
    head = ["tensor", "shape", "stored as", "grid", "why none"]
    return [*table(rows, head, right=set()).splitlines(), ", ".join(f"{n} on {grid}" for grid, n in counts.items())]


def histogram_lines(bins: Histogram) -> list[str]:
    """A bar a bin, the longest 50 characters."""
    top = max(1, int(bins.counts.max()))
    out = [
        f"{low:>12.5g} to {high:>12.5g}  {count:>12,}  {'█' * round(50 * count / top)}"
        for low, high, count in zip(bins.edges[:-1], bins.edges[1:], bins.counts.tolist(), strict=True)
    ]
    return [*out, f"{bins.nonfinite:,} values are not finite"] if bins.nonfinite else out


def _half(half: dict[str, Any]) -> str:
    """Which half of a multimodal model a file is."""
    if half["is"] == "both":
        return "both: the text model and its tower"
    what, other = ("the tower", "its text model") if half["is"] == "tower" else ("the text model", "its tower")
    if not half["partner"]:
        return f"{what} of a multimodal model"
    return f"{what} of a multimodal model; {other}: {half['partner']}" + ("" if half["there"] else " (not there)")


def lines(report: dict[str, Any], show_all: bool = False) -> list[str]:
    """The report for people."""
    out = [
        f"file          {report['file']} ({human(report['size'])})",
        f"format        {report['format']}"
        + "".join(f", {k.replace('_', ' ')} {v}" for k, v in report["info"].items()),
        f"architecture  {report['architecture'] or 'unknown'}",
        f"parameters    {report['parameters']:,} in {len(report['tensors'])} tensors"
        + "".join(f", {count} {name}" for name, count in report["types"].items()),
    ]
    if half := report["half"]:
        out.append(f"half          {_half(half)}")
    vocabulary = report["vocabulary"]
    if vocabulary:
        special = ", ".join(f"{role} {token!r} ({id})" for role, (id, token) in vocabulary["special"].items())
        out.append(
            f"vocabulary    {vocabulary['size']:,} tokens, {vocabulary['model']}" + (f"; {special}" if special else "")
        )
    out += metadata_lines(report, show_all)
    for note in report["notes"]:
        out.append(f"note: {note}")
    return [*out, "", "tensors", *tensor_lines(report["tensors"], show_all)]


def metadata_lines(report: dict[str, Any], show_all: bool) -> list[str]:
    out: list[str] = []
    for title, section in (("hyper-parameters", report["hyperparameters"]), ("metadata", report["metadata"])):
        if section:
            width = max(map(len, section))
            out += ["", title, *(f"  {k:<{width}}  {short(v, 4000 if show_all else 60)}" for k, v in section.items())]
    return out


def tensor_lines(tensors: list[dict[str, Any]], show_all: bool) -> list[str]:
    out: list[str] = []
    width = max((len(t["name"]) for t in tensors), default=0)
    shown = tensors if show_all or len(tensors) <= 60 else [*tensors[:40], *tensors[-10:]]
    for i, t in enumerate(shown):
        if i == 40 and len(shown) < len(tensors):
            out.append(f"  ... {len(tensors) - 50} more (--all)")
        shape = "x".join(map(str, t["shape"])) or "scalar"
        out.append(f"  {t['name']:<{width}}  {t['type']:<8} {shape:<18} {human(t['bytes']):>10}")
    return out


def short(value: Any, width: int) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= width else f"{text[: width - 3]}... ({len(text):,} characters)"
