"""Files behind any address that fsspec opens (`https://…`, `s3://…`, `gs://…`), where its users have installed it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from llmconv.errors import BadFile, LlmconvError, MissingExtra, UsageError, cut
from llmconv.formats.places.hub import said, tried
from llmconv.formats.places.remote import Entry, stores

__all__ = ["SCHEMES", "AddressStore"]

_WEB = ("http", "https")
SCHEMES = (*_WEB, "s3", "gs", "gcs", "abfs")
_USUAL = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja",
    "model.safetensors", "model.safetensors.index.json", "README.md",
)  # fmt: skip
"""What a model's folder holds, for the web, where there are no folders to be listed."""


class AddressStore:
    """A bucket, or a host of the web; what lies there is looked up when somebody asks.

    depth: the scheme and the host, or bucket.
    """

    depth = 2

    def __init__(self, parts: tuple[str, ...]):
        self._scheme = parts[0].rstrip(":")
        self._start = f"{parts[0]}//{'/'.join(parts[1:])}/"
        self._known: dict[str, Entry | None] = {}
        self._folders: dict[str, list[str]] = {}

    @functools.cached_property
    def _system(self) -> Any:
        try:
            import fsspec
        except ImportError:
            raise MissingExtra(f"{self._scheme}://", "fsspec", "hub") from None
        try:
            found = fsspec.filesystem(self._scheme)
        except ImportError as error:
            raise UsageError(f"{self._scheme}:// needs a library of its own: {cut(error.msg, 120)}") from None
        found.invalidate_cache()  # it keeps what it listed, for as long as the process lives
        return found

    def find(self, name: str) -> Entry | None:
        if name not in self._known:
            info = self._asked(self._start + name, self._system.info)
            self._known[name] = _entry(info) if info is not None else None
        return self._known[name]

    def inside(self, folder: str) -> Iterable[str]:
        if folder not in self._folders:
            start = f"{folder}/" if folder else ""
            if self._scheme in _WEB:
                found = [name for name in _USUAL if self.find(start + name) is not None]
            else:
                found = []
                for info in self._asked(self._start + folder, self._system.ls) or ():
                    name = str(info["name"]).rstrip("/").rpartition("/")[2]
                    if name not in ("", ".", "..", folder.rpartition("/")[2]):
                        self._known[start + name] = _entry(info)
                        found.append(name)
            self._folders[folder] = found
        return self._folders[folder]

    def read(self, name: str, offset: int, nbytes: int) -> bytes:
        where = self._start + name
        data: bytes | None = self._asked(where, self._system.cat_file, start=offset, end=offset + nbytes)
        if data is None:
            raise BadFile(f"{where}: no such file any more; it changed, run again")
        if len(data) > nbytes:
            raise BadFile(f"{where}: its server gives no parts of files; download it first")
        if len(data) != nbytes:
            raise BadFile(f"{where}: {len(data):,} bytes came, expected {nbytes:,}; it changed, run again")
        return data

    def is_checked(self, name: str) -> bool:
        return False  # addresses state no hash

    def _asked(self, where: str, call: Any, **how: Any) -> Any:
        """What a call gives, tried again where a line fails; None where there is no such thing."""

        def ask() -> Any:
            try:
                return call(where, **how)
            except FileNotFoundError as error:  # the web's, whatever it met
                met = error.__cause__
                if type(met).__module__.partition(".")[0] == "aiohttp" and getattr(met, "status", 0) not in (404, 410):
                    raise met from None  # type: ignore[misc]
                return None
            except Exception as error:
                if type(error).__module__.partition(".")[0] == "aiohttp":  # whose lines nobody tries again
                    raise
                raise _refusal(where, error, None) from None

        return tried(ask, where, _refusal)


def _entry(info: Mapping[str, Any]) -> Entry | None:
    """A file's; None for a folder, and for what states no size."""
    if info.get("type") != "file" or not isinstance(info.get("size"), int):
        return None
    tag = info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("mtime") or ""
    return Entry(info["size"], str(tag))


def _refusal(where: str, error: Exception | None, status: int | None) -> LlmconvError:
    return BadFile(f"{where}: can't be read ({said(error) if error else f'the server answered {status}'})")


stores |= dict.fromkeys(SCHEMES, AddressStore)
