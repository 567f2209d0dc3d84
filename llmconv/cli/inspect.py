"""The `inspect` command: what a model file holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

import llmconv
from llmconv.cli import one_line
from llmconv.cli.options import PATH, json_option, megabytes

__all__ = ["inspect"]


@click.command()
@click.argument("file", type=PATH)
@json_option
@click.option("--all", "show_all", is_flag=True, help="Every tensor and every value in full.")
def inspect(file: Path, as_json: bool, show_all: bool) -> None:
    """Show what FILE holds: format, architecture, hyper-parameters, vocabulary, metadata and tensors.

    \b
    Examples:
      llmconv inspect model.gguf
      llmconv inspect ./TinyLlama --json
    """
    report = llmconv.inspect_file(file)
    if as_json:
        click.echo(json.dumps(report, indent=2, ensure_ascii=False))
        return
    click.echo("\n".join(one_line(line) for line in lines(report, show_all)))


def lines(report: dict[str, Any], show_all: bool = False) -> list[str]:
    """The report for people."""
    out = [
        f"file          {report['file']} ({megabytes(report['size'])})",
        f"format        {report['format']}"
        + "".join(f", {k.replace('_', ' ')} {v}" for k, v in report["info"].items()),
        f"architecture  {report['architecture'] or 'unknown'}",
        f"parameters    {report['parameters']:,} in {len(report['tensors'])} tensors, "
        + ", ".join(f"{count} {name}" for name, count in report["types"].items()),
    ]
    vocabulary = report["vocabulary"]
    if vocabulary:
        special = ", ".join(f"{role} {token!r} ({id})" for role, (id, token) in vocabulary["special"].items())
        out.append(
            f"vocabulary    {vocabulary['size']:,} tokens, {vocabulary['model']}" + (f"; {special}" if special else "")
        )
    for title, section in (("hyper-parameters", report["hyperparameters"]), ("metadata", report["metadata"])):
        if section:
            width = max(map(len, section))
            out += ["", title, *(f"  {k:<{width}}  {short(v, 4000 if show_all else 60)}" for k, v in section.items())]
    for note in report["notes"]:
        out.append(f"note: {note}")
    tensors = report["tensors"]
    width = max((len(t["name"]) for t in tensors), default=0)
    shown = tensors if show_all or len(tensors) <= 60 else [*tensors[:40], *tensors[-10:]]
    out += ["", "tensors"]
    for i, t in enumerate(shown):
        if i == 40 and len(shown) < len(tensors):
            out.append(f"  ... {len(tensors) - 50} more (--all)")
        shape = "x".join(map(str, t["shape"])) or "scalar"
        out.append(f"  {t['name']:<{width}}  {t['type']:<8} {shape:<18} {megabytes(t['bytes']):>10}")
    return out


def short(value: Any, width: int) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= width else f"{text[: width - 3]}... ({len(text):,} characters)"
