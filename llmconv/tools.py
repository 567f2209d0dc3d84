"""Public functions that reshape files without changing the model in them: edit, split, merge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmconv import formats
from llmconv.errors import BadFile, UsageError, at
from llmconv.formats import edit as editing
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.limits import in_bytes
from llmconv.formats.places.names import place
from llmconv.formats.places.remote import RemotePath
from llmconv.progress import Meter, Progress
from llmconv.show import Shown

__all__ = ["EditResult", "edit", "merge", "split"]


@dataclass(frozen=True)
class EditResult(Shown):
    """path: the file that now holds the new metadata; in_place: whether only its header was replaced;
    recovered: whether an earlier edit had been cut off and was put back first."""

    path: Path
    in_place: bool
    recovered: bool = False


def edit(
    path: str | Path,
    *,
    set: Mapping[str, Any] | None = None,
    rename: Mapping[str, str] | None = None,
    remove: Iterable[str] = (),
    output: str | Path | None = None,
    force: bool = False,
) -> EditResult:
    """Change metadata of a GGUF or safetensors file; the tensors' data is neither read nor moved if the header fits.

    set: key -> value, added or replaced (see `formats.edit.parse_value` for text); rename: old key -> new key;
    remove: keys.  output: write a changed copy there instead (`force` to replace an existing one).

    `BadFile` when a key to rename or remove is not there or a new name is taken.
    """
    path = place(path)
    if isinstance(path, RemotePath):
        if output is None:
            raise UsageError(f"{at(path)}: lies on another machine, where nothing is changed; write a copy with -o")
        recovered = False
    else:
        recovered = editing.recover(path)
    checkpoint = editing.open_alone(path)
    metadata = dict(checkpoint.metadata)
    for old, new in (rename or {}).items():
        if old not in metadata:
            raise BadFile(f"{at(path)}: has no metadata key {old!r}; llmconv inspect --metadata lists them")
        if new in metadata:
            raise BadFile(f"{at(path)}: metadata key {new!r} is there already; remove it first")
        metadata = {new if key == old else key: value for key, value in metadata.items()}
    for key in remove:
        if key not in metadata:
            raise BadFile(f"{at(path)}: has no metadata key {key!r}; llmconv inspect --metadata lists them")
        del metadata[key]
    metadata.update(set or {})
    checkpoint.metadata = metadata
    if output is None:
        return EditResult(path, editing.rewrite_metadata(path, checkpoint), recovered)
    formats.by_name(checkpoint.format).save(checkpoint, Path(output), force=force)
    return EditResult(Path(output), False, recovered)


def _splittable(path: Path, wanted: str) -> tuple[Checkpoint, formats.Format]:
    checkpoint = formats.open(path)
    container = formats.by_name(checkpoint.format)
    if container.split is None:
        raise UsageError(f"{at(path)}: is {checkpoint.format}; only GGUF and safetensors can be {wanted}")
    return checkpoint, container


def split(
    source: str | Path,
    target: str | Path | None = None,
    *,
    max_size: int | str = 0,
    max_tensors: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Split a model into shards of at most `max_size` bytes (or "2G") or `max_tensors` tensors each; the files written.

    A GGUF becomes `TARGET-00001-of-0000N.gguf` (default: the source's own stem); a safetensors model becomes a
    folder with an index (default: the source's name with `-split`), by size alone.
    """
    checkpoint, container = _splittable(place(source), "split")
    size = in_bytes(max_size, "max_size")
    if not (size or max_tensors):
        raise UsageError("say how to split: a largest size (--max-size) or number of tensors (--max-tensors)")
    assert container.split is not None
    return container.split(
        checkpoint,
        Path(target) if target else None,
        max_size=size,
        max_tensors=max_tensors,
        force=force,
        meter=Meter(progress, "write", checkpoint.nbytes),
    )


def merge(
    source: str | Path, target: str | Path, *, force: bool = False, progress: Progress | None = None
) -> list[Path]:
    """Join the shards of a GGUF or safetensors model (any shard, the index, or the folder) into one file or folder."""
    checkpoint, container = _splittable(place(source), "merged")
    meter = Meter(progress, "write", checkpoint.nbytes)
    return container.save(checkpoint, Path(target), force=force, meter=meter)
