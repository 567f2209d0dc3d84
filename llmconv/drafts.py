"""Layers for further tokens in files of their own: what `--mtp` and `--no-mtp` make of what is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import llmconv.formats as containers
from llmconv.convert import further
from llmconv.convert.dialects.hugging_face import target
from llmconv.convert.reading import Reading
from llmconv.errors import UsageError
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.format import Format
from llmconv.formats.places.names import place
from llmconv.halves import OF_FOLDERS, Part

__all__ = ["aimed", "drafted", "joined"]

StrPath = str | os.PathLike[str]


def aimed(checkpoint: Checkpoint, base: StrPath | None) -> tuple[Checkpoint, StrPath | None]:
    """A draft's folder with what it takes from the model that it is for; anything else, and its base, as they are."""
    if base is None or not target.is_draft(checkpoint):
        return checkpoint, base
    return target.aimed(checkpoint, place(base)), None


def joined(checkpoint: Checkpoint, mtp: bool | StrPath | None) -> Checkpoint:
    """A model's GGUF with the layers for further tokens of the file `mtp`, where it names one; True: the draft that a
    folder holds beside its model, where these layers are one."""
    if mtp is True:
        return target.own_draft(checkpoint)
    if mtp in (None, False):
        return checkpoint
    if checkpoint.dialect != "gguf":
        raise UsageError(
            f"--mtp {mtp} is for a GGUF, with which that file is put together; of a folder, give --mtp last"
        )
    return further.together(checkpoint, containers.open(Path(str(mtp))))


def drafted(parts: list[Part], container: Format, mtp: bool | StrPath | None, no_mtp: bool) -> list[Part]:
    """What to write instead of `parts`: the model without its layers for further tokens, or these alone."""
    if mtp is True and no_mtp:
        raise UsageError("--mtp asks for the layers for further tokens, --no-mtp for the rest; give one of them")
    if mtp is not True and not no_mtp:
        return parts
    if container.dialect != "gguf":
        name = "--no-mtp" if no_mtp else "--mtp"
        raise UsageError(f"{name} has no effect on {container.name}: it is for GGUF; leave it out, or --mtp FILE")
    first, *towers = parts
    if mtp is True and target.is_draft(first.checkpoint):
        return [first]
    made = _in_gguf(first.checkpoint, first.options)
    made = further.without(made) if no_mtp else further.alone(made)
    options = {name: value for name, value in first.options.items() if name not in OF_FOLDERS}
    return [Part(made, first.target, options), *(towers if no_mtp else ())]


def _in_gguf(checkpoint: Checkpoint, options: Mapping[str, Any]) -> Checkpoint:
    named = {name: options[name] for name in (*OF_FOLDERS, "strict") if name in options}
    reading = Reading(**named)
    return reading.translated(reading.open(checkpoint), "gguf")
