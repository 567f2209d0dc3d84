"""Files behind any address that fsspec opens (`https://…`, `s3://…`, `gs://…`), where its users have installed it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from llmconv.errors import BadFile, MissingExtra, UsageError, cut
from llmconv.formats.places.remote import Entry, stores

__all__ = ["SCHEMES", "AddressStore"]

SCHEMES = ("http", "https", "s3", "gs", "gcs", "abfs")


class AddressStore:
    """The folder that an address without its last part is; of the web, where there are no folders, what was asked for.

    depth: the scheme and the host, or bucket.
    """

    depth = 2

    def __init__(self, parts: tuple[str, ...]):
        self._start = f"{parts[0]}//{'/'.join(parts[1:])}/"
        self._known: dict[str, Entry] = {}

    @functools.cached_property
    def _system(self) -> Any:
        try:
            import fsspec
        except ImportError:
            raise MissingExtra(self._start.partition("/")[0] + "//", "fsspec", "hub") from None
        scheme = self._start.partition(":")[0]
        try:
            return fsspec.filesystem(scheme)
        except ImportError as error:
            raise UsageError(f"{scheme}:// needs a library of its own: {cut(str(error), 120)}") from None

    def entries(self) -> Mapping[str, Entry]:
        return _Asked(self)

    def find(self, name: str) -> Entry | None:
        if name not in self._known:
            try:
                info = self._system.info(self._start + name)
            except FileNotFoundError:
                return None
            except Exception as error:
                raise BadFile(f"{self._start}{name}: can't be read ({cut(str(error), 100)})") from None
            if info.get("type") != "file" or not isinstance(info.get("size"), int):
                return None
            tag = info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("mtime") or ""
            self._known[name] = Entry(info["size"], str(tag))
        return self._known[name]

    def read(self, name: str, offset: int, nbytes: int) -> bytes:
        where = self._start + name
        try:
            data: bytes = self._system.cat_file(where, offset, offset + nbytes)
        except Exception as error:
            raise BadFile(f"{where}: can't be read ({cut(str(error), 100)}); try later") from None
        if len(data) != nbytes:
            raise BadFile(f"{where}: {len(data):,} bytes came, expected {nbytes:,}; it changed, run again")
        return data

    def is_checked(self, name: str) -> bool:
        return False  # addresses state no hash


class _Asked(Mapping[str, Entry]):
    """Files that are looked up when somebody asks; nothing can be listed."""

    def __init__(self, store: AddressStore):
        self._store = store

    def __getitem__(self, name: str) -> Entry:
        found = self._store.find(name)
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0


stores |= dict.fromkeys(SCHEMES, AddressStore)
