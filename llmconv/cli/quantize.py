"""Commands quantize and warmup."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import llmconv
from llmconv.cli.reports import table

if TYPE_CHECKING:
    from llmconv.convert.quantize import Quantized, QuantizedFile

__all__ = ["quantize", "warmup"]

MODEL = click.Path(path_type=Path)


class _WithTypes(click.Command):
    """A command whose help ends with the file types."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from llmconv.quant.filetypes import ALIASES, FILE_TYPES

        names: dict[str, list[str]] = {}
        for alias, name in ALIASES.items():
            names.setdefault(name, []).append(alias)
        rows = [(", ".join([t.name, *names.get(t.name, [])]), t.note) for t in FILE_TYPES.values()]
        rows += [
            ("COPY", "only metadata and order change"),
            ("INT8", "safetensors for transformers and vLLM, not GGUF"),
        ]
        with formatter.section("Types"):
            formatter.write_dl(rows)


@click.command(cls=_WithTypes)
@click.argument("model", type=MODEL)
@click.option("-t", "--type", "types", multiple=True, required=True, metavar="TYPE", help="File type; repeatable.")
@click.option("-o", "--output", type=MODEL, help="Output; for several types a folder, or a name with {type} in it.")
@click.option("--imatrix", type=MODEL, metavar="FILE", help="Importance matrix, GGUF or .dat.")
@click.option(
    "--include-weights", multiple=True, metavar="NAME", help="Use the matrix only for names with NAME in them."
)
@click.option(
    "--exclude-weights", multiple=True, metavar="NAME", help="Don't use the matrix for names with NAME in them."
)
@click.option("--pure", is_flag=True, help="The same block type for all matrices; -t then takes any block type.")
@click.option(
    "--tensor-type", "tensor_types", multiple=True, metavar="REGEX=TYPE", help="Block type of tensors that match."
)
@click.option("--tensor-type-file", type=MODEL, metavar="FILE", help="A file of REGEX=TYPE, by spaces or lines.")
@click.option("--output-tensor-type", metavar="TYPE", help="Block type of output.weight.")
@click.option("--token-embedding-type", metavar="TYPE", help="Block type of token_embd.weight.")
@click.option("--leave-output-tensor", is_flag=True, help="Leave output.weight as it is.")
@click.option("--allow-requantize", is_flag=True, help="Quantize tensors that are quantized already; loses quality.")
@click.option("--prune-layers", metavar="L0,L1,...", help="Leave out layers; the others move up.")
@click.option("--override-kv", multiple=True, metavar="KEY=TYPE:VALUE", help="Set metadata: int, float, bool, str.")
@click.option("--keep-split", is_flag=True, help="As many files as the source has.")
@click.option("--dry-run", is_flag=True, help="Show tensors, types and the exact size; write nothing.")
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Threads.  [default: processors]")
@click.option("--allow-nonfinite", is_flag=True, help="Let NaN and infinite weights through.")
@click.option("--resumable", is_flag=True, help="When interrupted keep NAME.partial; the same command goes on.")
@click.option("--force", is_flag=True, help="Replace existing outputs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, no report.")
def quantize(
    model: Path,
    types: tuple[str, ...],
    output: Path | None,
    prune_layers: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Quantize MODEL (GGUF, safetensors file or folder, legacy JSON) to GGUF, in one read, byte for byte as llama.cpp.

    \b
    Examples:
      llmconv quantize model-f16.gguf -t Q4_K_M
      llmconv quantize hf-folder/ -t Q8_0 -t Q4_K_M -t Q6_K -o out/
      llmconv quantize model.gguf -t IQ4_XS --imatrix imatrix.gguf --dry-run
      llmconv quantize model.gguf -t Q4_K --pure --tensor-type 'attn_v=Q8_0'
    """
    bar = _Bar(quiet or as_json)
    try:
        result = llmconv.quantize(
            model, output, types, prune_layers=_layers(prune_layers), progress=bar.advance, planned=bar.start, **options
        )
    finally:
        bar.close()
    if as_json:
        click.echo(json.dumps(result.as_dict(), indent=2))
    elif not quiet:
        for note in result.notes:
            click.echo(f"note: {note}", err=True)
        for made in result.outputs:
            _report(result, made)


def _layers(text: str | None) -> list[int]:
    numbers = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdecimal() for part in numbers):
        raise llmconv.UsageError(f"--prune-layers {text!r} is not a list of layer numbers; write for example 3,4,11")
    return [int(part) for part in numbers]


def _report(result: Quantized, made: QuantizedFile) -> None:
    if not result.written:
        rows = [
            [t.name, "x".join(map(str, t.shape)), t.source_type, t.type, f"{t.source_nbytes:,}", f"{t.nbytes:,}"]
            for t in made.tensors
        ]
        click.echo(table(rows, ["tensor", "shape", "from", "to", "bytes", "bytes after"], {4, 5}))
    for sentence, count in Counter(_kind_of(w) for w in made.warnings).items():
        example = next(w for w in made.warnings if _kind_of(w) == sentence)
        click.echo(f"note: {example}" + (f" (and {count - 1} more)" if count > 1 else ""), err=True)
    names = ", ".join(str(path) for path in made.paths)
    end = f"{result.seconds:.1f} s" if result.written else "nothing was written"
    click.echo(f"{names}: {made.type}, {made.size:,} bytes, {made.bits_per_weight:.2f} bits a weight, {end}")


def _kind_of(warning: str) -> str:
    """A warning without the tensor's name, so that equal ones are counted together."""
    return warning.split("' ", 1)[-1]


class _Bar:
    """Progress on stderr, by bytes of the source, when it is a terminal."""

    def __init__(self, quiet: bool):
        self._quiet = quiet
        self._bar: Any = None

    def start(self, plan: Quantized) -> None:
        if not self._quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=plan.source_nbytes, unit="B", unit_scale=True, dynamic_ncols=True)

    def advance(self, nbytes: int, name: str) -> None:
        if self._bar is not None:
            self._bar.set_description_str(name, refresh=False)
            self._bar.update(nbytes)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


@click.command()
@click.option("-q", "--quiet", is_flag=True, help="Print nothing.")
def warmup(quiet: bool) -> None:
    """Compile all kernels for this processor now, so that the first run of each type needn't.

    They are kept in the user's cache folder (LLMCONV_CACHE_DIR names another) until the program or the processor changes.
    """
    import time

    started = time.monotonic()

    def show(done: int, name: str) -> None:
        if not quiet:
            click.echo(f"\r{done} kernels: {name:40.40}", nl=False, err=True)

    done = llmconv.warmup(show)
    if not quiet:
        click.echo("", err=True)
        click.echo(f"{done} kernels ready in {time.monotonic() - started:.1f} s")
