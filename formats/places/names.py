"""Where a model lies, by the name that people give it, and what it is called there.

A path; `hf://ORG/NAME[@REVISION][/FILE]` and other addresses (see `remote`); `ollama://NAME[:TAG]`, of which the
manifest is looked up; the folder of a model in the Hub's cache (`models--ORG--NAME`), of which the snapshot is taken
that its branch main points to.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import urllib.parse
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from llmconv.errors import BadFile, UsageError, at, cut, nearest
from llmconv.formats.places.hub import download, is_offline, one_revision
from llmconv.formats.places.others import SCHEMES
from llmconv.formats.places.remote import RemotePath

__all__ = ["beside", "called", "kept", "place"]

KEEP = "LLMCONV_HUB_CACHE"
"""Environment variable: not empty, the Hub's files are kept in its own cache and read from there."""
_keeping: ContextVar[bool] = ContextVar("keeping", default=False)
_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+]{1,15}):/*(?P<rest>.*)", re.DOTALL)
_PAGE = re.compile(
    r"https?:/{1,2}(?:www\.)?(?:huggingface|hf)\.co/(?P<repo>[^/?#]+/[^/?#]+)"
    r"(?:/(?:blob|tree|resolve|raw)/(?P<revision>[^/?#]+)(?P<inside>/[^?#]*)?)?/?(?:[?#].*)?"
)
"""Addresses of the Hub's pages, of a repository or what is in it, as they are copied out of a browser."""
_PIECE = re.compile(r"[A-Za-z0-9][\w.-]{0,127}")
_CACHED = re.compile(r"models--(?:(?P<org>.+?)--)?(?P<name>.+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Meanwhile the Hub's files are kept in its own cache, as with `KEEP`."""
    token = _keeping.set(True)
    try:
        yield
    finally:
        _keeping.reset(token)


def place(given: str | os.PathLike[str]) -> Path:
    """The path of what a name stands for; `UsageError` or `BadFile` for a name that stands for nothing."""
    path = Path(given)
    if isinstance(given, RemotePath):
        return given
    named = _SCHEME.fullmatch(_address(os.fspath(given)))
    if named and not path.exists():
        scheme = named["scheme"].lower()
        if scheme == "ollama":
            return _ollama(named["rest"])
        if scheme == "hf" or scheme in SCHEMES:
            return _remote(RemotePath(f"{scheme}:", *named["rest"].split("/")))
    if _CACHED.fullmatch(path.name) and (path / "snapshots").is_dir():
        return _snapshot(path)
    return path


def _address(given: str) -> str:
    """The same, or `hf://` for the address of one of the Hub's pages."""
    page = _PAGE.fullmatch(given)
    if page is None:
        return one_revision(given)
    revision = f"@{page['revision']}" if page["revision"] else ""
    return f"hf://{page['repo']}{revision}{urllib.parse.unquote(page['inside'] or '')}"


def _remote(path: RemotePath) -> Path:
    """A path on another machine; of the Hub the one in its cache, where it is offline or the cache is asked for."""
    if path.parts[0] == "hf:" and (is_offline() or _keeping.get() or os.environ.get(KEEP)):
        return download(path.parts, offline=is_offline())
    return path.renew()


def called(path: Path) -> str:
    """The name of a model there: the file's without its ending, the folder's, or the one in a library of models."""
    if found := _library_name(path):
        return found
    if path.name in ("", ".", ".."):
        path = path.resolve()
    return path.name if path.is_dir() else path.name.removesuffix(path.suffix)


def beside(path: Path) -> Path:
    """The folder for what is made of a model: beside it, or where the caller is if it lies in a library of models."""
    if isinstance(path, RemotePath) or _library_name(path) or _is_cached(path):
        return Path()
    return (path.resolve() if path.name in ("", ".", "..") else path).parent


def _is_cached(path: Path) -> bool:
    """Whether a file lies in a snapshot of the Hub's cache."""
    parts = path.absolute().parts
    return any(_CACHED.fullmatch(a) and b == "snapshots" for a, b in itertools.pairwise(parts))


def _library_name(path: Path) -> str | None:
    """A name that the path's own does not say."""
    parts = path.absolute().parts
    if isinstance(path, RemotePath):
        return path.name.partition("@")[0] if len(parts) == 3 and parts[0] == "hf:" else None
    if len(parts) > 2 and parts[-2] == "snapshots" and (found := _CACHED.fullmatch(parts[-3])):
        return found["name"]
    if parts[-5:-4] == ("manifests",) and Path(*parts[:-5], "blobs").is_dir():  # HOST/NAMESPACE/NAME/TAG
        name, tag = parts[-2:]
        return name if tag == "latest" else f"{name}-{tag}"
    return None


def _ollama_models() -> Path:
    stated = os.environ.get("OLLAMA_MODELS")
    return Path(stated) if stated else Path.home() / ".ollama" / "models"


def _ollama(name: str) -> Path:
    """The manifest of `[[HOST/]NAMESPACE/]NAME[:TAG]`."""
    model, _, tag = name.strip("/").partition(":")
    pieces = [*model.split("/"), tag or "latest"]
    if not 2 <= len(pieces) <= 4 or not all(_PIECE.fullmatch(p) for p in pieces):
        raise UsageError(f"{cut(name)} is no name of Ollama's; write ollama://NAME, or ollama://NAME:TAG")
    pieces = ["registry.ollama.ai", "library"][: 4 - len(pieces)] + pieces
    root = _ollama_models() / "manifests"
    path = root.joinpath(*pieces)
    if not path.is_file():
        there = [f"{p.parent.name}:{p.name}" for p in root.glob("*/*/*/*") if p.is_file()]
        near = nearest(f"{pieces[-2]}:{pieces[-1]}", there)
        way = f"did you mean ollama://{near}?" if near else "ollama list shows what is there, ollama pull fetches one"
        raise BadFile(f"ollama://{name}: no such model in {at(_ollama_models())}; {way}")
    return path


def _snapshot(folder: Path) -> Path:
    """The snapshot of branch main of a model in the Hub's cache, or the only one."""
    ref = folder / "refs" / "main"
    if ref.is_file():
        commit = ref.read_bytes()[:64].decode("latin1").strip()
        if _COMMIT.fullmatch(commit) and (folder / "snapshots" / commit).is_dir():
            return folder / "snapshots" / commit
    found = sorted(p for p in (folder / "snapshots").iterdir() if p.is_dir())
    if len(found) != 1:
        raise BadFile(f"{at(folder)}: holds {len(found)} snapshots and none of main; name the folder of one")
    return found[0]
