"""Stopping a run from outside: Ctrl-C, SIGTERM, or `Cancelled` raised from a progress callback.

None of them may end a step half way: they are noted, and the loop, which asks between steps, saves and ends.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from llmconv.errors import Cancelled
from llmconv.progress import Progress, Step

__all__ = ["Stop"]


class Stop:
    """Notes that somebody wants the run to end, while it is entered.   asked: whether anybody does."""

    def __init__(self, progress: Progress | None):
        self._progress, self.asked = progress, False
        self._old: dict[int, Any] = {}

    def tell(self, step: Step) -> None:
        """Report progress; a callback that raises `Cancelled` is heard."""
        try:
            if self._progress is not None:
                self._progress(step)
        except Cancelled:
            self.asked = True

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if callable(signal.getsignal(number)) or signal.getsignal(number) is signal.SIG_DFL:
                    self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)
        self._old.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:  # Ctrl-C again: not even a step longer
            raise KeyboardInterrupt
        self.asked = True
