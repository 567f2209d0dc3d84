"""How far a sweep is, in a file of its output folder: the same call again goes on where an interrupted one stopped."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from llmconv.errors import BadFile, OutputError, at
from llmconv.formats.files import open_regular
from llmconv.formats.places.remote import RemotePath
from llmconv.formats.writing.outputs import Output
from llmconv.runtime.measure.sweep_rows import SweepRow

__all__ = ["NAME", "State", "file_hash", "hashed", "identity_of", "write_text"]

NAME = "sweep.json"
_ROW = {f.name: str(f.type) for f in fields(SweepRow)}
_BASE = {"ppl": "float", "ppl_stderr": "float", "context": "int", "tokens": "int"}


@dataclass
class State:
    """identity: of the inputs.  base: figures of the original.  rows: by type, as dicts.  seconds: to quantize each."""

    path: Path
    identity: str
    base: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, identity: str, fresh: bool) -> State:
        """The state that the folder holds, or a new one; `OutputError` where it belongs to another sweep."""
        state = cls(folder / NAME, identity)
        if not fresh and state.path.exists():
            kept = _read(state.path)
            if kept["identity"] != identity:
                raise OutputError(
                    f"{at(state.path)}: belongs to a sweep of another model, text or options; use --force to start "
                    "over, or another output folder (-o)"
                )
            state.base, state.rows, state.seconds = kept["base"], kept["rows"], kept.get("seconds", {})
        return state

    def save(self) -> None:
        record = {"identity": self.identity, "base": self.base, "rows": self.rows, "seconds": self.seconds}
        write_text(self.path, json.dumps(record, indent=2) + "\n")


def identity_of(model: Path, text: Path, options: dict[str, Any]) -> str:
    """What must be the same for a sweep to go on: the input files by name, size and time, and the options."""
    names = sorted(p for p in model.iterdir() if p.is_file()) if model.is_dir() else [model]
    inputs = [*names, text, *(value for value in options.values() if isinstance(value, Path))]
    facts = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in inputs]
    return hashed([facts, options])


def hashed(values: Any) -> str:
    """Of JSON values, and others by what they print."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    entry = path.entry if isinstance(path, RemotePath) else None
    if entry is not None and len(entry.tag) == 64:
        return entry.tag
    with open_regular(path) as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
        return digest.hexdigest()


def _read(path: Path) -> dict[str, Any]:
    with open_regular(path) as file:
        raw = file.read(1 << 20)
    try:
        state = json.loads(raw)
        good = (
            isinstance(state["identity"], str)
            and all(_are(row, _ROW) and len(row) == len(_ROW) and row["type"] == t for t, row in state["rows"].items())
            and all(_is(value, "float") for value in state.get("seconds", {}).values())
            and isinstance(state["base"].get("device", ""), str)
            and (not state["rows"] or _are(state["base"], _BASE))
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good = False
    if not good:
        raise BadFile(f"{at(path)}: is no state of a sweep; remove it or choose another output folder (-o)")
    return dict(state)


def _are(values: dict[str, Any], kinds: dict[str, str]) -> bool:
    """Whether each of the names has a value of its kind."""
    return all(_is(values[name], kind) for name, kind in kinds.items())


def _is(value: Any, kind: str) -> bool:
    """Whether JSON's value is a "str", or an "int" or "float" that counts something; any number will do for a float."""
    if kind == "str":
        return isinstance(value, str)
    return type(value) in ((int, float) if kind == "float" else (int,)) and value == value


def write_text(path: Path, text: str) -> None:
    """A whole file at once, whatever was there."""
    data = text.encode()
    with Output(path, force=True, size=len(data)) as out:
        out.file.write(data)
