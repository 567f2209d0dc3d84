"""Commands that change files but not models: edit, split, merge."""

from __future__ import annotations

from pathlib import Path

import click

import llmconv

__all__ = ["edit", "merge", "split"]

MODEL = click.Path(path_type=Path)


def _pairs(values: tuple[str, ...], option: str) -> dict[str, str]:
    pairs = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not (equals and key and value):
            raise llmconv.UsageError(f"{option} {text!r}: expected KEY=VALUE")
        pairs[key] = value
    return pairs


@click.command()
@click.argument("file", type=MODEL)
@click.option("--set", "sets", multiple=True, metavar="KEY=TYPE:VALUE", help="Add or replace a key; repeatable.")
@click.option("--rename", multiple=True, metavar="OLD=NEW", help="Rename a key; repeatable.")
@click.option("--remove", multiple=True, metavar="KEY", help="Remove a key; repeatable.")
@click.option("-o", "--output", type=MODEL, help="Write a changed copy there; FILE stays as it is.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing.")
def edit(
    file: Path,
    sets: tuple[str, ...],
    rename: tuple[str, ...],
    remove: tuple[str, ...],
    output: Path | None,
    force: bool,
    quiet: bool,
) -> None:
    """Change the metadata of a GGUF or safetensors file, without touching tensor data when the header still fits.

    Types: u8 i8 u16 i16 u32 i32 u64 i64 f32 f64 bool str, with [] behind for a list.

    \b
    Examples:
      llmconv edit model.gguf --set general.name=str:tiny --set llama.context_length=u32:4096
      llmconv edit model.gguf --rename general.url=general.source.url --remove general.author
      llmconv edit model.gguf --set 'tokenizer.ggml.add_bos_token=bool:false' -o fixed.gguf
    """
    from llmconv.formats.edit import parse_value

    if not (sets or rename or remove):
        raise llmconv.UsageError("nothing to change; give --set, --rename or --remove")
    values = {key: parse_value(value) for key, value in _pairs(sets, "--set").items()}
    result = llmconv.edit(
        file, set=values, rename=_pairs(rename, "--rename"), remove=remove, output=output, force=force
    )
    if not quiet:
        if result.recovered:
            click.echo(f"{file}: an edit that had been cut off was undone first", err=True)
        click.echo(f"{result.path}: {'header replaced in place' if result.in_place else 'written anew'}")


def _report(paths: list[Path], quiet: bool) -> None:
    if not quiet:
        for path in paths:
            click.echo(f"{path}: {path.stat().st_size:,} bytes")


@click.command()
@click.argument("source", type=MODEL)
@click.argument("target", type=MODEL, required=False)
@click.option("--max-size", metavar="SIZE", help="Largest size of a part: 4G, 500M, 1GiB.")
@click.option("--max-tensors", type=click.IntRange(min=1), default=None, help="Most tensors in a part (GGUF only).")
@click.option("--force", is_flag=True, help="Replace existing files.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing.")
def split(
    source: Path, target: Path | None, max_size: str | None, max_tensors: int | None, force: bool, quiet: bool
) -> None:
    """Split a GGUF or safetensors model into shards.

    \b
    Examples:
      llmconv split model.gguf --max-size 4G
      llmconv split hf-folder/ sharded/ --max-size 5GB
    """
    size = llmconv.parse_size(max_size) if max_size else 0
    _report(llmconv.split(source, target, max_size=size, max_tensors=max_tensors or 0, force=force), quiet)


@click.command()
@click.argument("source", type=MODEL)
@click.argument("target", type=MODEL)
@click.option("--force", is_flag=True, help="Replace existing files.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing.")
def merge(source: Path, target: Path, force: bool, quiet: bool) -> None:
    """Join the shards of a GGUF or safetensors model into one.

    \b
    Examples:
      llmconv merge model-00001-of-00003.gguf model.gguf
      llmconv merge sharded/ one-file.safetensors
    """
    _report(llmconv.merge(source, target, force=force), quiet)
