"""What long functions report while they work: one object, whatever the function.

A progress callback takes a `Step`.  It is called from the thread that called the function, often enough for a bar to
move and seldom enough to cost nothing.  Raising `llmconv.Cancelled` in it ends the work and leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Meter", "Progress", "Step"]


@dataclass(frozen=True, slots=True)
class Step:
    """How far a piece of work is.

    what: the work ("convert", "quantize", "verify", "perplexity", "train", "compile", ...).
    done, total: in `unit` ("bytes", "chunks", "steps", "kernels", ...); total is 0 where nobody knows it.
    item: what it is at: a tensor, a file, a type.   facts: figures so far, by name (loss, perplexity, bytes to write).
    """

    what: str
    done: int
    total: int
    unit: str
    item: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


Progress = Callable[[Step], None]
"""Called with each step of a long function."""


class Meter:
    """Counts what is done and tells `progress`; for functions that report pieces.  Does nothing when that is None."""

    def __init__(self, progress: Progress | None, what: str, total: int, unit: str = "bytes"):
        self.progress, self._what, self._total, self._unit, self._done = progress, what, total, unit, 0

    def __call__(self, amount: int, item: str = "", **facts: Any) -> None:
        """`amount` more is done."""
        self.reach(self._done + amount, item, **facts)

    def reach(self, done: int, item: str = "", **facts: Any) -> None:
        """`done` is done in all."""
        self._done = min(done, self._total) if self._total else done
        if self.progress is not None:
            self.progress(Step(self._what, self._done, self._total, self._unit, item, facts))
