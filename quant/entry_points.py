"""What other installed packages add: objects that their entry points name."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from llmconv.errors import LlmconvError, cut

__all__ = ["load"]


def load(group: str) -> Iterator[tuple[str, Any]]:
    """(name, object) of every entry point of `group`, imported one by one as they are asked for.

    Raises `LlmconvError`, one sentence, where one can't be imported; the next call goes on with the one after it.
    """
    return map(_loaded, entry_points(group=group))  # not a generator, which ends with its first exception


def _loaded(point: EntryPoint) -> tuple[str, Any]:
    try:
        return point.name, point.load()
    except Exception as error:  # any code may run there
        package = point.dist.name if point.dist else "a package"
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise LlmconvError(
            f"{package}: entry point {cut(point.name)} of {point.group} ({cut(point.value)}) can't be loaded "
            f"({cut(why)}); repair or uninstall {package}"
        ) from error
