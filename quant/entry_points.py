"""Things by name: this package's, those registered at run time, and those of other installed packages.

Another package offers its own in its pyproject.toml, `[project.entry-points."llmconv.architectures"]`, as `name =
"module:OBJECT"`: one thing or a list of them.  They are loaded when a name is looked up that nothing here has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from llmconv.errors import UsageError

__all__ = ["Registry", "load", "problems", "refuse"]

T = TypeVar("T")

_problems: dict[str, str] = {}


def problems() -> list[str]:
    """A sentence about each entry point that could not be used."""
    return list(_problems.values())


def load(group: str) -> list[tuple[str, Any]]:
    """(where it is from, thing) of every entry point of the group; a broken one is a sentence in `problems`."""
    from importlib import metadata  # reads the folders of all installed packages

    out = []
    for point in metadata.entry_points(group=group):
        where = f"{point.value} ({group})"
        try:
            found = point.load()
            out += [(where, thing) for thing in (found if isinstance(found, list | tuple) else [found])]
        except Exception as error:  # whatever somebody else's module raises
            refuse(where, f"{type(error).__name__}: {error}")
    return out


def refuse(where: str, why: str) -> None:
    """Note that an entry point is left out."""
    _problems[where] = f"entry point {where} is left out ({why:.120}); repair or uninstall the package it is from"


class Registry(Generic[T]):
    """Things of a kind by name.

    group: of the entry points.   own: gives this package's, asked once.   name: a thing's name.
    some: given names, all of this package's that bear one of them; asked until `own` was.
    """

    def __init__(
        self,
        group: str,
        kind: type[T],
        own: Callable[[], Iterable[T]],
        name: Callable[[T], str],
        some: Callable[..., Iterable[T]] | None = None,
    ):
        self.group, self.kind, self._own, self._name, self._some = group, kind, own, name, some
        self._known: dict[str, T] | None = None
        self._loaded = False

    def known(self) -> dict[str, T]:
        """What is here without other packages' entry points."""
        if self._known is None:
            self._known = {self._name(item): item for item in self._own()}
        return self._known

    def all(self) -> dict[str, T]:
        """Everything by name, in the order of adding."""
        if not self._loaded:
            self._loaded = True
            for where, thing in load(self.group):
                try:
                    self.register(thing)
                except UsageError as error:
                    refuse(where, str(error))
        return self.known()

    def register(self, thing: T) -> T:
        """Add a thing; `UsageError` for one of another kind, or whose name is taken."""
        if not isinstance(thing, self.kind):
            raise UsageError(f"{thing!r:.60} is no {self.kind.__name__}; give one")
        if self._name(thing) in self.known():
            raise UsageError(f"the name {self._name(thing)!r} is taken; choose another")
        self.known()[self._name(thing)] = thing
        return thing

    def unregister(self, name: str) -> None:
        self.known().pop(name, None)

    def get(self, name: str) -> T | None:
        """The thing of that name; other packages are asked only when nothing here has it."""
        return self.first(lambda thing: self._name(thing) == name, name)

    def first(self, fits: Callable[[T], bool], *names: Any) -> T | None:
        """The first that fits; other packages are asked only when nothing here does.

        names: one of which it must bear to fit, where that is known.
        """
        if names and self._some is not None and self._known is None:
            found = next(filter(fits, self._some(*names)), None)
            if found is not None:
                return found
        for things in (self.known, self.all):
            found = next(filter(fits, list(things().values())), None)
            if found is not None:
                return found
        return None
