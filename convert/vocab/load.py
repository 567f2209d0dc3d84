"""The vocabulary of whatever is given: a checkpoint, a model file, a folder, a tokenizer file."""

from __future__ import annotations

from pathlib import Path

import llmconv.formats
from llmconv.convert.tables.config import read_config
from llmconv.convert.translate import translate
from llmconv.convert.vocab.keys import from_gguf
from llmconv.convert.vocab.model import Vocab
from llmconv.convert.vocab.read.files import from_files
from llmconv.convert.vocab.read.folder import NAMES
from llmconv.errors import LlmconvError, UsageError, about, at
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.places.names import place

__all__ = ["load", "of"]


def of(checkpoint: Checkpoint, *, pre: str | None = None) -> Vocab | None:
    """A checkpoint's vocabulary, in whatever dialect it is; None when it carries none.

    pre: the name of the pre-tokenizer, over what the file says.
    """
    with about(checkpoint.source):
        return _of(checkpoint, pre)


def _of(checkpoint: Checkpoint, pre: str | None) -> Vocab | None:
    match checkpoint.dialect:
        case "gguf":
            vocab = from_gguf(checkpoint.metadata)
        case "hf":
            return from_files(checkpoint.files, read_config(checkpoint), pre=pre)
        case "json":
            vocab = from_gguf(translate(checkpoint, "gguf").metadata)
        case _:
            return None
    if vocab is not None and pre is not None:
        vocab.pre, vocab.json = pre, None
    return vocab


def load(path: str | Path, *, pre: str | None = None) -> Vocab:
    """The vocabulary of a model (any format), a folder with tokenizer files, or a lone tokenizer file.

    `UsageError` when there is none in it.
    """
    path = place(path)
    try:
        vocab = None
        if path.is_file() and path.name in NAMES:
            beside = ("vocab.json", "merges.txt") if path.name in ("vocab.json", "merges.txt") else (path.name,)
            vocab = from_files({name: f for name in beside if (f := path.parent / name).is_file()}, pre=pre)
        elif path.is_file() and path.suffix == ".model":
            vocab = from_files({"tokenizer.model": path}, pre=pre)
        elif path.is_dir() and not any(path.glob("*.safetensors")):
            files = {name: file for name in NAMES if (file := path / name).is_file()}
            files |= {f"{f.parent.name}/{f.name}": f for f in path.glob("additional_chat_templates/*.jinja")}
            vocab = from_files(files, pre=pre)
        if vocab is None:
            vocab = of(llmconv.formats.open(path), pre=pre)
    except LlmconvError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{at(path)}: {error}") from None
    if vocab is None:
        raise UsageError(f"{at(path)}: has no tokenizer; give a model that carries one, or a tokenizer file")
    return vocab
