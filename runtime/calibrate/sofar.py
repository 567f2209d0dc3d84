"""`NAME.partial`: what an interrupted run has found so far, for the same command to go on from to the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmconv.errors import BadFile, OutputError, at
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.gguf import gguf_file
from llmconv.formats.tensor import Tensor
from llmconv.formats.writing.checks import output_errors

__all__ = ["SoFar", "of_another"]

_EVERY = 60.0
"""Seconds between two writings, at least."""
_SHARE = 20
"""And so many times what the last one took."""
_IDENTITY, _DONE = "llmconv.identity", "llmconv.done"


def of_another(path: Path) -> OutputError:
    return OutputError(
        f"{at(path)}: is of a run with another model, text, type or options; give the same, delete it, or start over "
        "with --force"
    )


class SoFar:
    """A file of tensors, written anew each time, complete or not at all; beside it `NAME.partial.1`, … of what stays as
    it is.

    force: begin anew where it is of another run.
    """

    def __init__(self, path: Path, force: bool):
        self.path, self._force = path, force
        self._identity, self._written, self._took, self._pieces = "", time.monotonic(), 0.0, 0

    @staticmethod
    def beside(output: Path, force: bool) -> SoFar:
        """`OUTPUT.partial`."""
        return SoFar(output.with_name(output.name + ".partial"), force)

    def found(self, identity: Any) -> tuple[int, list[Checkpoint]] | None:
        """How much an earlier run has done, and the file and the pieces that it left; None where there was none.

        identity: JSON values that say what the run is.
        """
        self._identity = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        if not self.path.exists():
            return None
        try:
            main = gguf_file.open(self.path)
            if main.metadata.get(_IDENTITY) == self._identity:
                done, self._pieces = (int(n) for n in main.metadata[_DONE])
                return done, [main, *(gguf_file.open(self._piece(i)) for i in range(self._pieces))]
        except (BadFile, OSError, KeyError, TypeError, ValueError):
            pass
        if not self._force:
            raise of_another(self.path)
        self.forget()
        return None

    def due(self) -> bool:
        """Whether it is time to write."""
        return time.monotonic() - self._written >= max(_EVERY, _SHARE * self._took)

    def keep(
        self,
        tensors: Iterable[Tensor],
        done: int,
        said: Mapping[str, Any] | None = None,
        pieces: Iterable[Iterable[Tensor]] = (),
    ) -> None:
        """Write what is there when so much is done.   said: keys beside it.   pieces: what stays, that is new."""
        started = time.monotonic()
        for piece in pieces:
            self._write(self._piece(self._pieces), piece, {})
            self._pieces += 1
        own = {_IDENTITY: self._identity, _DONE: np.array([done, self._pieces], np.uint32)}
        self._write(self.path, tensors, dict(said or {}) | own)
        self._written = time.monotonic()
        self._took = self._written - started

    def forget(self) -> None:
        """It is not needed any more."""
        with output_errors(self.path), contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self._pieces = 0
        with contextlib.suppress(OSError):
            for i in itertools.count():
                self._piece(i).unlink()

    def _piece(self, i: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{i + 1}")

    @staticmethod
    def _write(path: Path, tensors: Iterable[Tensor], said: dict[str, Any]) -> None:
        gguf_file.save(Checkpoint({tensor.name: tensor for tensor in tensors}, said), path, force=True)
