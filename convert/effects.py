"""Options that would do nothing are refused, and names that say nothing: a mistake should not pass for a choice."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import llmconv.formats as containers
from llmconv.convert.dialects.training_files import LAYERED, is_training_file
from llmconv.convert.reading import Reading, StrPath
from llmconv.errors import UsageError, at, nearest
from llmconv.formats.checkpoint import Checkpoint

__all__ = ["check_name", "check_options", "read_with", "with_effect"]

_VOCABULARIES = {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"}


def check_name(path: str | os.PathLike[str]) -> None:
    """`UsageError` for an output whose ending is nobody's: `foo.ggfu`.

    A model folder has no ending, ends in "/", or is there already; a version (`-v1.0`, `1.1B`) is no ending.
    """
    name = os.fsdecode(path)
    ending = re.search(r"\.[A-Za-z][A-Za-z0-9]*$", Path(name).name[1:])
    if ending is None or name.endswith(("/", os.sep)) or Path(name).is_dir():
        return
    known = [suffix for module in containers.formats() for suffix in module.suffixes]
    if ending[0].lower() not in known:
        near = nearest(ending[0], known)
        hint = f"did you mean {near}? Or" if near else f"use one of {', '.join(dict.fromkeys(known))}, or"
        raise UsageError(f"{at(path)}: its ending names no format that can be written; {hint} end a folder's name in /")


def check_options(checkpoint: Checkpoint, to: str, options: Mapping[str, Any]) -> None:
    """`UsageError` for an option that has no effect on a source when `to` is written."""
    source, dialect, layout = checkpoint.format, checkpoint.dialect, options.get("layout")
    document = dialect == "json" or is_training_file(checkpoint)
    to_document = containers.by_name(to).dialect in ("json", "program")
    what = {"gguf": "a GGUF", "hf": "a Hugging Face model", "plain": "a file of tensors"}.get(dialect, source)
    for name in ("config", "vocab"):
        takes = document or (name == "vocab" and (dialect == "hf" or source in LAYERED))
        if options.get(name) and not takes:
            raise UsageError(f"--{name} has no effect on {what}: it is for JSON models that lack it; leave it out")
    if layout and not document and not to_document and layout != "plain":
        raise UsageError(f"--layout {layout} has no effect on {what}: it is for JSON models; leave it out")
    if layout and dialect == "gguf" and not to_document:
        raise UsageError(f"--layout {layout} has no effect on {what}: its tensors have their names; leave it out")
    if options.get("pre") and dialect in ("gguf", "json"):
        raise UsageError(f"--pre has no effect on {what}: it is for Hugging Face models with a BPE; leave it out")


def read_with(checkpoint: Checkpoint, to: str, options: dict[str, Any]) -> Checkpoint:
    """The checkpoint read as the options say: a folder without tokenizer takes that of `vocab`."""
    check_options(checkpoint, to, options)
    if checkpoint.dialect != "hf" or not options.get("vocab"):
        return checkpoint
    path = Path(options.pop("vocab"))
    if checkpoint.files.keys() & _VOCABULARIES:
        raise UsageError(f"{checkpoint.where}: has a tokenizer; leave --vocab out, or take its files away")
    found = path if path.is_file() else next((path / n for n in sorted(_VOCABULARIES) if (path / n).is_file()), path)
    if found.name not in _VOCABULARIES or not found.is_file():
        raise UsageError(f"{at(path)}: is no tokenizer; expected one of {', '.join(sorted(_VOCABULARIES))}")
    beside = (found.parent / n for n in ("merges.txt", "tokenizer_config.json", "special_tokens_map.json"))
    files = {p.name: p for p in (found, *beside) if p.is_file()}
    return checkpoint.but(files={**checkpoint.files, **files})


def with_effect(source: StrPath | Checkpoint, to: str, reading: Reading) -> tuple[Checkpoint, Reading]:
    """A source opened as `read_with` does, and what is left to be said of it."""
    options = {name: getattr(reading, name) for name in ("config", "vocab", "layout", "pre")}
    checkpoint = source if isinstance(source, Checkpoint) else containers.open(source)
    checkpoint = read_with(checkpoint, to, options)
    return checkpoint, dataclasses.replace(reading, vocab=options.get("vocab"))
