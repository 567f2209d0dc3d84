"""How weights reach a GPU while it computes: through pinned memory, on a stream of their own.

Written without a GPU at hand, and never run on one; `tests/bench/gpu.py --only streamed` is its check.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from llmconv.formats.tensor import SLAB_BYTES

__all__ = ["Lane"]

_SLAB = 4 * SLAB_BYTES


class Lane:
    """Copies of one reader thread.   The rows are staged in two pinned slabs in turn, so that one is filled while the
    other is on its way."""

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._slabs = [torch.empty(_SLAB, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._left = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._turn, self._one = 0, threading.Lock()

    def after(self, rooms: Iterable[Tensor]) -> torch.cuda.Event:
        """When what the GPU was told until now is done, the memory that copies will go to is free."""
        for room in rooms:
            room.record_stream(self._stream)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._stream.device))
        return event

    @contextlib.contextmanager
    def copying(self, free: torch.cuda.Event) -> Iterator[None]:
        """While one thread copies; its copies begin when their memory is free."""
        with self._one:
            self._stream.wait_event(free)
            yield

    def copied(self, to: Tensor, values: Tensor) -> None:
        """Rows from host memory, on their way when this returns; they may change then."""
        flat = values.contiguous().view(-1).view(torch.uint8)
        if to.dtype != values.dtype or not to.is_contiguous():  # the device widens or narrows them
            with torch.cuda.stream(self._stream):
                to.copy_(values)
            return
        out = to.view(-1).view(torch.uint8)
        for start in range(0, len(flat), _SLAB):
            part, self._turn = flat[start : start + _SLAB], 1 - self._turn
            self._left[self._turn].synchronize()
            staged = self._slabs[self._turn][: len(part)]
            staged.copy_(part)
            with torch.cuda.stream(self._stream):
                out[start : start + len(part)].copy_(staged, non_blocking=True)
            self._left[self._turn].record(self._stream)

    def done(self) -> torch.cuda.Event:
        """When all that was copied is there."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def use(self, done: torch.cuda.Event) -> None:
        """Let what the GPU is told from now on begin then."""
        torch.cuda.current_stream(self._stream.device).wait_event(done)
