"""A run's folder: one run at a time, and the record of what it was made with, which a resumed run must share."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmconv.errors import BadFile, OutputError, UsageError, at
from llmconv.formats.files import open_regular
from llmconv.formats.writing.checks import output_errors
from llmconv.formats.writing.outputs import Output
from llmconv.runtime.training.config import TrainConfig
from llmconv.runtime.training.inputs import LOCK
from llmconv.runtime.training.saving import state

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["enter", "locked"]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of the folder, which is made.  The lock is the system's: it goes when its process does.

    `OutputError` when another run is in it.  Without locks (Windows, some network file systems) nobody is kept out.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{at(folder)}: is a file, expected a folder; choose another (-o)")
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            whose = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip()
            raise OutputError(
                f"{at(folder)}: another run is writing here (process {whose or 'unknown'}); wait for it, or choose "
                "another output folder (-o)"
            ) from None
        except OSError:
            pass  # no locks on this file system
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def enter(folder: Path, config: TrainConfig, inputs: dict[str, str], resume: bool) -> Path | None:
    """Write the run's `config.json`, or compare it when resuming; the checkpoint to go on from, None at the start.

    inputs: `fingerprints` of what it reads.  `UsageError` or `BadFile` when this is not the run in the folder.
    """
    record, newest = folder / "config.json", state.latest(folder)
    if newest is not None and not resume:
        raise OutputError(f"{at(folder)}: holds a run already; give --resume to go on, or another output folder (-o)")
    if resume:
        if newest is None and not record.is_file():
            raise BadFile(f"{at(folder)}: holds no checkpoint to resume from; start without --resume")
        _compare(record, config, inputs)
    mine = {**config.identity(), **{name: getattr(config, name) for name in _PATHS}, "sha256": inputs}
    with Output(record, force=True) as out:
        out.file.write(json.dumps(mine, indent=2).encode() + b"\n")
    return newest


_PATHS = ("data", "from_checkpoint")
"""Settings that are recorded, but compared by what is there."""
_EXTENDABLE = ("steps", "patience")
"""Settings that only say when to stop."""


def _compare(record: Path, config: TrainConfig, inputs: dict[str, str]) -> None:
    try:
        with open_regular(record) as file:
            before = json.loads(file.read())
    except (BadFile, ValueError, RecursionError):
        before = None
    mine: dict[str, Any] = json.loads(json.dumps(config.identity()))
    if not isinstance(before, dict) or set(before) != {*mine, *_PATHS, "sha256"}:
        raise BadFile(
            f"{at(record)}: is not the record of a run's settings by this version; train on from the last "
            "checkpoint's model.gguf with --from, into another output folder"
        )
    read = before["sha256"] if isinstance(before["sha256"], dict) else {}
    names = {k for k in mine if before[k] != mine[k] and k not in _EXTENDABLE}
    if "tokenizer" in inputs and "tokenizer" in read:
        names.discard("tokenizer")
    changed = [name for name in inputs if read.get(name) != inputs[name]]
    if set(read) != set(inputs):
        names |= set(read) ^ set(inputs)
    elif changed:
        raise UsageError(
            f"{at(getattr(config, changed[0]))}: is not what this run was started with (its content differs); give "
            "the same to resume, or another output folder (-o)"
        )
    if names:
        raise UsageError(
            f"{at(record.parent)}: was trained with another configuration ({', '.join(sorted(names))}); give the same "
            "settings to resume, or another output folder"
        )
