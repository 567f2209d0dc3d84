"""A path on another machine: listed, asked for its size and read by ranges as a local one is, never written.

`hf://ORG/NAME[@REVISION][/FOLDER/FILE]`, and `https://…`, `s3://…`, `gs://…` where fsspec can open them.  Readers know
nothing of it: `RemotePath` answers what a `Path` is asked, and `Source` reads its bytes through `ranges`.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import stat as modes
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llmconv.errors import more

__all__ = ["Entry", "RemotePath", "Store", "check", "stores", "told"]


@dataclass(frozen=True)
class Entry:
    """A file in a store.   size: in bytes.   tag: changes with its content: a hash, an ETag."""

    size: int
    tag: str


class Store(Protocol):
    """A tree of files on another machine, as it was when it was first asked.

    depth: how many parts of a path, the scheme counted, name the store itself.
    """

    depth: int

    def find(self, name: str) -> Entry | None:
        """The file of a path within, if there is one; `BadFile` when the store is not there."""
        ...

    def inside(self, folder: str) -> Iterable[str]:
        """The names of what lies in a folder; none where there is no such folder."""
        ...

    def read(self, name: str, offset: int, nbytes: int) -> bytes:
        """Exactly so many bytes of a file; `BadFile` when it changed or can't be had."""
        ...

    def is_checked(self, name: str) -> bool:
        """Whether all of a file was read, and is of the hash that was stated; `BadFile` when it is of another."""
        ...


stores: dict[str, Any] = {}
"""Scheme -> what makes a `Store` of a path's parts."""


@functools.lru_cache(32)
def _store(parts: tuple[str, ...]) -> Store:
    made: Store = stores[parts[0].rstrip(":")](parts)
    return made


class RemotePath(type(Path())):  # type: ignore[misc]
    """See above.  Its text begins with the scheme; what is made of it (`/`, `parent`, …) is of its kind too."""

    def __str__(self) -> str:
        scheme, *rest = self.parts
        return f"{scheme}//{'/'.join(rest)}"

    def __fspath__(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __hash__(self) -> int:
        return hash(self.parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self.parts == other.parts

    @property
    def store(self) -> Store:
        return _store(self._base)

    @property
    def _base(self) -> tuple[str, ...]:
        found: tuple[str, ...] = self.parts[: stores[self.parts[0].rstrip(":")].depth]
        return found

    @property
    def within(self) -> str:
        """The path inside the store, "" for the store itself."""
        return "/".join(self.parts[len(self._base) :])

    @property
    def entry(self) -> Entry | None:
        return self.store.find(self.within) if self.within else None

    def renew(self) -> RemotePath:
        """The same path; what its store was is forgotten, and asked again."""
        _store.cache_clear()
        return self

    # What a `Path` is asked.

    def is_file(self, **_: Any) -> bool:
        return self.entry is not None

    def is_dir(self, **_: Any) -> bool:
        return self.entry is None and any(True for _ in self.store.inside(self.within))

    def exists(self, **_: Any) -> bool:
        return self.is_file() or self.is_dir()

    def is_symlink(self) -> bool:
        return False

    def stat(self, **_: Any) -> os.stat_result:
        entry = self.entry
        if entry is None and not self.is_dir():
            raise FileNotFoundError(2, "no such file", str(self))
        mode = modes.S_IFDIR if entry is None else modes.S_IFREG
        size, tag = (0, 0) if entry is None else (entry.size, hash_of(entry.tag))
        return os.stat_result((mode | 0o444, tag, 0, 1, 0, 0, size, 0, 0, 0))

    def iterdir(self) -> Iterator[RemotePath]:
        return (self / name for name in sorted(self.store.inside(self.within)))

    def files(self) -> Iterator[tuple[str, Entry]]:
        """The file, or every file in the folder and below, by its path in the store."""
        if (entry := self.entry) is not None:
            yield self.within, entry
        else:
            for path in self.iterdir():
                yield from path.files()

    def glob(self, pattern: str, **_: Any) -> Iterator[RemotePath]:
        first, _slash, rest = pattern.partition("/")
        found = (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, first))
        return (inner for path in found for inner in path.glob(rest)) if rest else found

    def read_bytes(self) -> bytes:
        return self.store.read(self.within, 0, self.stat().st_size)

    def resolve(self, strict: bool = False) -> RemotePath:
        return self

    def absolute(self) -> RemotePath:
        return self

    def samefile(self, other: Any) -> bool:
        return bool(self == other)


def check(paths: Iterable[Path]) -> None:
    """`BadFile` where all of a remote file was read and is not what its store states."""
    for path in paths:
        if isinstance(path, RemotePath):
            path.store.is_checked(path.within)


def told(paths: Iterable[Path]) -> list[str]:
    """A note about what was checked of the remote files among these, whose weights were read."""
    files = sorted({p for p in paths if isinstance(p, RemotePath) and p.is_file()}, key=str)
    checked = [p for p in files if p.store.is_checked(p.within)]
    if not files or len(checked) == len(files):
        return [f"the weights' files have the SHA-256 that the Hub states, {len(files)} of {len(files)}"] * bool(files)
    left = [p.name for p in files if p not in checked]
    return [
        f"{len(checked)} of {len(files)} remote files were read in order and have the SHA-256 that is stated; by size "
        f"and tag alone: {left[0]}{more(left)}"
    ]


def hash_of(tag: str) -> int:
    """A number for a tag, the same in every process."""
    return int.from_bytes(tag.encode()[:64], "big") % (1 << 61)
