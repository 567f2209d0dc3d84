"""Things that other installed packages add: block types, formats, architectures, layouts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmconv.errors import LlmconvError, UsageError

__all__ = ["load"]


def load(group: str) -> Iterator[tuple[str, Any]]:
    """(name, object) of each entry point of a group such as "llmconv.formats", each loaded when its turn comes.

    A broken one is a sentence (`LlmconvError`) that names it and its package.
    """
    from importlib import metadata  # with email and a dozen more behind it

    for point in metadata.entry_points(group=group):
        try:
            yield point.name, point.load()
        except LlmconvError:
            raise
        except Exception as error:  # whatever somebody else's module does when it is imported
            package = f" of {point.dist.name}" if point.dist else ""
            raise UsageError(
                f"entry point {point.name!r} ({point.value}){package} in {group} can't be loaded "
                f"({type(error).__name__}: {str(error)[:120]}); update or remove that package"
            ) from error
