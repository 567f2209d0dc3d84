"""`llmconv tokenize` and `llmconv detokenize`: texts as token ids, and back."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import click

from llmconv.cli import complete, envelope, streams
from llmconv.cli.options import PATH, STREAM, cache_option, json_option
from llmconv.errors import about

_MODEL = click.argument("model", type=PATH)
_PRE = click.option(
    "--pre",
    metavar="NAME",
    shell_complete=complete.pre_tokenizers,
    help="Name of the BPE pre-tokenizer, over what the file says.",
)


@click.command()
@_MODEL
@click.argument("text", required=False)
@click.option(
    "--json-texts",
    type=STREAM,
    metavar="FILE",
    help="A JSON list of strings; prints a JSON list of id lists, nothing added before or after.",
)
@click.option("--add-special", is_flag=True, help="Put BOS, EOS, ... around the text as the model wants them.")
@click.option("--parse-special", is_flag=True, help="Special tokens written in the text become those tokens.")
@click.option("--ids", "only_ids", is_flag=True, help="Print the ids alone, in one line.")
@json_option
@_PRE
@cache_option
def tokenize(
    model: Path,
    text: str | None,
    json_texts: Path | None,
    add_special: bool,
    parse_special: bool,
    only_ids: bool,
    as_json: bool,
    pre: str | None,
) -> None:
    """Split TEXT (or standard input, also `-`) into the tokens of MODEL: one line each, id and piece.

    MODEL is a model of any format, a folder with tokenizer files, or a tokenizer file.

    \b
    Examples:
      llmconv tokenize model.gguf 'Once upon a time'
      llmconv tokenize model.gguf --json-texts texts.json
    """
    import orjson

    from llmconv.convert import vocab

    if (text is not None) and json_texts is not None:
        raise click.UsageError("give TEXT or --json-texts, not both")
    with about(model):
        tokenizer = vocab.tokenizer(vocab.load(model, pre=pre))
    if json_texts is not None:
        with streams.given(json_texts, ".json") as path:
            texts = vocab.read_texts(path)
        lists = [tokenizer.encode(t, parse_special=parse_special) for t in texts]
        click.echo(orjson.dumps(lists).decode())
        return
    if text is None or text == "-":
        text = sys.stdin.buffer.read().decode("utf-8", "replace")
    ids = tokenizer.encode(text, add_special=add_special, parse_special=parse_special)
    if only_ids:
        click.echo(" ".join(map(str, ids)))
        return
    if as_json:
        envelope.emit({"ids": ids, "pieces": list(tokenizer.pieces(ids))})
        return
    width = len(str(len(tokenizer)))
    for id, piece in zip(ids, tokenizer.pieces(ids), strict=True):
        click.echo(f"{id:>{width}}  {piece!r}")


class _Id(click.ParamType):  # type: ignore[type-arg]
    """A number, or `-` for those on standard input."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        words = [value] if value != "-" else sys.stdin.buffer.read().decode("utf-8", "replace").split()
        number: Any = click.INT
        return [number.convert(word, param, ctx) for word in words]


@click.command(epilog="Example: llmconv detokenize model.gguf 1 9038 2501 263 931")
@_MODEL
@click.argument("ids", nargs=-1, type=_Id(), required=True)
@click.option("--special", is_flag=True, help="Print control tokens too.")
@_PRE
@cache_option
def detokenize(model: Path, ids: tuple[list[int], ...], special: bool, pre: str | None) -> None:
    """Print the text of the token IDS of MODEL; `-` stands for those on standard input."""
    from llmconv.convert import vocab

    with about(model):
        tokenizer = vocab.tokenizer(vocab.load(model, pre=pre))
    click.echo(tokenizer.decode(itertools.chain(*ids), special=special))
