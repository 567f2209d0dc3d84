"""What a run reads: the files of its data, and what is in them, by hash."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from llmconv.errors import BadFile, at, listed
from llmconv.formats.files import open_regular
from llmconv.formats.places.names import place
from llmconv.formats.places.remote import RemotePath
from llmconv.runtime.training.config import TrainConfig
from llmconv.runtime.training.vocabulary import KINDS

__all__ = ["LOCK", "data_files", "fingerprints", "runs_left_out", "text_bytes"]

LOCK = "run.lock"
"""The file by which the folder of a run is known."""
TEXT_SUFFIXES = (".txt", ".md", ".text")


def _inside(folder: Path) -> Iterator[Path]:
    """The files below a folder and, of folders of runs there, nothing but the lock: a run must not read its own
    summary as data, nor find its source changed by what it wrote."""
    for root, folders, names in os.walk(folder):
        here = Path(root)
        if LOCK in names and here != folder:
            folders.clear()
            names = [LOCK]
        yield from (path for name in names if (path := here / name).is_file())


def runs_left_out(path: Path) -> str | None:
    """A remark on the runs' folders inside of a folder of data; None where there are none."""
    found = sorted(p.parent.relative_to(path).as_posix() for p in _inside(path) if p.name == LOCK and p.parent != path)
    return f"{at(path)}: {listed(found)}: what a run of training wrote is no data, and is left out" if found else None


def data_files(path: Path) -> list[Path]:
    """The files that hold the data: the one, or those of a folder, without what runs wrote into it."""
    if not path.is_dir():
        return [path]
    found = sorted(p for p in _inside(path) if p.suffix in (*TEXT_SUFFIXES, ".jsonl"))
    if not found:
        raise BadFile(f"{at(path)}: holds no {', '.join(TEXT_SUFFIXES)} or .jsonl file to train on")
    return found


def text_bytes(path: Path) -> int:
    """The size of the data's files; of JSON lines a little more than their texts'."""
    return sum(file.stat().st_size for file in data_files(path))


def fingerprints(config: TrainConfig) -> dict[str, str]:
    """SHA-256 of what the run reads, by setting: the data, the checkpoint it starts from, the tokenizer's file."""
    found = {"data": _fingerprint(Path(config.data), data_files(Path(config.data)))}
    for name in ("from_checkpoint", "tokenizer"):
        given = getattr(config, name)
        if not given or given in ("auto", *KINDS):
            continue
        path = place(given)
        if isinstance(path, RemotePath):
            mine = [(at, file.size, file.tag) for at, file in path.files()]  # whose tags say what is in them
            found[name] = hashlib.sha256(repr(mine).encode()).hexdigest()
        elif path.exists():
            inside = (p for p in _inside(path) if p.name != LOCK and not p.relative_to(path).as_posix().startswith("."))
            found[name] = _fingerprint(path, sorted(inside) if path.is_dir() else [path])
    return found


def _fingerprint(root: Path, files: list[Path]) -> str:
    whole = hashlib.sha256()
    for path in files:
        own = hashlib.sha256()
        with open_regular(path) as file:
            while piece := file.read(1 << 20):
                own.update(piece)
        if path != root:
            whole.update(path.relative_to(root).as_posix().encode("utf-8", "surrogatepass") + b"\0")
        whole.update(own.digest())
    return whole.hexdigest()
