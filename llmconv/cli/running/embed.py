"""`llmconv embed`: texts as vectors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

import llmconv
from llmconv.cli import envelope, streams
from llmconv.cli.options import PATH, STREAM, cache_option, device_option, force_option, json_option
from llmconv.cli.running.measuring import memory_option


@click.command()
@click.argument("model", type=PATH)
@click.argument("texts", nargs=-1, metavar="TEXT...")
@click.option("--json-texts", type=STREAM, metavar="FILE", help="A JSON list of strings instead of TEXT.")
@click.option("--query", metavar="TEXT", help="For a reranker: what each TEXT is an answer to.")
@click.option("--prompt", metavar="NAME", help="One of the model's prompts by name, or a text to put before each TEXT.")
@click.option("--task", metavar="NAME", help="Of a model with an adapter for each of several tasks: which to use.")
@click.option(
    "--pooling",
    type=click.Choice(["auto", "mean", "cls", "last", "max"]),
    default="auto",
    show_default=True,
    help="How the tokens' vectors become one.",
)
@click.option("--raw", is_flag=True, help="Vectors not brought to length 1, a reranker's numbers as they are.")
@click.option("-o", "--output", type=PATH, metavar="FILE.npy", help="Write an array (texts, numbers), float32.")
@force_option
@click.option(
    "--dtype",
    type=click.Choice(["auto", "f64", "f32", "bf16", "f16"]),
    default="auto",
    show_default=True,
    help="What to compute in; quantized weights stay quantized.",
)
@device_option
@memory_option
@json_option
@cache_option
def embed(
    model: Path,
    texts: tuple[str, ...],
    json_texts: Path | None,
    query: str | None,
    prompt: str | None,
    task: str | None,
    pooling: str,
    raw: bool,
    output: Path | None,
    force: bool,
    dtype: str,
    device: str,
    memory: int | None,
    as_json: bool,
) -> None:
    """The vectors of TEXTs (or of lines of standard input) by an embedding model; a reranker's scores.

    MODEL is an encoder or decoder of any format: a folder as sentence-transformers has it, a GGUF.  A vector a line.

    \b
    Examples:
      llmconv embed bge-small/ "a text" "another" --json
      llmconv embed nomic.gguf --prompt search_query "what is a llama?" -o query.npy
      llmconv embed reranker.gguf --query "what is a llama?" "an animal" "a file format"
    """
    given: list[Any] = _given(texts, json_texts)
    if query is not None:
        given = [(query, text) for text in given]
    how: dict[str, Any] = {"device": device, "dtype": dtype, "memory": memory}
    found = llmconv.embed(model, given, prompt=prompt, task=task, pooling=pooling, normalize=not raw, **how)
    if output is not None:
        _save(found, output, force)
    if as_json:
        envelope.emit({"vectors": found.tolist(), "shape": list(found.shape), "path": output and str(output)})
    elif output is None:
        for row in found:
            click.echo(" ".join(f"{value:.9g}" for value in row))


def _save(found: Any, path: Path, force: bool) -> None:
    """Write an array as numpy's .npy."""
    import io

    import numpy as np

    from llmconv.formats.writing.outputs import Outputs

    buffer = io.BytesIO()
    np.save(buffer, found)
    with Outputs({path: buffer.tell()}, force=force) as outputs, outputs.open(path) as out:
        out.file.write(buffer.getvalue())


def _given(texts: tuple[str, ...], file: Path | None) -> list[str]:
    """The texts: those of the command, of a file, or of standard input."""
    if file is not None:
        if texts:
            raise click.UsageError("give TEXT or --json-texts, not both")
        from llmconv.convert import vocab

        with streams.given(file, ".json") as path:
            return list(vocab.read_texts(path))
    if texts:
        return [text.encode("utf-8", "surrogatepass").decode("utf-8", "replace") for text in texts]
    return sys.stdin.buffer.read().decode("utf-8", "replace").splitlines()
