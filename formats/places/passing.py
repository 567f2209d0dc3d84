"""The hash of a file whose bytes pass by in pieces: nothing is read again for it, and nothing whole is kept.

SHA-256 takes bytes in their order.  Pieces that come early wait for those before them, up to a bound; where the bound
is met, because a reader leaves some bytes out or jumps about, the file goes unchecked.
"""

from __future__ import annotations

import heapq
import threading

__all__ = ["Passing"]

_MOST = 48 << 20
"""Bytes that wait: those that are read ahead, and a tensor out of its order."""


class Passing:
    """Bytes of one file on their way.   digest: of all of them once they have passed; "" where they don't."""

    def __init__(self, size: int):
        import hashlib  # loads OpenSSL, which a local file needs not

        self._size, self._hash, self._next = size, hashlib.sha256(), 0
        self._early: list[tuple[int, int, bytes]] = []
        self._waiting = 0
        self._lock = threading.Lock()
        self._given_up = False
        self.digest = ""

    def __call__(self, offset: int, data: bytes) -> None:
        """These bytes came, from any thread, in any order, perhaps again."""
        with self._lock:
            if self.digest or self._given_up or offset + len(data) <= self._next:
                return
            heapq.heappush(self._early, (offset, len(data), data))
            self._waiting += len(data)
            while self._early and self._early[0][0] <= self._next:
                self._take(*heapq.heappop(self._early))
            if self._next == self._size:
                self.digest = self._hash.hexdigest()
            elif self._waiting > _MOST:
                self._given_up = True
            if self.digest or self._given_up:
                self._early.clear()

    def _take(self, offset: int, length: int, data: bytes) -> None:
        self._waiting -= length
        if offset + length > self._next:
            self._hash.update(memoryview(data)[self._next - offset :])
            self._next = offset + length
