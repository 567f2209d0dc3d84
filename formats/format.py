"""What a container says of itself: one value, `FORMAT`, at the end of its module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmconv.errors import OutputError, Unsupported, UsageError, at
from llmconv.formats import limits
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.writing.checks import check_parent, check_target
from llmconv.progress import Meter

__all__ = ["Format"]


@dataclass(frozen=True)
class Format:
    """A container.

    name: in commands and messages: "gguf".
    dialect: whose names and shapes a model takes that is written to it: "gguf", "hf", "json" or "plain" (its own).
    sniff(path, head): whether the file or folder is of this format; `head` is its first 4096 bytes (b"" of a folder).
    open(path): read it lazily; `BadFile` when it breaks the format's rules.
    write(checkpoint, path, force=, jobs=, meter=, **options): write it completely or not at all; the files.  None: it
        is only read.
    suffixes: file names that ask for it when writing; the first is the default.
    options: further ones that `write` takes.
    keyed: whether `open` takes `key`, which chooses among several mappings of tensors.
    folder: whether a name with none of the suffixes is a folder of files;   always_folder: one with them too.
    split(checkpoint, target, max_size=, max_tensors=, force=, meter=): write it in several files; None: it can't be.
    refit(checkpoint, offsets): a header that says what the checkpoint says and leaves the tensors where they lie, as
        long as the one in the file; None when there is none.  Without it, metadata can't be edited.
    open_alone(path): one file without what lies beside it, where `open` looks there.
    is_exact(checkpoint, first=): whether writing gives the bytes that it was opened from, where that is no matter of
        course.
    """

    name: str
    dialect: str
    sniff: Callable[[Path, bytes], bool]
    open: Callable[..., Checkpoint]
    write: Callable[..., list[Path]] | None = None
    suffixes: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    keyed: bool = False
    folder: bool = False
    always_folder: bool = False
    split: Callable[..., list[Path]] | None = None
    refit: Callable[[Checkpoint, list[int]], bytes | None] | None = None
    open_alone: Callable[[Path], Checkpoint] | None = None
    is_exact: Callable[..., bool] | None = None

    def save(
        self,
        checkpoint: Checkpoint,
        path: Path,
        *,
        force: bool = False,
        jobs: int | None = None,
        meter: Meter | None = None,
        **options: Any,
    ) -> list[Path]:
        """Write it completely or not at all; the files written.  `UsageError` for an option that it does not have."""
        if self.write is None:
            raise Unsupported(f"{at(path)}: {self.name} files are only read; write GGUF or safetensors")
        unknown = [name for name in options if name not in self.options]
        if unknown:
            has = f"it has {_as_options(self.options)}" if self.options else "it has none of its own"
            raise UsageError(f"{self.name} has no option {_as_options(unknown)}; {has}")
        options = {k: limits.in_bytes(v, k) if k.endswith("_size") else v for k, v in options.items()}
        return self.write(checkpoint, Path(path), force=force, jobs=jobs, meter=meter, **options)

    def is_named(self, path: Path) -> bool:
        """Whether a file name asks for this format."""
        return path.suffix.lower() in self.suffixes

    def is_folder(self, path: Path) -> bool:
        """Whether `path` is, or is to be, a folder of this format."""
        return self.always_folder or (self.folder and not self.is_named(path))

    def check_target(self, path: Path, *, force: bool, inputs: Sequence[Path]) -> None:
        """Refuse a target before any work."""
        if self.is_folder(path):
            _check_folder(path, force, inputs)
        else:
            check_target(path, force=force, inputs=inputs)


def _as_options(names: Sequence[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)


def _check_folder(path: Path, force: bool, inputs: Sequence[Path]) -> None:
    """A model folder may be written where there is none, or an empty one; never over the input."""
    for source in inputs:
        own = source if source.is_dir() else source.parent
        if own.exists() and path.is_dir() and path.samefile(own):
            raise OutputError(f"{at(path)}: holds the input itself; choose another output folder")
    if path.is_file():
        raise OutputError(f"{at(path)}: is a file; give a folder, or a name that ends in .safetensors")
    if path.is_dir() and not force and any(path.iterdir()):
        raise OutputError(f"{at(path)}: exists already and is not empty; use --force to write into it, or another name")
    check_parent(path)
