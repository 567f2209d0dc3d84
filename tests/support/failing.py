"""System calls that fail, in place of those of `os`."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any


def raising(number: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def failing_at(function: Callable[..., Any], nth: int, number: int = errno.ENOSPC) -> Callable[..., Any]:
    """`function`, whose `nth` call (from 0) fails."""
    calls = iter(range(10**9))

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == nth:
            raise OSError(number, os.strerror(number))
        return function(*args, **kwargs)

    return call
