"""Options and output that commands share: targets, verbosity, the progress bar, sizes for people."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import click

from llmconv.cli import complete
from llmconv.progress import Step
from llmconv.wording import one_line

__all__ = [
    "PATH",
    "STREAM",
    "TARGET",
    "Bar",
    "Number",
    "command_options",
    "device_option",
    "force_option",
    "human",
    "jobs_option",
    "layout_option",
    "json_option",
    "key_option",
    "notes",
    "one_target",
    "output_option",
    "portable_option",
    "quiet_option",
    "quiet_options",
    "read_hf_options",
    "read_json_options",
    "say",
    "size_option",
    "strict_option",
    "ask",
    "cache_option",
    "split_option",
    "yes_option",
]


class _Named(click.Path):
    """A path; `-` is refused where a stream makes no sense, instead of becoming a file of that name."""

    def __init__(self, stream: bool = False, **options: Any):
        super().__init__(readable=False, **options)  # what can't be read is a bad file, not a wrong call
        self.stream = stream

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "-" and not self.stream:
            self.fail("'-', a stream, is of no use here: name a file (./- for one of that name)", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Named(path_type=Path)
STREAM = _Named(stream=True, path_type=Path)
"""A path, or `-` for standard input; see `llmconv.cli.streams`."""
TARGET = _Named(stream=True)
"""An output, as it was written: a folder's name may end in "/"."""
F = TypeVar("F", bound=Callable[..., Any])


class Number(click.FloatRange):
    """A finite number in a range; "nan" and "inf" are words that float() takes, but no numbers."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not math.isfinite(found := super().convert(value, param, ctx)):
            self.fail(f"{value} is not a finite number", param, ctx)
        return found


def _chain(*decorators: Callable[[Any], Any]) -> Callable[[F], F]:
    def apply(fn: F) -> F:
        for decorator in reversed(decorators):
            fn = decorator(fn)
        return fn

    return apply


quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
quiet_options = _chain(
    quiet_option,
    click.option("-v", "--verbose", is_flag=True, help="Say more: files, types, notes."),
)
jobs_option = click.option(
    "-j", "--jobs", type=click.IntRange(min=1), metavar="N", help="Threads.  [default: one per processor]"
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
device_option = click.option(
    "--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda, cuda:1, mps."
)
force_option = click.option("-f", "--force", is_flag=True, help="Replace an existing file.")
strict_option = click.option(
    "--strict/--no-strict",
    default=True,
    show_default=True,
    help="Refuse tensors that the architecture does not have, or leave them out.",
)
portable_option = click.option(
    "--portable", is_flag=True, help="A GGUF for publishing: no keys of ours; says what can't come back."
)
layout_option = click.option(
    "--layout",
    metavar="NAME",
    shell_complete=complete.layouts,
    help="JSON layout, where the keys do not tell; plain takes any file or folder, tensors under their own names.",
)
read_json_options = _chain(
    layout_option,
    click.option("--config", type=PATH, metavar="FILE", help="File with the configuration that the JSON lacks."),
    click.option("--vocab", type=PATH, metavar="FILE", help="File with the vocabulary that the JSON lacks."),
)
read_hf_options = _chain(
    click.option(
        "--lora", type=PATH, metavar="PATH", help="Merge an adapter in: PEFT's folder (LoRA, DoRA), or a GGUF."
    ),
    click.option(
        "--pre",
        metavar="NAME",
        shell_complete=complete.pre_tokenizers,
        help="llama.cpp's name of the pre-tokenizer, where it is not recognised.",
    ),
)
key_option = click.option(
    "--key", metavar="NAME", help="Which of several mappings of tensors in a .pt or .pkl to take."
)
output_option = click.option("-o", "--output", type=TARGET, metavar="PATH", help="The target, as an option.")


_LEAST_BYTES = 10_000
"""A smaller size without a unit is one whose unit was forgotten."""


def _bytes(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    import llmconv

    if value is not None and value.strip().isdecimal() and int(value) < _LEAST_BYTES:
        raise click.BadParameter(f"{value} bytes is less than any model; give a unit: {value}M, {value}G", ctx, param)
    return llmconv.parse_size(value) if value is not None else None


def size_option(name: str, text: str) -> Callable[[Any], Any]:
    """An option that takes a size: 4000000, 500M, 2G, 1GiB; None when it is not given."""
    return click.option(name, callback=_bytes, metavar="SIZE", help=text)


split_option = size_option("--split-max-size", "Split the GGUF: 2G a file, say.")
yes_option = click.option("-y", "--yes", is_flag=True, help="Of an output on the Hub (hf://): send it without asking.")


def ask(target: object, yes: bool, silent: bool, show: Callable[[], None] = lambda: None) -> None:
    """Ask before anything leaves this machine, after `show`; where nobody can answer, refuse."""
    if not str(target or "").startswith("hf:"):
        if yes:
            raise click.UsageError("--yes is for an output on the Hub; write -o hf://ORG/NAME, or leave it out")
        return
    if yes:
        return
    if silent or not sys.stdin.isatty():
        raise click.UsageError("nothing is sent to the Hub unasked, and nobody can answer here; say --yes")
    show()
    if not click.confirm(f"Send this to {str(target).replace('hf:/', 'hf://', 1).replace(':///', '://')}?"):
        click.echo("nothing was sent", err=True)
        raise click.exceptions.Exit(1)


def _keep(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    from llmconv.formats.places.names import kept

    if value:
        ctx.with_resource(kept())


cache_option = click.option(
    "--cache",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_keep,
    help="Of hf://: keep the files in the Hub's own cache, and read them from there.",
)


def command_options(fn: F) -> F:
    """Options of every command that writes a model: -o, --force, -j, --json, -q, -v."""
    return _chain(output_option, force_option, yes_option, cache_option, jobs_option, json_option, quiet_options)(fn)


def one_target(dst: Any, output: Any) -> Any:
    """DST, given in one of its two ways."""
    if dst is not None and output is not None:
        raise click.UsageError("give the target once, as DST or with -o")
    return dst if output is None else output


class Bar:
    """The progress of any long function, on a terminal, for work that lasts more than a second; nothing otherwise.

    As a context manager it gives what the API calls with each `Step`.   lines: say each new piece of work in a line.
    """

    def __init__(self, quiet: bool = False, label: str = "", *, lines: bool = False):
        self.quiet, self.label, self.lines = quiet, label, lines
        self.bar: Any = None
        self.work = ("", "")

    def __enter__(self) -> Callable[[Step], None] | None:
        return None if self.quiet or not (self.lines or sys.stderr.isatty()) else self.update

    def update(self, step: Step) -> None:
        work = (step.what, step.item if self.lines else "")
        if work != self.work:
            self.close()
            self.work = work
            if self.lines:
                click.echo(" ".join(work), err=True)
        if not sys.stderr.isatty():
            return
        if self.bar is None:
            from tqdm import tqdm

            unit = "B" if step.unit == "bytes" else step.unit.removesuffix("s")
            compiles = step.what == "compile"  # a kernel takes seconds: it is shown at once, and by its own name
            self.bar = tqdm(
                total=step.total or None, unit=unit, unit_scale=unit == "B", unit_divisor=1000, leave=False,
                delay=0 if compiles else 1, mininterval=0 if compiles else 0.1,
                initial=step.done if step.unit == "steps" else 0,  # a resumed run does not begin at 0
                desc=step.what if compiles else self.label or step.what, file=sys.stderr, dynamic_ncols=True,
            )  # fmt: skip
        facts = [f"{name} {value:.4g}" for name, value in step.facts.items() if isinstance(value, float)]
        if step.item or facts:  # what was said last stays until there is something new
            self.bar.set_postfix_str(", ".join([step.item] * bool(step.item) + facts), refresh=False)
        self.bar.update(step.done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def human(size: float) -> str:
    """Bytes for people: 512 B, 1.2 MB (powers of 1000, as disks are sold)."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def say(text: str, quiet: bool = False) -> None:
    """A line for people, on stdout, made printable."""
    if not quiet:
        click.echo(one_line(text))


def notes(lines: list[str], quiet: bool = False) -> None:
    """What a user should know about a result, on stderr."""
    for line in [] if quiet else lines:
        click.echo(f"note: {one_line(line)}", err=True)
