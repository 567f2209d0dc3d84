"""A multimodal model's two files: the text model's GGUF, and the tower's beside it (llama.cpp's mmproj file)."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import llmconv.formats as containers
from llmconv.convert.reading import Reading
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.config import read_config
from llmconv.convert.towers import untold, which
from llmconv.convert.translate import translate
from llmconv.convert.writing import tasks
from llmconv.errors import BadFile, LlmconvError, UsageError, at, cut, more
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.format import Format

__all__ = ["OF_FOLDERS", "Part", "beside", "is_multimodal", "main_type", "parted"]

OF_FOLDERS = ("pre", "layout", "vocab", "config", "exclude")
"""Options that say how a folder becomes a GGUF."""
_OF_TEXT = (*OF_FOLDERS, "split_max_size", "split_max_tensors")
"""Options that say nothing of a tower."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A file to write: of what, where, with which options of `save`."""

    checkpoint: Checkpoint
    target: Path
    options: dict[str, Any]


def parted(
    checkpoint: Checkpoint,
    container: Format,
    target: Path,
    mmproj: bool | str | os.PathLike[str] | None,
    text_only: bool,
    options: Mapping[str, Any],
) -> list[Part]:
    """What converting `checkpoint` to `target` writes: one file, or the text model's and the tower's.

    mmproj: True: the tower alone; a path: of a GGUF that becomes a folder, the file of its tower; None: of a folder
        both halves, of a GGUF the tower that lies beside it, if one does.
    """
    options = dict(options)
    if mmproj and text_only:
        raise UsageError("--mmproj asks for the tower, --text-only for the rest; leave both out for two files")
    if checkpoint.dialect == "gguf" and container.dialect == "hf":
        return [Part(_whole(checkpoint, mmproj, text_only, options), target, options)]
    if checkpoint.dialect == "hf" and container.dialect == "gguf" and options.get("layout") != "plain":
        if mmproj not in (None, False, True):
            raise UsageError(f"--mmproj {mmproj} is for a GGUF that becomes a folder; of a folder, give --mmproj alone")
        return _halves(checkpoint, target, bool(mmproj), text_only, options)
    if mmproj or text_only:
        name = "--mmproj" if mmproj else "--text-only"
        raise UsageError(f"{name} has no effect here: it is for multimodal folders that become GGUFs, and back")
    return [Part(checkpoint, target, options)]


def _halves(folder: Checkpoint, target: Path, tower_only: bool, text_only: bool, options: dict[str, Any]) -> list[Part]:
    folder = Reading(exclude=options.pop("exclude", ())).open(folder) if options.get("exclude") else folder
    if which.tower_of(folder) is None:
        if not (tower_only or text_only):
            return [Part(folder, target, options), *_adapters(folder, target, options)]
        if tower_only:
            which.tower_half(folder)  # says why not
        if text_only and not untold.settings_of_towers(read_config(folder)):
            raise UsageError(f"{folder.where}: has no tower to leave out, by its config.json; drop --text-only")
        return [Part(folder, target, options)]
    text, count = which.text_half(folder)
    made: Checkpoint | None = None
    notes = [f"left out, {count} tensors of its tower, as asked"]
    if not text_only:
        made, notes = _tower(folder, count, strict=bool(options.get("strict", True)), alone=tower_only)
    parts = [] if tower_only else [Part(text.but(*notes), target, options)]
    if made is not None:
        own = {name: value for name, value in options.items() if name not in _OF_TEXT}
        if not tower_only:
            target = beside(target)
            made.notes.append(f"its tower is {target.name}; --text-only leaves it out")
            container = containers.by_name("gguf")
            container.check_target(target, force=bool(options.get("force")), inputs=[])
        parts.append(Part(made, target, own))
    return parts


def _adapters(folder: Checkpoint, target: Path, options: Mapping[str, Any]) -> list[Part]:
    """A model's own adapters, one for each task (Jina 3), each a GGUF beside its own: `lora-TASK-NAME`."""
    own = {name: value for name, value in options.items() if name not in (*_OF_TEXT, "outtype", "provenance")}
    parts = [
        Part(adapter, target.with_name(f"lora-{task}-{target.name}"), own) for task, adapter in tasks.adapters(folder)
    ]
    for part in parts:
        containers.by_name("gguf").check_target(part.target, force=bool(options.get("force")), inputs=[])
    if names := [part.target.name for part in parts]:
        parts[0].checkpoint.notes.append(
            f"the adapters of its tasks are {names[0]}{more(names)}, for llama.cpp's --lora; llmconv embed "
            "--task needs the model's file alone"
        )
    return parts


def _tower(folder: Checkpoint, count: int, strict: bool, alone: bool) -> tuple[Checkpoint | None, list[str]]:
    """The tower's GGUF, and notes for the text model's; who has not asked for a tower that can't be converted is told
    how to do without it, or does without it, where not strict."""
    from llmconv.convert.towers import translate as towers  # and every scheme of stored weights

    try:
        return towers.to_gguf(folder, strict=strict), []
    except BadFile as error:
        if alone:
            raise
        why = str(error).split("; ")[0]
        if strict:
            raise BadFile(f"{why}; --text-only converts the text model alone") from None
        return None, [f"the text model alone, its tower of {count} tensors is left out: {why}"]


def beside(text: Path) -> Path:
    """The name that a tower's file has beside its text model's."""
    return text.parent / f"mmproj-{text.name}"


def _whole(
    text: Checkpoint, mmproj: bool | str | os.PathLike[str] | None, text_only: bool, options: dict[str, Any]
) -> Checkpoint:
    """A text model's GGUF with its tower, as one folder; as it is where it has none."""
    if mmproj is True:
        raise UsageError("--mmproj needs the tower's file where a GGUF becomes a folder: --mmproj mmproj-NAME.gguf")
    if which.is_tower(text):
        if mmproj:
            raise UsageError(f"{text.where}: is a tower itself; give the text model's GGUF, and this one with --mmproj")
        return text
    if text_only:
        return text
    found = Path(mmproj) if mmproj else _found(text)
    if found is None:
        if not which.is_text_half(text):
            return text.but(*_without_towers(text))
        return text.but("its tower is in another file: --mmproj FILE puts it into the folder")
    tower = containers.open(found)
    if not which.is_tower(tower):
        raise UsageError(f"{at(found)}: is no mmproj file but a model of its own; give the tower's GGUF with --mmproj")
    from llmconv.convert.towers import translate as towers

    strict = bool(options.get("strict", True))
    rebuilt = own_keys.CONFIG not in text.metadata
    made = towers.together(translate(text, "hf", strict=strict), tower, rebuilt=rebuilt, strict=strict)
    return made if mmproj else made.but(f"with its tower from {found.name}; --text-only leaves it out")


def _without_towers(text: Checkpoint) -> list[str]:
    """A note about a folder whose config.json speaks of a tower that its GGUF never had."""
    said = text.metadata.get(own_keys.CONFIG)
    config = read_config(text.but(files={"config.json": said.encode()})) if isinstance(said, str) else {}
    told = untold.settings_of_towers(config)
    why = "the GGUF has the text model alone; its tower's tensors are in the original folder"
    return [f"config.json speaks of {cut(told[0])}, and {why}"] if told else []


def _found(text: Checkpoint) -> Path | None:
    """The tower's file in the same folder: of the usual name, or the only one made of the same model."""
    if text.source is None or not isinstance(text.source, Path) or not text.source.is_file():
        return None
    usual = beside(text.source)
    if usual.is_file():
        return usual
    name = text.metadata.get("general.name")
    alike = []
    for path in sorted(text.source.parent.glob("*mmproj*.gguf")) if name else ():
        try:
            other = containers.open(path)
        except LlmconvError:
            continue
        if which.is_tower(other) and other.metadata.get("general.name") == name:
            alike.append(path)
    if len(alike) > 1:
        names = [path.name for path in alike]
        raise UsageError(f"{text.where}: {names[0]}{more(names)} lie beside it; say with --mmproj which is its tower")
    return alike[0] if alike else None


def is_multimodal(checkpoint: Checkpoint) -> bool:
    """Whether a folder has a tower known here."""
    return which.tower_of(checkpoint) is not None


def main_type(checkpoint: Checkpoint, outtype: str) -> str:
    """What file names call the type of a folder's weights: F16."""
    sizes: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        sizes[tensor.type.name] += tensor.nbytes if len(tensor.shape) > 1 else 0
    return outtype.upper() if outtype != "auto" else sizes.most_common(1)[0][0] if sizes else "F32"
