"""Commands quantize and warmup."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

import llmconv
from llmconv.cli import complete, envelope
from llmconv.cli.options import (
    PATH,
    Bar,
    Number,
    ask,
    cache_option,
    force_option,
    human,
    jobs_option,
    json_option,
    notes,
    portable_option,
    quiet_options,
    read_hf_options,
    read_json_options,
    say,
    size_option,
    split_option,
    strict_option,
    yes_option,
)
from llmconv.cli.reports import table
from llmconv.cli.running.calibrate import calibration_of

if TYPE_CHECKING:
    from llmconv.convert.quantizing.quantize import Quantized, QuantizedFile
    from llmconv.convert.reports.sharing import SharePlan

__all__ = ["quantize", "warmup"]

_OF_A_PLAN = {"model", "rest", "types", "processes", "disk", "network", "jobs"}
_OF_ANY = {"output", "force", "yes", "cache", "as_json", "quiet", "verbose"}


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
            ("W4A16", "4 bits for transformers and vLLM; Q4_0, Q8_0, GPTQ ... number for number"),
            ("W4A16_ASYM", "the same with zero points; AWQ number for number"),
            ("MLX", "4 bits for MLX; Q4_0, Q4_1, Q8_0, MXFP4, TQ2_0 ... number for number"),
            ("MLX2, MLX3, MLX5, MLX6, MLX8", "the same; what is in floats in so many bits"),
            ("MLX_MXFP4", "the same; what is in floats as MXFP4"),
            ("NVFP4A16, MXFP4A16", "floats of 4 bits for transformers and vLLM; NVFP4, MXFP4 number for number"),
            ("FP8_DYNAMIC, FP8_BLOCK", "floats of 8 bits for them, scaled by row, or by blocks of 128 x 128"),
            ("REPACK, AUTO", "of a quantized folder, each layer's smallest type that says its numbers exactly"),
        ]
        with formatter.section("Types"):
            formatter.write_dl(rows)


@click.command(cls=_WithTypes)
@click.argument("model", type=PATH)
@click.argument("rest", nargs=-1, metavar="[OUTPUT] [TYPE]", shell_complete=complete.types)
@click.option(
    "-t",
    "--type",
    "types",
    multiple=True,
    metavar="TYPE",
    shell_complete=complete.types,
    help="File type; repeatable.",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="PATH",
    help="Output; for several types a folder, or a name with {type} in it; hf://ORG/NAME sends it there.",
)
@click.option("--imatrix", type=PATH, metavar="FILE", help="Importance matrix, GGUF or .dat.")
@click.option(
    "--include-weights", multiple=True, metavar="NAME", help="Use the matrix only for names with NAME in them."
)
@click.option(
    "--exclude-weights", multiple=True, metavar="NAME", help="Don't use the matrix for names with NAME in them."
)
@click.option(
    "--calibrate",
    "texts",
    multiple=True,
    type=PATH,
    metavar="TEXT",
    help="Round so that errors cost little on such text; repeatable.  Needs torch, and minutes.",
)
@click.option("--calibration", type=PATH, metavar="FILE", help="What llmconv calibrate made of this model.")
@click.option(
    "--effort",
    type=click.Choice(["fast", "standard", "best"]),
    help="Of --calibrate: fast looks at inputs alone, best searches for longer.  [default: standard]",
)
@click.option(
    "--verify-calibration",
    "unseen",
    multiple=True,
    type=PATH,
    metavar="TEXT",
    help="Other such text: measure there, and round plainly what is worse; repeatable.",
)
@size_option(
    "--memory", "Of --calibrate and --calibration: what weights and results may take.  [default: most of what is free]"
)
@size_option("--target-size", "In place of -t: the best mix of types for a file of at most so many bytes.")
@click.option("--bpw", type=Number(0), metavar="X", help="The same for so many bits a weight.")
@click.option(
    "--target-kld", type=Number(0), metavar="X", help="The smallest mix predicted to lose no more; with --calibrate."
)
@click.option(
    "--types", "mix_types", metavar="TYPES", help="What a mix may use, with commas.  [default: K, legacy, IQ4]"
)
@click.option("--min-type", "min_types", multiple=True, metavar="REGEX=TYPE", help="No fewer bits, where it matches.")
@click.option("--save-recipe", type=PATH, metavar="FILE", help="Write the mix, for --tensor-type-file.")
@click.option("--pure", is_flag=True, help="The same block type for all matrices; -t then takes any block type.")
@click.option(
    "--tensor-type", "tensor_types", multiple=True, metavar="REGEX=TYPE", help="Block type of tensors that match."
)
@click.option("--tensor-type-file", type=PATH, metavar="FILE", help="A file of REGEX=TYPE, by spaces or lines.")
@click.option("--output-tensor-type", metavar="TYPE", help="Block type of output.weight.")
@click.option("--token-embedding-type", metavar="TYPE", help="Block type of token_embd.weight.")
@click.option("--leave-output-tensor", is_flag=True, help="Leave output.weight as it is.")
@click.option("--allow-requantize", is_flag=True, help="Quantize tensors that are quantized already; loses quality.")
@click.option("--prune-layers", metavar="L0,L1,...", help="Leave out layers; the others move up.")
@click.option("--override-kv", multiple=True, metavar="KEY=TYPE:VALUE", help="Set metadata: int, float, bool, str.")
@click.option("--fallback", metavar="TYPE", help="Of REPACK: block type of matrices that no type says exactly.")
@click.option("--round-sums", is_flag=True, help="Of REPACK: zero points as Q4_1's sums, in float16, not as Q5_0.")
@click.option("--group-size", type=click.Choice(["32", "64", "128"]), help="Of W4A16 and MLX: columns under a scale.")
@click.option("--keep-split", is_flag=True, help="As many files as the source has.")
@split_option
@click.option(
    "--provenance", is_flag=True, help="Record the source's content hash and the type; see verify --provenance."
)
@portable_option
@click.option(
    "--plan",
    "processes",
    type=click.IntRange(min=1, max=65536),
    metavar="N",
    help="Print who of N processes (under torchrun) does what; MODEL may be a config.json or a preset.",
)
@size_option("--disk", "Of a plan: bytes a second of the disk that all processes share.")
@size_option("--network", "Of a plan: bytes a second between that disk and each process.")
@click.option("--dry-run", is_flag=True, help="Show tensors, types and the exact size; write nothing.")
@click.option("--allow-nonfinite", is_flag=True, help="Let NaN and infinite weights through.")
@click.option("--resumable", is_flag=True, help="When interrupted keep NAME.partial; the same command goes on.")
@strict_option
@read_json_options
@read_hf_options
@force_option
@yes_option
@cache_option
@jobs_option
@json_option
@quiet_options
def quantize(
    model: Path,
    rest: tuple[str, ...],
    types: tuple[str, ...],
    output: Path | None,
    texts: tuple[Path, ...],
    calibration: Path | None,
    effort: str | None,
    unseen: tuple[Path, ...],
    memory: int | None,
    mix_types: str | None,
    processes: int | None,
    disk: int | None,
    network: int | None,
    prune_layers: str | None,
    yes: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Quantize MODEL (GGUF, safetensors file or folder, legacy JSON) to GGUF, in one read, byte for byte as llama.cpp.

    \b
    Examples:
      llmconv quantize model-f16.gguf -t Q4_K_M
      llmconv quantize model-f16.gguf small.gguf Q4_K_M
      llmconv quantize hf-folder/ -t Q8_0 -t Q4_K_M -t Q6_K -o out/
      llmconv quantize model.gguf -t IQ4_XS --imatrix imatrix.gguf --dry-run
      llmconv quantize model.gguf -t Q4_K_M --calibrate text.txt
      llmconv quantize model.gguf --target-size 3.4G --calibrate text.txt --save-recipe mix.txt
      llmconv quantize model.gguf -t Q4_K --pure --tensor-type 'attn_v=Q8_0'
      llmconv quantize awq-folder/ -t REPACK --dry-run
      llmconv quantize weights.json -t Q8_0 --layout plain
      llmconv quantize hf://org/name -t Q8_0 -t Q4_K_M -o hf://me/name-GGUF
    """
    output, types = _as_llama_quantize(rest, output, types, options)
    if processes is not None:
        _check_plan(types)
        _plan(
            llmconv.shares(str(model), types[0], processes, disk=disk or 0, network=network or 0, jobs=options["jobs"]),
            as_json,
        )
        return
    if disk or network:
        raise click.UsageError("--disk and --network are of a plan; give --plan N")
    options["group_size"] = int(options["group_size"]) if options["group_size"] else None
    options["split_max_size"] = options["split_max_size"] or 0
    layers = _layers(prune_layers)
    if not options["dry_run"]:
        ask(output, yes, quiet or as_json, lambda: _planned(model, output, types, prune_layers=layers, **options))
    with Bar(quiet or as_json, model.name) as progress:
        result = llmconv.quantize(
            model,
            output,
            types,
            calibration=calibration_of(texts, calibration, effort, unseen, memory),
            prune_layers=layers,
            types=[name.strip() for name in mix_types.split(",")] if mix_types else (),
            progress=progress,
            **options,
        )
    if quiet:
        return
    if as_json:
        envelope.emit(result.as_dict())
        return
    notes(list(result.notes))
    for made in result.outputs:
        _report(result, made, verbose)
    if result.url:
        say(result.url)


def _planned(model: Path, output: Path | None, types: tuple[str, ...], **options: Any) -> None:
    """Show the files that would be sent."""
    if options["target_size"] is options["bpw"] is options["target_kld"] is None:
        result = llmconv.quantize(model, output, types, **{**options, "dry_run": True})
        rows = [[str(path), made.type, human(made.size)] for made in result.outputs for path in made.paths]
        click.echo(table(rows, ["file", "type", "bytes in all"], {2}))


def _check_plan(types: tuple[str, ...]) -> None:
    """A plan is of one type and knows no other options; what it would leave out is refused."""
    context = click.get_current_context()
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if given and option.name not in _OF_A_PLAN | _OF_ANY:
            raise click.UsageError(f"--plan knows nothing of {option.opts[-1]}; leave it out")
    if len(types) != 1:
        raise click.UsageError("--plan is of one type; give one -t")


def _plan(plan: SharePlan, as_json: bool) -> None:
    """Who does what, as JSON or a table."""
    if as_json:
        envelope.emit(plan.as_dict())
        return
    rows = []
    for share in plan.shares:
        seconds = [f"{share.seconds:.0f}", f"{share.moving:.0f}"]
        moved = [human(share.read), human(share.written)]
        rows.append([str(share.rank), str(share.tensors), f"{share.first} … {share.last}", *moved, *seconds])
    head = ["process", "tensors", "of", "reads", "writes", "s of arithmetic", "s of network"]
    click.echo(table(rows, head, {0, 1, 3, 4, 5, 6}))
    if plan.disk_seconds:
        disk = f"the shared disk is busy for {plan.disk_seconds:,.0f} s"
    else:
        disk = "the shared disk is not counted (--disk)"
    say(
        f"{plan.name}: {plan.parameters:,} parameters, {human(plan.source_nbytes)} of {plan.source_type} to "
        f"{human(plan.size)} of {plan.type}: about {plan.seconds:,.0f} s, bound by {plan.bound_by}; {disk}, the mean "
        f"process for {plan.balance:.0%} of the longest"
    )


def _as_llama_quantize(
    rest: tuple[str, ...], output: Path | None, types: tuple[str, ...], options: dict[str, Any]
) -> tuple[Path | None, tuple[str, ...]]:
    """Output and types, also when they are given as llama-quantize takes them: MODEL [OUTPUT] TYPE [THREADS]."""
    from llmconv.quant.filetypes import NO_FILE_TYPES, file_type

    words = list(rest)
    if len(words) > 1 and words[-1].isdecimal() and options["jobs"] is None and not types:
        options["jobs"] = int(words.pop()) or None
    if words and not types and options["target_size"] is options["bpw"] is options["target_kld"] is None:
        file_type(words[-1], bool(options["pure"])) if words[-1].upper() not in NO_FILE_TYPES else None
        types = (words.pop(),)
    if words and output is None:
        output = Path(words.pop())
    searched = any(options[name] is not None for name in ("target_size", "bpw", "target_kld"))
    if searched and types:
        raise click.UsageError("a mix has its own types; leave -t out, or --target-size, --bpw and --target-kld")
    if words:
        raise click.UsageError(f"{words[0]!r} is one word too many; give MODEL, -o OUTPUT and -t TYPE")
    if searched:
        return output, ("Q4_K_M",)  # which is not looked at
    if not types:
        raise click.UsageError("Missing option '-t' / '--type'.")
    return output, types


def _layers(text: str | None) -> list[int]:
    numbers = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdecimal() for part in numbers):
        raise llmconv.UsageError(f"--prune-layers {text!r} is not a list of layer numbers; write for example 3,4,11")
    return [int(part) for part in numbers]


def _report(result: Quantized, made: QuantizedFile, verbose: bool) -> None:
    if verbose or not result.written:
        rows = [
            [t.name, "x".join(map(str, t.shape)), t.source_type, t.type, f"{t.source_nbytes:,}", f"{t.nbytes:,}"]
            + [f"{x:.3g}" if x is not None else "" for x in (t.loss_before, t.loss_after)]
            for t in made.tensors
        ]
        head = ["tensor", "shape", "from", "to", "bytes", "bytes after", "loss plain", "loss"]
        width = 8 if any(t.loss_after is not None for t in made.tensors) else 6
        click.echo(table([row[:width] for row in rows], head[:width], {4, 5, 6, 7}))
    for sentence, count in Counter(_kind_of(w) for w in made.warnings).items():
        example = next(w for w in made.warnings if _kind_of(w) == sentence)
        notes([example + (f" (and {count - 1} more)" if count > 1 else "")])
    names = ", ".join(str(path) for path in made.paths)
    end = f"{result.seconds:.1f} s" if result.written else "nothing was written"
    end = f"{made.proof}, {end}" if made.proof else end
    say(f"{names}: {made.type}, {made.size:,} bytes, {made.bits_per_weight:.2f} bits a weight, {end}")
    losses = [(t.loss_before, t.loss_after) for t in made.tensors if t.loss_before is not None]
    if losses:
        before, after = (sum(x for x in side if x is not None) for side in zip(*losses, strict=True))
        say(f"predicted loss of {len(losses)} tensors: {before:.4g} rounded plainly, {after:.4g} calibrated")


def _kind_of(warning: str) -> str:
    """A warning without the tensor's name, so that equal ones are counted together."""
    return re.sub(r"'[^']*'", "", warning, count=1)


@click.command()
@click.option("-q", "--quiet", is_flag=True, help="Print nothing.")
def warmup(quiet: bool) -> None:
    """Compile all kernels for this processor now, so that the first run of each type needn't.

    They are kept in the user's cache folder (LLMCONV_CACHE_DIR names another) until the program or the processor
    changes.

    \b
    Example:
      llmconv warmup
    """
    import time

    started = time.monotonic()

    with Bar(quiet) as progress:
        done = llmconv.warmup(progress)
    if not quiet:
        click.echo(f"{done} kernels ready in {time.monotonic() - started:.1f} s")
