"""Public function that makes a model Ollama's: `to_ollama`, weights and a Modelfile."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmconv import formats
from llmconv.api import convert_file
from llmconv.convert.quantizing.quantize import quantize
from llmconv.errors import UsageError, at
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.places import names as places
from llmconv.formats.places.remote import RemotePath
from llmconv.formats.writing.checks import check_target, new_folder
from llmconv.formats.writing.outputs import Output
from llmconv.progress import Progress
from llmconv.show import Shown

__all__ = ["OllamaModel", "to_ollama"]

NAME = "Modelfile"


@dataclass(frozen=True)
class OllamaModel(Shown):
    """What was written.   path: the Modelfile.   files: all that it names, and itself.   text: what it says.
    notes: sentences."""

    path: Path
    files: list[Path]
    text: str
    notes: list[str] = field(default_factory=list)


def to_ollama(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str] | None = None,
    *,
    type: str | None = None,
    adapters: Sequence[str | os.PathLike[str]] = (),
    system: str | None = None,
    num_ctx: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> OllamaModel:
    """A model for `ollama create NAME -f FOLDER/Modelfile`: its GGUF, adapters, and a Modelfile.

    model: of any format; a GGUF stays where it is when there is no folder, and the Modelfile is written beside it.
    folder: made if it is not there.   type: quantize to it; as stored when None.
    adapters: PEFT's folders, or GGUFs of adapters (a folder's are converted).
    system: the system text, over the chat template's own.   num_ctx: the context, over Ollama's own.

    The chat template is written as a Go template where it is texts around each turn (`convert.vocab.turns`); a note
    says what is not.
    """
    from llmconv.convert.cards.modelfile import modelfile

    source = places.place(model)
    opened = formats.open(source)
    if folder is None:
        _check_beside(source, opened, type)
    home = source.parent if folder is None else Path(folder)
    check_target(home / NAME, force=force) if home.is_dir() else None
    with new_folder(home):
        weights, notes = [source], list(opened.notes)
        if folder is not None:
            weights, notes = _weights(source, home / f"{places.called(source)}.gguf", type, force, progress)
        taken = [_adapter(Path(a), source, home, folder is not None, force) for a in adapters]
        made = formats.open(weights[0])
        paths = [[f"./{os.path.relpath(path, home)}" for path in group] for group in (weights, taken)]
        text, more = modelfile(
            made.metadata, *paths, system=system, num_ctx=num_ctx, said=opened.info.get("ollama")
        )  # fmt: skip
        with Output(home / NAME, force=force) as out:
            out.file.write(text.encode())
    return OllamaModel(home / NAME, [home / NAME, *weights, *taken], text, [*notes, *more])


def _check_beside(source: Path, opened: Checkpoint, type: str | None) -> None:
    """`UsageError` where a Modelfile alone would not do."""
    if isinstance(source, RemotePath) or opened.format != "gguf" or type is not None:
        raise UsageError(f"{at(source)}: its weights have to be written anew for Ollama; name a folder for them")
    if len(opened.parts) > 1:
        raise UsageError(f"{at(source)}: is split, and Ollama takes one file; name a folder, where it is joined")


def _weights(
    source: Path, target: Path, type: str | None, force: bool, progress: Progress | None
) -> tuple[list[Path], list[str]]:
    """The model's GGUF, the tower's behind it, and notes."""
    if type is not None:
        done = quantize(source, target, type, force=force, progress=progress)
        return list(done.output.paths), list(done.notes)
    made = convert_file(source, target, force=force, progress=progress)
    return made.paths, made.notes


def _adapter(adapter: Path, base: Path, home: Path, own: bool, force: bool) -> Path:
    """An adapter's GGUF, in the folder where there is one of our own."""
    found = places.place(adapter)
    if not own and not found.is_dir():
        return found
    target = home / f"{places.called(found)}.gguf"
    convert_file(found, target, base=base if found.is_dir() else None, force=force)
    return target
