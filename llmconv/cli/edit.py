"""Commands that change files but not models: edit, split, merge."""

from __future__ import annotations

from pathlib import Path

import click

import llmconv
from llmconv.cli import complete, envelope
from llmconv.cli.options import (
    PATH,
    Bar,
    cache_option,
    force_option,
    human,
    json_option,
    one_target,
    output_option,
    quiet_option,
    say,
    size_option,
)

__all__ = ["edit", "merge", "split"]


def _pairs(values: tuple[str, ...], option: str) -> dict[str, str]:
    pairs = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not (equals and key and value):
            raise llmconv.UsageError(f"{option} {text!r}: expected KEY=VALUE")
        pairs[key] = value
    return pairs


@click.command()
@click.argument("file", type=PATH)
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=[TYPE:]VALUE",
    shell_complete=complete.keys,
    help="Add or replace a key; repeatable.",
)
@click.option(
    "--rename", multiple=True, metavar="OLD=NEW", shell_complete=complete.keys, help="Rename a key; repeatable."
)
@click.option("--remove", multiple=True, metavar="KEY", shell_complete=complete.keys, help="Remove a key; repeatable.")
@click.option("-o", "--output", type=PATH, metavar="PATH", help="Write a changed copy there; FILE stays as it is.")
@force_option
@json_option
@quiet_option
def edit(
    file: Path,
    sets: tuple[str, ...],
    rename: tuple[str, ...],
    remove: tuple[str, ...],
    output: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Change the metadata of a GGUF or safetensors file, without touching tensor data when the header still fits.

    A key that is there keeps its type; --set KEY=TYPE:VALUE gives it another, and a new one its own.

    Types: u8 i8 u16 i16 u32 i32 u64 i64 f32 f64 bool str, with [] behind for a list: u32[]:1,2,3 or, for texts,
    JSON.

    \b
    Examples:
      llmconv edit model.gguf --set general.name=tiny --set llama.context_length=u32:4096
      llmconv edit model.gguf --rename general.url=general.source.url --remove general.author
      llmconv edit model.gguf --set tokenizer.ggml.add_bos_token=bool:false -o fixed.gguf
      llmconv edit model.gguf --set 'general.tags=str[]:["tiny", "stories"]'
    """
    from llmconv.formats.edit import parse_all

    if not (sets or rename or remove):
        raise llmconv.UsageError("nothing to change; give --set, --rename or --remove")
    values = parse_all(file, _pairs(sets, "--set"))
    result = llmconv.edit(
        file, set=values, rename=_pairs(rename, "--rename"), remove=remove, output=output, force=force
    )
    if quiet:
        return
    if as_json:
        envelope.emit(result.as_dict())
        return
    if result.recovered:
        click.echo(f"note: {file}: an edit that had been cut off was undone first", err=True)
    say(f"{result.path}: {'header replaced in place' if result.in_place else 'written anew'}")


def _report(paths: list[Path], quiet: bool, as_json: bool) -> None:
    sizes = [path.stat().st_size for path in paths]
    if as_json and not quiet:
        rows = [{"path": str(path), "nbytes": size} for path, size in zip(paths, sizes, strict=True)]
        envelope.emit(rows)
        return
    for path, size in zip(paths, sizes, strict=True):
        say(f"{path}: {human(size)}", quiet)


@click.command()
@click.argument("source", type=PATH)
@click.argument("target", type=PATH, required=False)
@size_option("--max-size", "Largest size of a part: 4G, 500M, 1GiB.")
@click.option("--max-tensors", type=click.IntRange(min=1), metavar="N", help="Most tensors in a part (GGUF only).")
@output_option
@force_option
@json_option
@quiet_option
@cache_option
def split(
    source: Path,
    target: Path | None,
    max_size: int | None,
    max_tensors: int | None,
    output: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Split a GGUF or safetensors model into shards.

    \b
    Examples:
      llmconv split model.gguf --max-size 4G
      llmconv split hf-folder/ sharded/ --max-size 5GB
    """
    with Bar(quiet or as_json, source.name) as progress:
        paths = llmconv.split(
            source,
            one_target(target, output),
            max_size=max_size or 0,
            max_tensors=max_tensors or 0,
            force=force,
            progress=progress,
        )
    _report(paths, quiet, as_json)


@click.command()
@click.argument("source", type=PATH)
@click.argument("target", type=PATH, required=False)
@output_option
@force_option
@json_option
@quiet_option
@cache_option
def merge(source: Path, target: Path | None, output: Path | None, force: bool, as_json: bool, quiet: bool) -> None:
    """Join the shards of a GGUF or safetensors model into one.

    \b
    Examples:
      llmconv merge model-00001-of-00003.gguf model.gguf
      llmconv merge sharded/ one-file.safetensors
    """
    path = one_target(target, output)
    if path is None:
        raise click.UsageError("Missing argument 'TARGET'.")
    with Bar(quiet or as_json, source.name) as progress:
        paths = llmconv.merge(source, path, force=force, progress=progress)
    _report(paths, quiet, as_json)
