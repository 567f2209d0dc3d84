"""The commands `convert` and the six NAME-to-NAME."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import llmconv
from llmconv.cli import complete, envelope, streams
from llmconv.cli.options import (
    PATH,
    STREAM,
    TARGET,
    Bar,
    ask,
    command_options,
    human,
    key_option,
    layout_option,
    notes,
    one_target,
    portable_option,
    read_hf_options,
    read_json_options,
    say,
    size_option,
    split_option,
    strict_option,
)
from llmconv.cli.reports import table

__all__ = [
    "convert",
    "gguf_to_json",
    "gguf_to_safetensors",
    "json_to_gguf",
    "json_to_safetensors",
    "safetensors_to_gguf",
    "safetensors_to_json",
]


class _Outtype(click.Choice):  # type: ignore[type-arg]  # generic only since click 8.2
    """A choice whose mistakes the API explains: it knows what people meant."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from llmconv.convert.writing.cast import check_outtype

        check_outtype(str(value).lower())
        return str(value).lower()


_OUTTYPES = _Outtype(["auto", "f64", "f32", "f16", "bf16"])
_BASE = click.option(
    "--base",
    type=PATH,
    metavar="MODEL",
    help="Of an adapter (LoRA) or a draft (EAGLE-3, DFlash): the model that it is for; no weight of it is read.",
)
_WEIGHTS = (
    click.option(
        "--outtype",
        type=_OUTTYPES,
        default="auto",
        show_default=True,
        help="Type of the weights. auto: f32 from JSON, else as stored. Vectors stay f32 in a GGUF of 16 bits.",
    ),
    click.option(
        "--allow-overflow", is_flag=True, help="Let weights that the type can't hold become infinite, not an error."
    ),
    strict_option,
    click.option(
        "--provenance", is_flag=True, help="Record the source's content hash and the rounding; see verify --provenance."
    ),
)
_EXCLUDE = (
    click.option(
        "--exclude", multiple=True, metavar="PATTERN", help="Leave tensors out by name (* for any); repeatable."
    ),
)
_WRITE_JSON = (
    click.option(
        "--layout",
        metavar="NAME",
        shell_complete=complete.layouts,
        help="JSON layout to write; by default the one it came in.",
    ),
)
_JSON_NUMBERS = (
    click.option(
        "--json-digits",
        type=click.Choice(["exact", "shortest"]),
        help="exact: each weight's double, the default; shortest: the digits that give the same float, half the size.",
    ),
    click.option(
        "--json-compact", is_flag=True, default=None, help="JSON on one line without spaces, whatever it was before."
    ),
)
_WRITE_GGUF = (
    split_option,
    click.option("--split-max-tensors", type=click.IntRange(min=1), metavar="N", help="Split the GGUF by tensors."),
    portable_option,
)
_TOWER = (
    click.option(
        "--mmproj",
        is_flag=False,
        flag_value="",
        metavar="[FILE]",
        help="Of a multimodal folder: write its tower alone. Of a GGUF that becomes a folder: the file of its tower.",
    ),
    click.option("--text-only", is_flag=True, help="Of a multimodal model: leave its tower out."),
)
_FURTHER = (
    click.option(
        "--mtp",
        is_flag=False,
        flag_value="",
        metavar="[FILE]",
        help="Write the layers for further tokens alone, a draft. FILE: such a file, to put into the GGUF SRC.",
    ),
    click.option("--no-mtp", is_flag=True, help="Leave the layers for further tokens out."),
)
_READ = (read_json_options, read_hf_options, key_option)
_VOCAB_ONLY = click.option(
    "--vocab-only", is_flag=True, help="Write the tokenizer alone; SRC may be a folder that holds no weights."
)
to_option = click.option("--to", metavar="FORMAT", help="The format to write, where DST's name does not tell.")
_WRITE_SAFETENSORS = (size_option("--max-shard-size", "Shard a model folder: 5G a file, say."),)


def run(src: Path, dst: str | None, to: str | None, source_format: str | None, **options: Any) -> None:
    """What every command here does: parse, convert, print."""
    quiet, verbose, as_json = options.pop("quiet"), options.pop("verbose"), options.pop("as_json")
    dst = one_target(dst, options.pop("output"))
    yes = options.pop("yes")
    options = {k: v for k, v in options.items() if v is not None}
    options |= {name: True for name in ("mmproj", "mtp") if options.get(name) == ""}
    ask(dst, yes, quiet or as_json, lambda: _planned(src, dst, to, source_format, options))
    if dst is None and to is None:
        to = "gguf"
    if dst == "-" and (as_json or to != "json"):
        raise click.UsageError("only JSON can be written to standard output, with -to-json commands and no --json")
    given, taken, bar = streams.given(src, ".json", dst), streams.taken(dst, ".json"), Bar(quiet or as_json, src.name)
    with given as source, taken as target, bar as progress:
        result = llmconv.convert_file(source, target, to=to, source_format=source_format, progress=progress, **options)
    if dst == "-":
        notes([*result.notes, summary(result)], quiet)
        return
    if as_json:
        if not quiet:
            envelope.emit(result)
        return
    notes(result.notes, quiet)
    if verbose:
        for path in result.paths:
            say(f"{path}  {human(path.stat().st_size)}" if not result.url else str(path), quiet)
        say("types: " + ", ".join(f"{count} {name}" for name, count in result.types.items()), quiet)
    say(summary(result), quiet)


def _planned(src: Path, dst: Any, to: str | None, source_format: str | None, options: dict[str, Any]) -> None:
    """Show the files that would be sent."""
    plain = {**options, "provenance": False}  # which reads all of the source
    result = llmconv.convert_file(src, dst, to=to, source_format=source_format, dry_run=True, **plain)
    notes(result.notes, False)
    types = ", ".join(f"{count} {name}" for name, count in result.types.items())
    click.echo(table([[str(path)] for path in result.paths], ["file"]))
    click.echo(f"{result.n_tensors:,} tensors ({types}), {human(result.size)} in all")


def summary(result: Any) -> str:
    """One line: what was written, how much smaller it is, what was rounded, and the time."""
    written = str(result.target)
    if result.url:
        written = result.url
    elif len(result.paths) > 1 and not result.target.exists():  # a split GGUF, whose parts have names of their own
        written = f"{result.paths[0]} and {len(result.paths) - 1} more"
    plural = "" if result.n_tensors == 1 else "s"
    parts = [f"{written}: {result.n_tensors:,} tensor{plural}, {result.n_elements:,} weights"]
    before, after = result.source_size, result.size
    parts.append(f"{human(before)} -> {human(after)}" if before else human(after))
    if result.rounding:
        parts.append(f"largest relative rounding {result.rounding:.2g}")
    else:
        parts.append("no rounding")
    if result.overflows:
        parts.append(f"{result.overflows:,} weights became infinite")
    if result.underflows:
        parts.append(f"{result.underflows:,} weights became zero")
    return ", ".join(parts) + f", {result.seconds:.2f} s"


def _command(
    name: str, source: str | None, to: str | None, text: str, options: tuple[Callable[[Any], Any], ...]
) -> click.Command:
    def body(src: Path, dst: str | None, **rest: Any) -> None:
        run(src, dst, rest.pop("to", None) or to, source, **rest)

    body.__doc__ = text
    fn = command_options(body)
    for decorator in reversed((*_WEIGHTS, *options)):
        fn = decorator(fn)
    fn = click.argument("dst", type=TARGET, required=False)(fn)
    fn = click.argument("src", type=STREAM)(fn)
    return click.command(name)(fn)


convert = _command(
    "convert",
    None,
    None,
    """Convert a model between formats: SRC by its content, DST by its name.

    SRC is a GGUF, safetensors, JSON, MessagePack, PyTorch, numpy, Keras, ONNX or TensorFlow.js file, or a model folder.
    DST ends in .gguf, .safetensors, .json, .msgpack, .tfjs, .pt, .npz or .pkl; a name without an ending is a model
    folder.  Without DST, a GGUF beside SRC.

    \b
    Examples:
      llmconv convert model.json model.gguf
      llmconv convert ./TinyLlama tinyllama.gguf --outtype f16
      llmconv convert model.gguf ./model-folder --max-shard-size 5G
      llmconv convert ./adapter adapter.gguf --base ./TinyLlama
      llmconv convert hf://org/name hf://me/name-GGUF --split-max-size 4G
      llmconv convert ./Gemma3 gemma.gguf                         # and mmproj-gemma.gguf, its tower
      llmconv convert gemma.gguf ./copy --mmproj mmproj-gemma.gguf
      llmconv convert ./DeepSeek draft.gguf --mtp                 # its layer for further tokens, for llama.cpp's drafts
    """,
    (
        read_json_options,
        read_hf_options,
        key_option,
        to_option,
        *_EXCLUDE,
        *_WRITE_GGUF,
        *_WRITE_SAFETENSORS,
        *_JSON_NUMBERS,
        _VOCAB_ONLY,
        _BASE,
        *_TOWER,
        *_FURTHER,
    ),
)

json_to_gguf = _command(
    "json-to-gguf",
    "json",
    "gguf",
    """Convert legacy JSON (or MessagePack) to GGUF.

    The layout is recognised by the document's keys.  At --outtype f64 nothing is rounded, and gguf-to-json gives the
    file back byte for byte; at f32, the default, the summary says what the rounding was.

    \b
    Examples:
      llmconv json-to-gguf model.json
      llmconv json-to-gguf model.json exact.gguf --outtype f64
      llmconv json-to-gguf weights.json --layout plain
    """,
    (read_json_options, *_WRITE_GGUF),
)

json_to_safetensors = _command(
    "json-to-safetensors",
    "json",
    "safetensors",
    """Convert legacy JSON (or MessagePack) to safetensors.

    A DST that ends in .safetensors becomes a lone file with configuration and vocabulary in its metadata, any other a
    model folder.

    \b
    Examples:
      llmconv json-to-safetensors model.json
      llmconv json-to-safetensors model.json ./model-folder --outtype f64
    """,
    (read_json_options, *_WRITE_SAFETENSORS),
)

safetensors_to_gguf = _command(
    "safetensors-to-gguf",
    "safetensors",
    "gguf",
    """Convert a Hugging Face style folder, or a safetensors file, to GGUF.

    \b
    Examples:
      llmconv safetensors-to-gguf ./TinyLlama
      llmconv safetensors-to-gguf ./TinyLlama tinyllama-f16.gguf --outtype f16
      llmconv safetensors-to-gguf weights.safetensors --split-max-size 2G
      llmconv safetensors-to-gguf ./Llama tuned.gguf --lora ./adapter
    """,
    (layout_option, read_hf_options, *_EXCLUDE, *_WRITE_GGUF, *_TOWER, *_FURTHER),
)

safetensors_to_json = _command(
    "safetensors-to-json",
    "safetensors",
    "json",
    """Convert safetensors to legacy JSON.

    A model that was JSON comes back in its layout; any other becomes a map of named tensors.

    \b
    Examples:
      llmconv safetensors-to-json model.safetensors
      llmconv safetensors-to-json ./model-folder model.json
    """,
    (*_EXCLUDE, *_WRITE_JSON, *_JSON_NUMBERS),
)

gguf_to_json = _command(
    "gguf-to-json",
    "gguf",
    "json",
    """Convert GGUF to legacy JSON.

    A model that was JSON comes back in its layout, with numbers, key order and spaces as they were; any other becomes
    a map of named tensors.  Quantized weights are decoded.

    \b
    Examples:
      llmconv gguf-to-json model.gguf
      llmconv gguf-to-json model.gguf copy.json --layout named
    """,
    (*_EXCLUDE, *_WRITE_JSON, *_JSON_NUMBERS),
)

gguf_to_safetensors = _command(
    "gguf-to-safetensors",
    "gguf",
    "safetensors",
    """Convert GGUF to safetensors: a lone file if DST ends in .safetensors, else a Hugging Face style folder.

    \b
    Examples:
      llmconv gguf-to-safetensors model.gguf
      llmconv gguf-to-safetensors model.gguf ./model-folder --outtype bf16 --max-shard-size 5G
    """,
    (*_EXCLUDE, *_WRITE_SAFETENSORS, *_TOWER),
)
