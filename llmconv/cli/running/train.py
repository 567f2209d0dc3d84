"""The command `train`.  Its flags are the fields of `TrainConfig`, one for each."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click

import llmconv
from llmconv.cli import envelope
from llmconv.cli.options import PATH, Bar, human, notes
from llmconv.convert.reports.training_memory import PARTS
from llmconv.progress import Step
from llmconv.runtime.training.config import SECTIONS, TrainConfig, read_config

__all__ = ["train"]

_SHORT = {"output": ["-o"], "context": ["-c"]}
_NAMES = {"from_checkpoint": "--from"}
_METAVARS = {
    "layout": "NAME",
    "output": "FOLDER",
    "preset": "NAME",
    "from_checkpoint": "MODEL",
    "tokenizer": "KIND|FILE",
    "device": "NAME",
    "export": "LIST",
    "export_type": "TYPE",
    "qat": "TYPE",
    "teacher": "MODEL",
}
_NUMBERS = {int: "N", float: "X"}


class _InSections(click.Command):
    """A command whose help has the settings under the headings of `SECTIONS`, and its other options first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        headings = {first: heading for heading, first in SECTIONS.items()}
        heading, sections = "", {"Options": []}  # type: tuple[str, dict[str, list[tuple[str, str]]]]
        settings = {f.name for f in dataclasses.fields(TrainConfig)}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is None:
                continue
            heading = headings.get(param.name or "", heading)
            sections.setdefault(heading if param.name in settings else "Options", []).append(record)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _options(command: Any) -> Any:
    """A click option for each setting; absent ones are None, so that a configuration file can fill them."""
    hints = get_type_hints(TrainConfig)
    for setting in reversed(dataclasses.fields(TrainConfig)):
        if setting.name == "data":
            continue
        hint, default = hints[setting.name], setting.default
        flag = _NAMES.get(setting.name, "--" + setting.name.replace("_", "-"))
        kind: Any = click.Choice(get_args(hint)) if get_args(hint) else hint
        if hint is bool:
            flag, kind = f"{flag}/--no-{flag[2:]}", None
        shown = (
            "" if default in ("", 0, -1, -1.0) else f"  [default: {str(default).lower() if hint is bool else default}]"
        )
        option = click.option(
            *_SHORT.get(setting.name, []),
            flag,
            setting.name,
            type=kind,
            default=None,
            metavar=_METAVARS.get(setting.name) or _NUMBERS.get(hint),
            help=_sentence(setting.metadata["help"]) + shown,
        )
        command = option(command)
    return command


@click.command(cls=_InSections)
@click.argument("data", required=False, type=PATH)
@_options
@click.option("--config", "config_file", type=PATH, help="Settings from a TOML or JSON file; flags win.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in the output folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, for programs.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def train(
    data: Path | None, config_file: Path | None, resume: bool, as_json: bool, quiet: bool, **settings: Any
) -> None:
    """Train a model on DATA: text files or a folder of them, JSON lines, or a JSON list of {input, target} pairs.

    A fresh model takes its shape from --preset; --from goes on from a checkpoint of any format.  The output folder
    gets checkpoints (kill it at any moment, then --resume), log.csv, TensorBoard events, loss.png, summary.md and the
    model in every format that --export names.  Several devices: the same command under torchrun.

    \b
    Examples:
      llmconv train pairs.json -o run --preset simple-36k --export json,gguf
      llmconv train book.txt -o run --preset small-10m --tokenizer char --steps 5000 --dropout 0.2
      llmconv train corpus/ -o run --from model.gguf --lr 1e-4 --export-type Q8_0
      llmconv train corpus/ -o run --from model.gguf --qat Q4_0 --teacher model.gguf
      torchrun --nproc-per-node 8 -m llmconv train corpus/ -o run --preset gpt2-small --dtype bf16
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if data is not None:
        given["data"] = str(data)
    merged = {**(read_config(config_file) if config_file else {}), **given}
    config = TrainConfig(**merged)
    if os.environ.get("RANK", "0") != "0":  # under torchrun the first process speaks for all
        quiet, as_json = True, False
    with _Watch(quiet or as_json) as watch:
        result = llmconv.train(config, resume=resume, progress=watch)
    if as_json:
        envelope.emit(result.as_dict())
    elif not quiet:
        notes(result.notes)
        click.echo(
            f"{result.steps:,} steps, validation loss {result.val_loss:.4f} (perplexity {result.val_perplexity:.4f}), "
            f"{result.tokens_per_second:,.0f} tokens/s; wrote {', '.join(map(str, result.exports)) or config.output}"
        )


class _Watch(Bar):
    """The bar, and two things worth a line of their own: the plan, and what each validation found."""

    def __enter__(self) -> Callable[[Step], None] | None:
        return None if self.quiet else self.update

    def update(self, step: Step) -> None:
        facts = step.facts
        if step.what == "plan":
            self.close()
            parts = ", ".join(f"{p} {human(facts[p])}" for p in PARTS)
            click.echo(
                f"{facts['parameters']:,} parameters on {facts['processes']} x {facts['device']}; "
                f"memory per device about {human(facts['planned memory'])}: {parts}",
                err=True,
            )
        elif "val_loss" in facts:
            self.close()
            click.echo(f"{step.item}: validation loss {facts['val_loss']:.4f}", err=True)
        else:
            super().update(step)
